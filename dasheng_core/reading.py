"""Reading files that may be damaged, hostile, or rewritten meanwhile.

Nothing stays memory-mapped: a page of a mapped file that is cut ends the whole process.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from .config import CheckpointError

GIT_LFS = b"version https://git-lfs.github.com/spec/"


@contextmanager
def naming(path: Path, expected: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Whatever a library raises on a damaged file becomes a CheckpointError that names the file.

    Args:
        expected: what the file should be, for the sentence "PATH is not ...".
    """
    try:
        yield
    except (CheckpointError, ImportError, MemoryError):
        raise
    # Libraries raise anything on damaged files; tokenizers knows Exception only.
    except Exception as error:
        start = b""
        with suppress(OSError), open(path, "rb") as file:
            start = file.read(len(GIT_LFS))
        if start == GIT_LFS:
            expected, reason, remedy = (
                expected + " but a Git LFS pointer to one",
                "text",
                "run git lfs pull, or " + remedy,
            )
        else:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is not {expected} ({reason}): {remedy}.") from error


class WatchedFile:
    """A file whose bytes are read on demand, as long as it is the one that was opened."""

    def __init__(self, path: Path):
        self._path = path
        self._version = version(path.stat())

    def read(self, start: int, dtype: torch.dtype, shape: Sequence[int], part: int = 0, parts: int = 1) -> Tensor:
        """The tensor that starts at byte ``start``, or one part of it as :func:`rows` says, in memory of its own.

        Raises:
            CheckpointError: the file has changed since it was opened.
        """
        first, count = rows(shape, part, parts)
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        values = torch.empty(count * row_bytes, dtype=torch.uint8, device="cpu")
        with open(self._path, "rb") as file:
            file.seek(start + first * row_bytes)
            whole = file.readinto(values.numpy()) == values.nbytes
            self.check(file.fileno(), whole)
        return values.view(dtype).view(shape if parts == 1 else (count, *shape[1:]))

    def check(self, file: int | Path, whole: bool = True) -> None:
        """Raise CheckpointError if the file (its descriptor or path) is not as it was."""
        if not whole or version(os.stat(file)) != self._version:
            raise CheckpointError(
                f"{self._path} has changed since it was opened: load it again (in ComfyUI, queue again)."
            )


def rows(shape: Sequence[int], part: int, parts: int) -> tuple[int, int]:
    """First row and count of rows of a part, as torch's tensor_split has them."""
    each, more = divmod(shape[0] if shape else 1, parts)
    return part * each + min(part, more), each + (part < more)


def version(stat: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written or replaced."""
    return stat.st_mtime_ns, stat.st_size
