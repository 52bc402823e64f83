"""The manifest of a batch: a JSONL file, its settings first, then a line for each clip that was made or could not be."""

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..opening import explained, open_file
from ..options import DEFAULT_OPTIONS
from ..quoting import plain
from ..sampling import random_seed
from .naming import plain_name

Entry = dict[str, Any]
# The form of a manifest that this version writes; it reads the older ones too, the first of which has no number.
FORM = 2
# A line holds a prompt and some numbers.
LINE_BYTES = 2**24


class Manifest:
    """The manifest of a run: that of the run it resumes is read, and entries are appended.

    In memory a line is two numbers, a hash of the file's name and where the line begins.

    Raises:
        FileExistsError: there is a manifest, and nothing is to be resumed.
        ValueError: it is another kind of file, or of a newer version.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, resume: bool):
        self.path, self.resume, self.found = path, resume, os.path.lexists(path)
        self._names, self._places = array("q"), array("q")
        self._refused: set[int] = set()
        self._whole = self._size = 0
        self._head: Entry = {}
        if not self.found:
            return
        if not resume:
            raise FileExistsError(
                f"{plain(path)} is there: go on with that run by --resume, or name another by --manifest."
            )
        with explained(f"{plain(path)} cannot be read", "name another by --manifest"):
            file = open_file(path)
        with file:
            number = 0
            while line := file.readline(LINE_BYTES):
                number += 1
                self._size += len(line)
                # A line without an end was being written when a run was killed.
                if line.endswith(b"\n"):
                    self._read(number, line)
                    self._whole += len(line)
                elif len(line) == LINE_BYTES:
                    raise self._stranger(number)

    def agree(
        self, settings: Mapping[str, Any], model: Mapping[str, str] | None, seed: int | None
    ) -> tuple[int, Mapping[str, str] | None]:
        """Seed and model of the run to resume, or a new seed. Raises ValueError if that run had other settings."""
        if not self._head:
            if seed is None and self.resume:
                there = "says nothing of a run" if self.found else "is not there"
                raise ValueError(
                    f"There is no run to resume from, since {plain(self.path)} {there}: name its manifest by --manifest, or give "
                    "the --seed of that run."
                )
            return random_seed() if seed is None else seed, model
        # None: its files are not on this machine, or an older version wrote that manifest, without it.
        model_before = self._head["model"] or model
        model = model or model_before
        now = _named({**settings, "seed": self._head["seed"] if seed is None else seed}, model)
        # A setting that a later version added had its default before.
        before = _named({**DEFAULT_OPTIONS, **self._head["settings"], "seed": self._head["seed"]}, model_before)
        for name in now.keys() | before.keys():
            if now.get(name) != before.get(name):
                raise ValueError(
                    f"{plain(self.path)} is of a run whose {plain(name)} was {plain(before.get(name))}, not "
                    f"{plain(now.get(name))}: resume with that, or start another run with another --manifest and -o."
                )
        return int(now["seed"]), model

    @contextmanager
    def lines(self) -> Iterator[Callable[[str], Entry | None]]:
        """While it lasts, the last line of a file, by its name; None: there is none."""
        order = np.argsort(np.frombuffer(self._names, "q"), kind="stable")
        names, places = np.frombuffer(self._names, "q")[order], np.frombuffer(self._places, "q")[order]
        with open(self.path if len(names) else os.devnull, "rb") as file:

            def last(name: str) -> Entry | None:
                key = plain_name(name)
                place = int(np.searchsorted(names, hash(key), "right")) - 1
                # Two names can have one hash.
                while place >= 0 and names[place] == hash(key):
                    file.seek(places[place])
                    entry: Entry = json.loads(file.readline())
                    if plain_name(entry["file"]) == key:
                        return entry
                    place -= 1
                return None

            yield last

    @contextmanager
    def opened(self, head: Entry) -> Iterator[None]:
        """While it lasts, entries can be added. Of a run that failed before the first, no manifest is kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: of a killed run, every entry is in the file.
        with open(self.path, "r+b" if self.found else "xb", buffering=0) as self._file:
            self._check_end(self._size)
            self._file.truncate(self._whole)
            self._file.seek(self._whole)
            start = inf
            try:
                if not self._head:
                    self.add({"manifest": FORM, "version": __version__, **head})
                start = self._file.tell()
                yield
            except Exception:
                # An interrupted run keeps it: workers may have written files that no entry names yet.
                if not self.found and self._file.tell() <= start:
                    self._file.close()
                    self.path.unlink()
                raise

    def add(self, entry: Entry) -> None:
        """Append a line. A scene that the resumed run refused is not written again."""
        if "prompt" not in entry and entry.get("scene") in self._refused:
            return
        self._check_end(self._file.tell())
        with explained(f"{plain(self.path)} could not be written", "make room there; --resume goes on"):
            line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
            while line:
                line = line[self._file.write(line) :]

    def _check_end(self, expected: int) -> None:
        """Detect another run with this manifest and another folder; a lock detects one in the same folder."""
        if os.fstat(self._file.fileno()).st_size != expected:
            raise OSError(
                f"{plain(self.path)} was changed by another program meanwhile: end the other run, or name another --manifest; "
                "--resume goes on."
            )

    def _read(self, number: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            if number == 1:
                self._head = _checked(entry)
            elif "file" in entry:
                self._names.append(hash(plain_name(entry["file"])))
                self._places.append(self._whole)
            elif "prompt" not in entry:
                self._refused.add(entry["scene"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._stranger(number) from error
        if self._head["manifest"] > FORM:
            raise ValueError(
                f"{plain(self.path)} is of form {self._head['manifest']}, this version reads up to {FORM}: resume with the "
                f"version that wrote it ({plain(self._head['version'])})."
            )

    def _stranger(self, number: int) -> ValueError:
        return ValueError(
            f"{plain(self.path)}:{number} is not of a manifest of dasheng batch: name another file, or delete that line if "
            "power failed while it was written."
        )


def _checked(head: Entry) -> Entry:
    """A manifest's first line with all its parts. Raises ValueError and others for one that is none."""
    form, model = head.get("manifest", 1), head.get("model")
    numbers = isinstance(form, int) and isinstance(head["seed"], int) and not isinstance(head["seed"], bool)
    parts = isinstance(head["settings"], dict) and (model is None or isinstance(model, dict))
    if not (numbers and parts and head["seed"] >= 0):
        raise ValueError("not the first line of a manifest")
    return {
        "manifest": form,
        "version": head.get("version"),
        **{key: head[key] for key in ("settings", "seed")},
        "model": model,
    }


def _named(settings: Mapping[str, Any], model: Mapping[str, str] | None) -> Entry:
    """Settings by the names that a message has, as JSON has them."""
    return json.loads(
        json.dumps({**settings, **{f"model of --{part}": digest for part, digest in (model or {}).items()}})
    )
