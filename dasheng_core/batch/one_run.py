"""One run of ``dasheng batch`` in a folder: a lock, and a note of who holds it.

On one machine the lock of the operating system decides, which ends with its process. Other machines may not see that lock, and
a bucket has none: there a note that is left over stays, until the user says that its run has ended.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..quoting import plain
from .storage import Storage

NOTE = ".dasheng-batch.json"
# A note is short; a longer file is no note.
NOTE_BYTES = 4096


@contextmanager
def one_run(storage: Storage, folder: Path, break_lock: bool) -> Iterator[None]:
    """Lock ``folder``, under the storage's root, while the block runs.

    Raises OSError where another run holds it, or may; or the note of this one cannot be written.
    """
    note = folder / NOTE
    with storage.locked(folder) as alone:
        holder = _read(storage, note)
        if alone is False:
            raise OSError(
                f"{_where(folder)} is held by {_named(holder)}: wait until it has ended, or choose another -o."
            )
        # A process of this machine that had not ended would hold the lock.
        over = alone and holder is not None and holder.get("host") == platform.node()
        if holder is not None and not over and not break_lock:
            raise OSError(
                f"{_where(folder)} is held by {_named(holder)}: wait until it has ended, or choose another -o; if it has ended "
                "without releasing it, lift its lock by --break-lock."
            )
        mine = {
            "host": platform.node(),
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        }
        try:
            storage.write(note, json.dumps(mine).encode(), replace=holder is not None)
        except FileExistsError as error:
            raise OSError(f"Another run has just taken {_where(folder)}: wait until it has ended.") from error
        try:
            # In a bucket, the later of two notes that are written at once replaces the other.
            if _read(storage, note) != mine:
                raise OSError(f"Another run has just taken {_where(folder)}: wait until it has ended.")
            yield
        finally:
            with suppress(OSError):
                if _read(storage, note) == mine:
                    storage.delete(note)


def _read(storage: Storage, note: Path) -> dict[str, Any] | None:
    """The values in a note; empty where it cannot be read, None where there is none."""
    size = storage.size(note)
    if size is None:
        return None
    try:
        values = json.loads(storage.read(note)) if 0 <= size <= NOTE_BYTES else {}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _named(holder: dict[str, Any] | None) -> str:
    if not holder:
        return "another run"
    host, pid, since = (plain(holder.get(key, "?"), 60) for key in ("host", "pid", "since"))
    return f"another run, process {pid} on {host} since {since}"


def _where(folder: Path) -> str:
    return f"The folder {plain(folder)}"
