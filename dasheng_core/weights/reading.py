"""Reading files that may be damaged, hostile, or rewritten meanwhile.

Nothing stays memory-mapped: a page of a mapped file that is cut ends the whole process.

Files are read in pieces. Before each, ``poll`` is called: what it raises stops the reading, and reaches the caller. So a
program can cancel a load.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..opening import open_file, read_file
from ..quoting import MESSAGE, plain

Shapes = Mapping[str, tuple[int, ...]]
GIT_LFS = b"version https://git-lfs.github.com/spec/"
# Bytes read between two polls.
READ_BYTES = 2**26
# And of another dtype than is wanted: larger buffers, once freed, fragment malloc's heap.
CONVERTED_BYTES = 2**20
# Of a config.json or an index of shards: the published ones have some kB.
JSON_BYTES = 2**22
# Of any JSON text: an object of Python takes some 100 bytes for a value of two letters.
JSON_VALUES = 2_000_000
Poll = Callable[[], object]


def never_stop() -> None:
    """A poll that lets everything be read."""


class CheckpointError(ValueError):
    """A file that is not the model it was loaded as. Whatever its sentence quotes stands in one line, and cannot act."""

    def __init__(self, sentence: object):
        super().__init__(plain(sentence, MESSAGE))


@contextmanager
def naming(path: Path, expected: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Whatever a library raises on a damaged file becomes a CheckpointError that names the file.

    Args:
        expected: what the file should be, for the sentence "PATH is not ...".
    """
    try:
        yield
    except (CheckpointError, ImportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise CheckpointError(
            f"{plain(path)} takes more memory to read than there is: free some, or {remedy}."
        ) from error
    # Libraries raise anything on damaged files; tokenizers raises Exception itself, and Rust's panics are not even that.
    except BaseException as error:
        start = None
        try:
            with open_file(path) as file:
                start = file.read(len(GIT_LFS))
        except PermissionError:
            raise CheckpointError(
                f"{plain(path)} may not be read by this user: change its permissions, or use a copy that is yours."
            ) from error
        except OSError:
            # The file has gone since: the library's own error names it.
            pass
        if start == GIT_LFS:
            expected, reason = expected + " but a Git LFS pointer to one", "text"
            remedy = "run git lfs pull, or " + remedy
        elif start == b"":
            reason = "it is empty"
        else:
            reason = plain(next(iter(str(error).splitlines()), type(error).__name__))
        raise CheckpointError(f"{plain(path)} is not {expected} ({reason}): {remedy}.") from error


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The value of a JSON file of at most ``most`` bytes. Raises ValueError, OSError or RecursionError."""
    return parse_json(read_file(path, most).decode("utf-8"))


def parse_json(text: str) -> Any:
    """The value of a JSON text, unless it would take far more memory than the text. Raises ValueError or RecursionError."""
    count = sum(map(text.count, "[{,:"))
    if count > JSON_VALUES:
        raise ValueError(f"it has {count:,} values, expected at most {JSON_VALUES:,}")
    return json.loads(text)


class WatchedFile:
    """A file whose bytes are read on demand, as long as it is the one that was opened."""

    def __init__(self, path: Path, poll: Poll):
        self._path, self._poll = path, poll
        self._version = version(path.stat())

    def read(self, start: int, dtype: torch.dtype, shape: Sequence[int], to: torch.dtype | None = None) -> Tensor:
        """The tensor that starts at byte ``start``, in memory of its own, converted piece by piece to ``to``.

        Raises CheckpointError where the file has changed since it was opened.
        """
        values, whole = torch.empty(math.prod(shape), dtype=to or dtype, device="cpu"), True
        at_once = (READ_BYTES if values.dtype == dtype else min(READ_BYTES, CONVERTED_BYTES)) // dtype.itemsize
        buffer = values if values.dtype == dtype else torch.empty(min(at_once, len(values)), dtype=dtype, device="cpu")
        with open_file(self._path) as file:
            file.seek(start)
            for piece in values.split(at_once):
                self._poll()
                read = piece if buffer is values else buffer[: len(piece)]
                whole &= file.readinto(read.view(torch.uint8).numpy().data) == read.nbytes
                if read is not piece:
                    piece.copy_(read)
            self.check(file.fileno(), whole)
        return values.view(tuple(shape))

    def check(self, file: int | Path, whole: bool = True) -> None:
        """Raise CheckpointError if the file (its descriptor or path) is not as it was."""
        if not whole or version(os.stat(file)) != self._version:
            raise CheckpointError(f"{plain(self._path)} has changed since it was opened: load it again.")


def version(stat: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written or replaced, also by one of the same size and time (``cp -p``, ``rsync -t``)."""
    # Windows has no time of change, but the number of a file. Elsewhere some network disks give a file another number at each request.
    return stat.st_mtime_ns, stat.st_size, stat.st_ino if os.name == "nt" else stat.st_ctime_ns
