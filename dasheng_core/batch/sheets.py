"""What became of each line of a sheet: a copy of it with the results, and lists that Wwise, Unreal and Reaper import."""

import argparse
import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any

from ..delivery.atomic import atomic_write
from ..inputs import as_choice
from ..quoting import PATH, plain
from .jobs import Clip, parse_object
from .manifest import Entry, Manifest
from .naming import check_folder
from .rows import openpyxl_for, pyarrow_for, read_cells, split_root
from .survey import plan

# Columns of the copy, and what they are called in a line of the manifest.
RESULTS = {f"result_{key}": key for key in ("file", "seed", "seconds")} | {
    "result_LUFS": "loudness",
    "result_peak": "peak",
}
VERDICT = "result_verdict"
# Seconds between clips of a track.
GAP = 1.0
# Letters of a cell of Excel.
LONGEST_CELL = 32767

# A clip, or what is wrong with a scene, and the line of the manifest of a clip that was made.
Made = tuple[Clip | Entry, Entry | None]


def check_results(args: argparse.Namespace) -> None:
    """Raise ValueError or OSError where ``--sheet`` or ``--export`` names what cannot be written, before anything is made."""
    sheets = [args.sheet] if args.sheet else []
    for path in (*sheets, *(args.export or ())):
        suffix = as_choice(path.suffix.lower(), f"The end of {plain(path)}", SHEETS if path in sheets else LISTS)
        if os.path.lexists(path) and (not args.resume or path.resolve() == Path(args.scenes).resolve()):
            raise FileExistsError(f"{plain(path)} is already there: name another file; --resume writes it again.")
        check_folder(path.parent)
        if suffix == ".xlsx":
            openpyxl_for(str(path))
        elif suffix == ".parquet":
            pyarrow_for(str(path), "name a .csv")


def write_results(args: argparse.Namespace, seed: int, manifest: Path) -> None:
    """Write the copy of the sheet and the lists that the arguments name, by the manifest of the run."""
    if not args.sheet and not args.export:
        return
    with Manifest(manifest, True).lines() as line_of:

        def made() -> Iterator[Made]:
            for each in plan(args, seed, args.recipe):
                line = line_of(each.file) if isinstance(each, Clip) else None
                yield each, line if isinstance(each, Clip) and line and line.get("asked") == each.asked else None

        if args.sheet:
            own = dict.fromkeys(column for cells in own_cells(args.scenes) for column in cells)
            columns = [*own, *RESULTS, VERDICT]
            rows = ([_as_cell(row.get(column)) for column in columns] for row in result_rows(args.scenes, made()))
            write = SHEETS[args.sheet.suffix.lower()]
            atomic_write(args.sheet, lambda path: write(path, columns, rows), args.resume)
        for path in args.export or ():
            lines = LISTS[path.suffix.lower()](_placed(made(), path, split_root(args.output)[0]))
            atomic_write(path, lambda part, lines=lines: _write_lines(part, lines), args.resume)  # type: ignore[misc]


def own_cells(scenes: str) -> Iterator[dict[str, Any]]:
    """The cells of each line of a file of scenes, but for those of a copy with results."""
    for _, row, cells in read_cells(scenes):
        if isinstance(row, str):
            with suppress(ValueError):
                cells = parse_object(row)
        yield {name: value for name, value in cells.items() if name and name not in (*RESULTS, VERDICT)}


def result_rows(scenes: str, made: Iterable[Made]) -> Iterator[dict[str, Any]]:
    """The cells of each line with the results of its clips: a row for each clip."""
    of_scenes = groupby(made, key=lambda each: each[0].scene if isinstance(each[0], Clip) else each[0]["scene"])
    for cells, (_, found) in zip(own_cells(scenes), of_scenes, strict=True):
        for each, line in found:
            clipped = (line or {}).get("clipped")
            verdict = "not made" if line is None else f"made, {clipped} samples clipped" if clipped else "made"
            # What a person picked on the page.
            verdict += f", {line['verdict']}" if line and line.get("verdict") else ""
            results = {column: (line or {}).get(key) for column, key in RESULTS.items()}
            yield {**cells, **results, VERDICT: verdict if isinstance(each, Clip) else f"refused: {each['error']}"}


