"""What was picked on the page of a batch: read back into its manifest, a table, and folders of copies."""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..opening import explained, read_file
from ..quoting import PATH, plain
from .manifest import Entry, Manifest
from .storage import Storage

log = logging.getLogger(__name__)

VERDICTS = ("keep", "reject", "star")
# Sounds of these verdicts are copied.
COPIED = ("keep", "star")
MOST_PICKS = 2**26
FOLDER = "picked"
CELLS = ("file", "verdict", "scene", "seed", "seconds", "loudness", "peak", "clipped", "prompt")


def take_picks(path: Path, manifest: Manifest, folder: Path, storage: Storage) -> None:
    """Note each verdict in the manifest, copy what is kept into ``folder/picked``, and write a table of all there.

    Nothing is deleted but copies whose verdict has changed, while the same bytes are in their original.

    Raises:
        ValueError: not a file of picks, or one of other sounds than there are.
        FileExistsError: another file has the name of a copy.
        OSError: a file cannot be read or written.
    """
    with manifest.lines() as line_of:
        picked = [(_line_of(pick, line_of), pick["verdict"]) for pick in read_picks(path)]
    for line, verdict in picked:
        for file in (line["file"], *line.get("stems", {}).values()):
            _copy(file, verdict, folder, storage)
    with manifest.opened({}):
        for line, verdict in picked:
            if line.get("verdict") != verdict:
                manifest.add({**line, "verdict": verdict})
    storage.write(folder / FOLDER / "picks.csv", _table(picked).encode("utf-8-sig"), replace=True)
    counts = Counter(verdict for _, verdict in picked if verdict)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    log.info("%s: copies and a table are in %s.", said, plain(folder / FOLDER))


def read_picks(path: Path) -> list[dict[str, Any]]:
    """``file``, ``sha256`` and ``verdict`` of each sound of a file that the page saved; a verdict can be None.

    Raises ValueError for any other file; or OSError.
    """
    with explained(f"{plain(path)} cannot be read", "name the file that the page saved"):
        text = read_file(path, MOST_PICKS)
    try:
        found = json.loads(text)
        picks: list[dict[str, Any]] = found["sounds"]
        whole = found["picks"] == 1 and all(
            isinstance(pick["file"], str) and isinstance(pick["sha256"], str) and pick["verdict"] in (None, *VERDICTS)
            for pick in picks
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{plain(path)} is no file of picks, expected one that the page of a batch saved.")
    return picks


def _line_of(pick: dict[str, Any], line_of: Callable[[str], Entry | None]) -> Entry:
    line = line_of(pick["file"])
    if line is None or line.get("sha256") != pick["sha256"]:
        what = "is in no line of the manifest" if line is None else "was made again since"
        raise ValueError(
            f"The picked sound {plain(pick['file'], PATH)} {what}: pick on a new page, by --resume --page."
        )
    return line


def _copy(file: str, verdict: str | None, folder: Path, storage: Storage) -> None:
    """Make the copy of a sound that its verdict asks for, and delete that of another verdict."""
    sound = storage.read(Path(file))
    for place in COPIED:
        copy = folder / FOLDER / place / Path(file).relative_to(folder)
        same = storage.size(copy) == len(sound) and storage.read(copy) == sound
        if place != verdict and same:
            storage.delete(copy)
        elif place == verdict and not same:
            if storage.size(copy) is not None:
                raise FileExistsError(f"{plain(copy)} is there and is another sound: move it away.")
            storage.write(copy, sound)


def _table(picked: list[tuple[Entry, str | None]]) -> str:
    """The picked sounds as CSV."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(CELLS)
    for line, verdict in picked:
        row = {**line, "verdict": verdict, "prompt": json.dumps(line["prompt"], ensure_ascii=False)}
        # A spreadsheet takes such a beginning for a formula.
        row["file"] = f"./{line['file']}" if line["file"][0] in "=+-@" else line["file"]
        table.writerow([row.get(cell) for cell in CELLS])
    return text.getvalue()
