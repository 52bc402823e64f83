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