def _as_cell(value: Any) -> Any:
    """Nothing, a number, a date, or a text."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list, tuple)) else value


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with open(path, "x", encoding="utf-8", newline="") as file:
        file.writelines(lines)


def _write_csv(path: Path, columns: list[str], rows: Iterable[list[Any]], delimiter: str = ",") -> None:
    with open(path, "x", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def _write_jsonl(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    named = (dict(zip(columns, row, strict=True)) for row in rows)
    _write_lines(path, (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in named))


def _write_xlsx(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    openpyxl = openpyxl_for(str(path))
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("results")
    for row in (columns, *rows):
        unfit = openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE
        texts = [unfit.sub("", cell)[:LONGEST_CELL] if isinstance(cell, str) else cell for cell in row]
        cells = [openpyxl.cell.WriteOnlyCell(sheet, text) for text in texts]
        for cell in cells:
            # A text that begins with = is no formula.
            cell.data_type = "s" if isinstance(cell.value, str) else cell.data_type
        sheet.append(cells)
    book.save(path)


def _write_parquet(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    """Columns of numbers are numbers, all others texts."""
    pyarrow, arrays = pyarrow_for(str(path), "name a .csv"), []
    for values in zip(*rows, strict=True):
        numbers = {*map(type, values)} <= {int, float, type(None)}
        arrays.append(pyarrow.array([value if numbers or value is None else str(value) for value in values]))
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=columns), path)


SHEETS: dict[str, Callable[..., None]] = {
    ".csv": _write_csv,
    ".tsv": partial(_write_csv, delimiter="\t"),
    ".jsonl": _write_jsonl,
    ".xlsx": _write_xlsx,
    ".parquet": _write_parquet,
}


def _placed(made: Iterable[Made], path: Path, root: str) -> "Placed":
    """Clips that were made, their lines, and their files from a list's folder on; in a bucket, from its root."""
    for clip, line in made:
        if isinstance(clip, Clip) and line:
            yield clip, line, f"{root}/{clip.file}" if root else os.path.relpath(clip.file, path.parent)


Placed = Iterator[tuple[Clip, Entry, str]]


def wwise_lines(made: Placed) -> Iterator[str]:
    """Wwise's import of tab delimited files; takes of one scene are a random container."""
    yield "Audio File\tObject Path\tObject Type\tNotes\n"
    for clip, _, place in made:
        within = f"<Random Container>{_object_name(clip.name)}\\" if clip.takes > 1 else ""
        notes = plain(clip.tags.description)
        sound = f"{within}<Sound SFX>{_object_name(clip.path.stem)}"
        yield "\t".join((str(PureWindowsPath(place)), sound, "Sound SFX", notes)) + "\n"


def unreal_lines(made: Placed) -> Iterator[str]:
    """Unreal's import of a DataTable: a row's name first, then the properties of its structure."""
    yield "---,Sound,Seconds,Loudness,Category,Description\n"
    names: dict[str, int] = {}
    for clip, line, _ in made:
        asset = re.sub(r"[^A-Za-z0-9_]", "_", clip.path.stem)
        names[asset] = names.get(asset, 0) + 1
        row = asset if names[asset] == 1 else f"{asset}_{names[asset]}"
        sound = f"/Script/Engine.SoundWave'/Game/Audio/{asset}.{asset}'"
        texts = (
            sound,
            line.get("seconds", 0),
            line.get("loudness") or 0,
            clip.category,
            clip.tags.description,
        )
        yield ",".join([row, *('"' + plain(text).replace('"', '""') + '"' for text in texts)]) + "\n"


def reaper_lines(made: Placed) -> Iterator[str]:
    """A project of Reaper: a track for each category, its clips at their second, or one after the other."""
    yield '<REAPER_PROJECT 0.1 "7.0" 0\n'
    by_category: dict[str, list[tuple[Clip, Entry, str]]] = {}
    for each in made:
        by_category.setdefault(each[0].category or "sounds", []).append(each)
    for category, clips in by_category.items():
        yield f"  <TRACK\n    NAME {_quoted(category)}\n"
        end = 0.0
        for clip, line, place in clips:
            seconds = float(line.get("seconds") or 0)
            start = clip.tags.start or end
            end = start + seconds + GAP
            source = "FLAC" if clip.path.suffix.lower() == ".flac" else "WAVE"
            yield f"    <ITEM\n      POSITION {start:.6f}\n      LENGTH {seconds:.6f}\n      LOOP 0\n"
            yield f"      NAME {_quoted(clip.path.stem)}\n      <SOURCE {source}\n        FILE {_quoted(place)}\n      >\n    >\n"
        yield "  >\n"
    yield ">\n"


LISTS: dict[str, Callable[[Placed], Iterator[str]]] = {
    ".tsv": wwise_lines,
    ".csv": unreal_lines,
    ".rpp": reaper_lines,
}


def _object_name(text: str) -> str:
    return re.sub(r"[^\w -]", "_", text)


def _quoted(text: str) -> str:
    """A text of Reaper, between a kind of quotes that it does not hold."""
    text = plain(text, PATH)
    quote = next((sign for sign in "\"'`" if sign not in text), "`")
    return quote + (text.replace("`", "'") if quote == "`" else text) + quote
