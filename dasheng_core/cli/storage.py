"""Where the sounds of a batch go: the local disk, or what pyarrow reaches by a URI such as ``s3://bucket``.

Each file is there whole or not at all. Writing raises FileExistsError on a local disk alone, and OSError.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..audio_file import write_bytes
from .jobs import check_folder
from .rows import filesystem


@dataclass(frozen=True)
class LocalDisk:
    """Paths are relative to a folder, since a worker may run in another."""

    folder: Path

    def check(self, output: str) -> Callable[[Path], bool]:
        """Whether a file is there, of those that a naming template makes."""
        check_folder(self.folder / folder_of(output))
        return self.exists

    def exists(self, path: Path) -> bool:
        return os.path.lexists(self.folder / path)

    def read(self, path: Path) -> bytes:
        return (self.folder / path).read_bytes()

    def write(self, path: Path, data: bytes) -> None:
        write_bytes(self.folder / path, data)


class ObjectStore:
    """A bucket: an object appears when its one upload has ended."""

    def __init__(self, root: str):
        self.files, self.base = filesystem(root)

    def check(self, output: str) -> Callable[[Path], bool]:
        """As on a local disk, as it is now: one look for all files."""
        from pyarrow.fs import FileSelector

        everything = FileSelector(self._at(folder_of(output)), allow_not_found=True, recursive=True)
        there = {info.path for info in self.files.get_file_info(everything)}
        return lambda path: self._at(path) in there

    def exists(self, path: Path) -> bool:
        return bool(self.files.get_file_info(self._at(path)).is_file)

    def read(self, path: Path) -> bytes:
        with self.files.open_input_stream(self._at(path)) as file:
            return file.read()

    def write(self, path: Path, data: bytes) -> None:
        try:
            file = self.files.open_output_stream(self._at(path))
        except FileNotFoundError:
            # Buckets have no folders; what else pyarrow reaches may.
            self.files.create_dir(self._at(path.parent))
            file = self.files.open_output_stream(self._at(path))
        with file:
            file.write(data)

    def _at(self, path: Path) -> str:
        return f"{self.base}/{path.as_posix()}"


def folder_of(output: str) -> Path:
    """The folder of all files that a naming template makes."""
    return Path(output.partition("{")[0] + "_").parent


def open_storage(root: str, folder: Path) -> LocalDisk | ObjectStore:
    return ObjectStore(root) if root else LocalDisk(folder)
