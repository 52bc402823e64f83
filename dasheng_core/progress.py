"""A progress bar on a terminal, below what is logged; one line per minute where stderr is a file or a pipe."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .quoting import plain, plain_lines

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0


@contextmanager
def progress_bar(
    name: str, total: int | None, unit: str = "B", done: int = 0, **form: Any
) -> Iterator[Callable[..., None]]:
    """A function to call with each further amount of ``unit``, and a note to show with it.

    Bytes ("B") are shown in kB, MB and GB, and their bar stays. ``form``: further options of ``tqdm``.
    """
    from tqdm import tqdm

    many = unit == "B"
    started = said = time.monotonic()
    now = done
    with tqdm(
        total=total, initial=done, desc=plain(name), unit=unit, unit_scale=many, leave=many, disable=None, **form
    ) as bar:

        def update(amount: int, note: str = "") -> None:
            nonlocal now, said
            bar.set_postfix_str(plain(note), refresh=False)
            bar.update(amount)
            now += amount
            if bar.disable and (moment := time.monotonic()) - said >= LINE_SECONDS:
                said = moment
                size = (lambda count: tqdm.format_sizeof(count, "B")) if many else str
                whole = f" of {size(total)}" if total else ""
                left = (total or 0) - now
                # By the pace of this run: what was made before it took no time.
                wait = tqdm.format_interval((moment - started) * left / (now - done)) if left > 0 and now > done else ""
                parts = [f"{size(now)}{whole}" + ("" if many else f" {unit}s"), note, wait and f"{wait} left"]
                log.info("%s: %s", name, ", ".join(filter(None, parts)))

        yield update


class AboveTheBar(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records to stderr, and draws a progress bar again below them; nothing in them acts on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return plain_lines(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


@contextmanager
def step_bar(callback: Callable[[int, int], None] | None) -> Iterator[Callable[[int, int], None]]:
    """``callback`` itself; or, without one, a bar of steps on a terminal or in a notebook."""
    if callback is not None:
        yield callback
        return
    from tqdm.auto import tqdm

    # A notebook is no terminal, and tqdm.auto knows it.
    in_notebook = tqdm.__name__ == "tqdm_notebook"
    with tqdm(desc="sampling", unit="step", leave=False, disable=False if in_notebook else None) as bar:

        def update(done: int, steps: int) -> None:
            bar.total = steps
            bar.update(done - bar.n)

        yield update
