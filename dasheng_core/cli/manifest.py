"""The manifest of a batch: a JSONL file, its settings first, then a line for each clip that was made or could not be."""

import json
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from ..quoting import plain
from ..sampling import random_seed
from .jobs import plain_name


class Manifest:
    """``made``: hashes of the files of an earlier run of the same settings, where there is one to go on with.

    Raises:
        FileExistsError: there is a manifest, and nothing is to be resumed.
        ValueError: it is another kind of file.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, resume: bool):
        self.path, self.resume, self.found = path, resume, path.exists()
        self.made = array("q")
        self._refused: set[int] = set()
        self._whole = 0
        self._head: dict[str, Any] = {}
        if not self.found:
            return
        if not resume:
            raise FileExistsError(
                f"{plain(path)} is there: go on with that run by --resume, or name another by --manifest."
            )
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                # A line without an end was being written when a run was killed.
                if line.endswith(b"\n"):
                    self._read(number, line)
                    self._whole += len(line)

    def agree(self, settings: dict[str, Any], seed: int | None) -> int:
        """The seed of the run to resume, or a new one. Raises ValueError if that run had other settings."""
        if self._head:
            settings = json.loads(json.dumps(settings)) | {"seed": self._head["seed"] if seed is None else seed}
            before = self._head["settings"] | {"seed": self._head["seed"]}
            for name in settings.keys() | before.keys():
                if settings.get(name) != before.get(name):
                    raise ValueError(
                        f"{plain(self.path)} is of a run whose {plain(name)} was {plain(before.get(name))}, not {plain(settings.get(name))}: resume "
                        "with that, or start another run with another --manifest and -o."
                    )
            return int(settings["seed"])
        if seed is None and self.resume and not self.found:
            raise ValueError(
                f"There is no {plain(self.path)} to resume from: name it by --manifest, or give the --seed of that run."
            )
        return random_seed() if seed is None else seed

    @contextmanager
    def opened(self, head: dict[str, Any]) -> Iterator[None]:
        """While it lasts, entries can be added. Of a run that failed before the first, no manifest is kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, a killed run has written what it said.
        with open(self.path, "r+b" if self.found else "xb", buffering=0) as self._file:
            self._file.truncate(self._whole)
            self._file.seek(self._whole)
            start = inf
            try:
                if not self._head:
                    self.add(head)
                start = self._file.tell()
                yield
            except Exception:
                # An interrupted run keeps it: workers may have written files that nobody has heard of yet.
                if not self.found and self._file.tell() <= start:
                    self._file.close()
                    self.path.unlink()
                raise

    def add(self, entry: dict[str, Any]) -> None:
        """Append a line. A scene that was refused in the run resumed is not written down again."""
        if "prompt" not in entry and entry.get("scene") in self._refused:
            return
        try:
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(
                f"{plain(self.path)} could not be written ({error.strerror}): make room there; --resume goes on."
            ) from error

    def _read(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if number == 1:
                self._head = {"settings": entry["settings"], "seed": entry["seed"]}
            elif "file" in entry:
                self.made.append(hash(plain_name(entry["file"])))
            elif "prompt" not in entry:
                self._refused.add(entry["scene"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{plain(self.path)}:{number} is not of a manifest of dasheng batch: name another file, or delete that line if "
                "power failed while it was written."
            ) from error
