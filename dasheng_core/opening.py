"""Every file that a user names is opened here: regular ones alone, since a pipe never ends and a device fills any memory."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from .quoting import plain

FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: str | Path, most: int | None = None) -> BufferedReader:
    """Open a regular file, or a link to one, for reading bytes.

    Args:
        most: the bytes it may have; None: any number.

    Raises OSError where there is none, it is something else, it is larger, or it may not be read.
    """
    file = open(path, "rb", opener=_open_at_once)
    try:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            kind = next((name for test, name in FILE_KINDS if test(found.st_mode)), "something else")
            raise OSError(f"it is {kind}, expected a regular file")
        if most is not None and found.st_size > most:
            raise OSError(f"it has {found.st_size:,} bytes, expected at most {most:,}")
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: str | Path, most: int) -> bytes:
    """All of a regular file of at most ``most`` bytes. Raises OSError as :func:`open_file` does."""
    with open_file(path, most) as file:
        # It may be growing, and some system files say that they have 0 bytes.
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"it has more than {most:,} bytes")
    return data


@contextmanager
def explained(failed: str, remedy: str) -> Iterator[None]:
    """Make one sentence of an OSError: what ``failed``, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{failed} ({plain(error.strerror or error)}): {remedy}.") from error


def _open_at_once(path: str, flags: int) -> int:
    # Otherwise opening a pipe waits until somebody writes into it; Windows has no such pipes among its files.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
