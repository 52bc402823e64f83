"""A progress bar on a terminal; none where stderr is a file or a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(name: str, total: int | None, unit: str = "B", done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to call with each further amount of ``unit``. Bytes ("B") are shown in kB, MB and GB, and their bar stays."""
    from tqdm import tqdm

    many = unit == "B"
    with tqdm(total=total, initial=done, desc=name, unit=unit, unit_scale=many, leave=many, disable=None) as bar:
        yield bar.update
