"""A progress bar on a terminal, below what is logged; none where stderr is a file or a pipe."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .quoting import plain, plain_lines


@contextmanager
def progress_bar(
    name: str, total: int | None, unit: str = "B", done: int = 0, **form: Any
) -> Iterator[Callable[..., None]]:
    """A function to call with each further amount of ``unit``, and a note to show with it.

    Bytes ("B") are shown in kB, MB and GB, and their bar stays. ``form``: further options of ``tqdm``.
    """
    from tqdm import tqdm

    many = unit == "B"
    with tqdm(
        total=total, initial=done, desc=plain(name), unit=unit, unit_scale=many, leave=many, disable=None, **form
    ) as bar:

        def update(amount: int, note: str = "") -> None:
            bar.set_postfix_str(plain(note), refresh=False)
            bar.update(amount)

        yield update


class AboveTheBar(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes log records to stderr, and what progress bar there is anew below them; nothing in them acts on the terminal."""

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
