"""Reading files that may be damaged, hostile, or rewritten meanwhile.

Nothing stays memory-mapped: a page of a mapped file that is cut ends the whole process.

Files are read in pieces. Before each, ``poll`` is called: what it raises stops the reading, and reaches the caller. So a
program can cancel a load.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from ..quoting import plain

Shapes = Mapping[str, tuple[int, ...]]
GIT_LFS = b"version https://git-lfs.github.com/spec/"
# Bytes read between two polls.
PIECE = 2**26
Poll = Callable[[], object]


def never_stop() -> None:
    """A poll that lets everything be read."""


class CheckpointError(ValueError):
    """A file that is not the model it was loaded as."""


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
        try:
            with open(path, "rb") as file:
                start = file.read(len(GIT_LFS))
        except PermissionError:
            raise CheckpointError(
                f"{plain(path)} may not be read by this user: change its permissions, or use a copy that is yours."
            ) from error
        except OSError:
            # Gone or broken since: the library's own reason says so.
            pass
        if start == GIT_LFS:
            expected, reason = expected + " but a Git LFS pointer to one", "text"
            remedy = "run git lfs pull, or " + remedy
        else:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is not {expected} ({reason}): {remedy}.") from error


class WatchedFile:
    """A file whose bytes are read on demand, as long as it is the one that was opened."""

    def __init__(self, path: Path, poll: Poll):
        self._path, self._poll = path, poll
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
            whole = read_into(file, values.numpy().data, self._poll) == values.nbytes
            self.check(file.fileno(), whole)
        return values.view(dtype).view(shape if parts == 1 else (count, *shape[1:]))

    def check(self, file: int | Path, whole: bool = True) -> None:
        """Raise CheckpointError if the file (its descriptor or path) is not as it was."""
        if not whole or version(os.stat(file)) != self._version:
            raise CheckpointError(f"{self._path} has changed since it was opened: load it again (in ComfyUI, queue).")


class PolledFile:
    """A binary file for a library that reads it as a whole. Leaving its ``with`` block raises what stopped the reading."""

    def __init__(self, poll: Poll):
        self._poll = poll
        self._stopped: BaseException | None = None

    def __enter__(self) -> "PolledFile":
        return self

    def of(self, file: BufferedReader) -> "PolledFile":
        self._file = file
        self.read, self.readline, self.seek, self.tell = file.read, file.readline, file.seek, file.tell
        return self

    def __exit__(self, *_: object) -> None:
        if self._stopped is not None:
            raise self._stopped

    def readinto(self, buffer: memoryview) -> int:
        with ExitStack() as stack:
            # torch's C++ goes on after an exception; it ends where a file ends.
            stack.push(self._keep)
            return read_into(self._file, memoryview(buffer).cast("B"), self._poll)
        return 0

    def _keep(self, _: object, error: BaseException | None, *rest: object) -> bool:
        self._stopped = error
        return error is not None


def read_into(file: BufferedReader, buffer: memoryview, poll: Poll) -> int:
    """Fill ``buffer`` as far as the file goes; the number of bytes read."""
    done = 0
    while done < len(buffer):
        poll()
        count = file.readinto(buffer[done : done + PIECE])
        if not count:
            break
        done += count
    return done


def copied(tensor: Tensor, poll: Poll) -> Tensor:
    """The tensor in memory of its own, of a mapped file some rows at a time."""
    copy = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    count = max(1, PIECE * len(tensor) // max(1, tensor.nbytes)) if tensor.ndim else 1
    for mine, theirs in zip(torch.atleast_1d(copy).split(count), torch.atleast_1d(tensor).split(count), strict=True):
        poll()
        mine.copy_(theirs)
    return copy


def rows(shape: Sequence[int], part: int, parts: int) -> tuple[int, int]:
    """First row and count of rows of a part, as torch's tensor_split has them."""
    each, more = divmod(shape[0] if shape else 1, parts)
    return part * each + min(part, more), each + (part < more)


def version(stat: os.stat_result) -> tuple[int, int]:
    """What changes when a file is written or replaced."""
    return stat.st_mtime_ns, stat.st_size
