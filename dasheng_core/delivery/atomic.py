"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..quoting import plain


def atomic_write(path: Path, write: Callable[[Path], object], replace: bool = False) -> None:
    """Let ``write`` make a file of another name, then give it this one, unless there is one now and it shall stay.

    Raises:
        FileExistsError: ``path`` has appeared meanwhile, without ``replace``.
        OSError: it could not be written; nothing of it is left.
    """
    # Named before it exists, so that whatever interrupts the writing, the name to remove is known.
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
    """Of two that make one file at the same time, one raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # This file system has no hard links; a rename that refuses what is there is not in Python.
        if path.exists():
            raise FileExistsError(path) from None
        os.replace(temporary, path)
