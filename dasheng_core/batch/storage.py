"""Where the sounds of a batch go: the local disk, or what pyarrow reaches by a URI such as ``s3://bucket``.

Writes are atomic. Writing raises FileExistsError on a local disk alone, and OSError.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..delivery.audio_file import write_bytes
from ..opening import explained
from ..quoting import plain
from .naming import check_folder
from .rows import filesystem

# Stands for the size of what is there and is no file.
NO_FILE = -1
LOCK = ".dasheng-batch.lock"


@dataclass(frozen=True)
class LocalDisk:
    """Paths are relative to a folder, since a worker may run in another."""

    folder: Path

    def check(self, output: str) -> None:
        """Whether the files of a naming template can be written."""
        check_folder(self.folder / folder_of(output))

    def sizes(self, output: str) -> Callable[[Path], int | None]:
        """:meth:`size`, of the files of a naming template."""
        return self.size

    def size(self, path: Path) -> int | None:
        """Bytes of a file; None: nothing has that name."""
        try:
            found = os.stat(self.folder / path)
        except OSError:
            return NO_FILE if os.path.lexists(self.folder / path) else None
        return found.st_size if stat.S_ISREG(found.st_mode) else NO_FILE

    def sums(self, path: Path, deep: bool) -> dict[str, str]:
        """The checksums of a file, which differ from those of another file of its size."""
        with open(self.folder / path, "rb") as file:
            return {"sha256": _sha256(iter(lambda: file.read(2**20), b""))}

    def read(self, path: Path) -> bytes:
        return (self.folder / path).read_bytes()

    def write(self, path: Path, data: bytes, replace: bool = False) -> dict[str, str]:
        """Write a file; what :meth:`sums` will say of it beside its SHA-256."""
        write_bytes(self.folder / path, data, replace)
        return {}

    def delete(self, path: Path) -> None:
        (self.folder / path).unlink()

    @contextmanager
    def locked(self, path: Path) -> Iterator[bool | None]:
        """Lock a folder against the other processes of this machine.

        True: it is locked. False: another process has locked it. None: unknown, this file system has no locks. The lock
        file is deleted afterwards.
        """
        folder = self.folder / path
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            try:
                lock.acquire(timeout=0)
                held: bool | None = True
            except Timeout:
                held = False
            except NotImplementedError:
                held = None
            except OSError as error:
                raise OSError(
                    f"{plain(folder / LOCK)} cannot be locked ({plain(error.strerror or error)}): delete that file where no "
                    "batch runs, or choose another folder."
                ) from error
            yield held
        finally:
            if lock.is_locked:
                with suppress(OSError):
                    (folder / LOCK).unlink()
                lock.release()
            with suppress(OSError):
                for parent in made:
                    parent.rmdir()


class ObjectStore:
    """A bucket: an object appears when its one upload has ended."""

    def __init__(self, root: str):
        self.root = root
        self.files, self.base = filesystem(root)

    def check(self, output: str) -> None:
        """Raises OSError for a bucket that is not there."""
        from pyarrow.fs import FileType

        with self._named():
            if self.base and self.files.get_file_info(self.base).type == FileType.NotFound:
                raise FileNotFoundError("there is none of that name")

    def sizes(self, output: str) -> Callable[[Path], int | None]:
        """As on a local disk, as it is now: one request for all files."""
        from pyarrow.fs import FileSelector

        everything = FileSelector(self._at(folder_of(output)), allow_not_found=True, recursive=True)
        with self._named():
            there = {info.path: info.size for info in self.files.get_file_info(everything) if info.is_file}
        return lambda path: there.get(self._at(path))

    def size(self, path: Path) -> int | None:
        info = self.files.get_file_info(self._at(path))
        return info.size if info.is_file else None

    def sums(self, path: Path, deep: bool) -> dict[str, str]:
        """The object's ETag, and, where it is ``deep``, the SHA-256 of what is in it."""
        with self.files.open_input_stream(self._at(path)) as file:
            found = self._tag(file)
            return found | ({"sha256": _sha256(iter(lambda: file.read(2**20), b""))} if deep else {})

    def read(self, path: Path) -> bytes:
        with self.files.open_input_stream(self._at(path)) as file:
            return file.read()

    def write(self, path: Path, data: bytes, replace: bool = False) -> dict[str, str]:
        with self._named():
            try:
                file = self.files.open_output_stream(self._at(path))
            except FileNotFoundError:
                # Buckets have no folders; what else pyarrow reaches may.
                self.files.create_dir(self._at(path.parent))
                file = self.files.open_output_stream(self._at(path))
            with file:
                file.write(data)
            return self.sums(path, deep=False)

    def delete(self, path: Path) -> None:
        self.files.delete_file(self._at(path))

    @contextmanager
    def locked(self, path: Path) -> Iterator[bool | None]:
        """A bucket has no locks."""
        yield None

    def _named(self) -> AbstractContextManager[None]:
        remedy = "make that bucket, or look at its name, region and keys"
        return explained(f"{plain(self.root)} cannot be used", remedy)

    @staticmethod
    def _tag(file) -> dict[str, str]:
        tag = (file.metadata() or {}).get(b"ETag")
        return {"etag": tag.decode("utf-8", "replace")} if tag else {}

    def _at(self, path: Path) -> str:
        return f"{self.base}/{path.as_posix()}"


Storage = LocalDisk | ObjectStore


def folder_of(output: str) -> Path:
    """The folder of all files that a naming template makes."""
    return Path(output.partition("{")[0] + "_").parent


def open_storage(root: str, folder: Path) -> Storage:
    return ObjectStore(root) if root else LocalDisk(folder)


def _sha256(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
