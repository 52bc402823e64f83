"""Atomic writes: a file is complete or not there."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..quoting import plain


def atomic_write(path: Path, write: Callable[[Path], object], replace: bool = False) -> None:
    """Let ``write`` make a temporary file, then rename it to ``path``, in place of a file there only with ``replace``.

    Raises:
        FileExistsError: ``path`` has appeared meanwhile, without ``replace``.
        OSError: it could not be written; nothing of it is left.
    """
    # Named before it exists, so that the name to remove is known whenever writing is interrupted.
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path) if replace else _rename(temporary, path)
    except FileExistsError as error:
        raise FileExistsError(
            f"{plain(path)} has appeared meanwhile: it stays, and what was made is dropped."
        ) from error
    except OSError as error:
        raise OSError(
            f"{plain(path)} could not be written ({error.strerror}) and nothing of it is left: make room there, or choose "
            "another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _rename(temporary: Path, path: Path) -> None:
    """Of two processes that make one file at the same time, one raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no hard links; a rename that refuses what is there is not in Python.
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)
