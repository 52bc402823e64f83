"""Where the sounds of a batch go: the local disk, or what pyarrow reaches by a URI such as ``s3://bucket``."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..audio_file import write_bytes
from .jobs import check_folder
from .rows import filesystem


class Storage(Protocol):
    """Files under a root; each is there whole or not at all."""

    def check(self, template: str) -> Callable[[Path], bool]:
        """Whether a file is there, of those that a naming template makes; as it is now where that is cheap to know."""

    def exists(self, path: Path) -> bool: ...
    def read(self, path: Path) -> bytes: ...
    def write(self, path: Path, data: bytes) -> None:
        """Raises FileExistsError, on a local disk alone, and OSError."""


@dataclass(frozen=True)
class LocalDisk:
    """Paths are relative to a folder, since a worker may run in another."""

    folder: Path

    def check(self, template: str) -> Callable[[Path], bool]:
        check_folder(self.folder / Path(template.partition("{")[0] + "_").parent)
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

    def check(self, template: str) -> Callable[[Path], bool]:
        from pyarrow.fs import FileSelector

        folder = self._at(Path(template.partition("{")[0] + "_").parent)
        found = self.files.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True))
        there = {info.path for info in found}
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


def open_storage(root: str, folder: Path) -> Storage:
    return ObjectStore(root) if root else LocalDisk(folder)
