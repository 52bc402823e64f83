"""What became of each line of a sheet: a copy of it with the results, and lists that Wwise, Unreal and Reaper import."""

import argparse
import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any

from ..delivery.atomic import atomic_write
from ..quoting import PATH, plain
from .jobs import Clip, parse_object
from .manifest import Entry, Manifest
from .naming import check_folder
from .rows import JSON_LINES, TABLES, WORKBOOKS, openpyxl_for, pyarrow_for, read_cells, split_root
from .survey import plan

# Of a clip that was made, the values of its line of the manifest.
RESULTS = {
    "result_file": "file",
    "result_seed": "seed",
    "result_seconds": "seconds",
    "result_LUFS": "loudness",
    "result_peak": "peak",
}
VERDICT = "result_verdict"
Cells = dict[str, Any]
# A clip, or what is wrong with a scene, and the line of the manifest of a clip that was made.
Made = tuple[Clip | Entry, Entry | None]
# Seconds between clips of a track.
GAP = 1.0
# Letters of a cell of Excel.
LONGEST_CELL = 32767


def check_results(args: argparse.Namespace) -> None:
    """Raise ValueError or OSError where ``--sheet`` or ``--export`` names what cannot be written, before anything is made."""
    files = [path for _, path in args.export or ()]
    if args.sheet:
        check_sheet(args.sheet)
        files.append(args.sheet)
    for path in files:
        if os.path.lexists(path) and (not args.resume or path.resolve() == Path(args.scenes).resolve()):
            raise FileExistsError(f"{plain(path)} is already there: name another file; --resume writes it again.")
        check_folder(path.parent)


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
            write_sheet(args.sheet, lambda: result_rows(args.scenes, made()), args.resume)
        for kind, path in args.export or ():
            write_list(kind, path, made(), split_root(args.output)[0], args.resume)


def result_rows(scenes: str, made: Iterable[Made]) -> Iterator[Cells]:
    """The cells of each line of a file of scenes with the results of its clips: a row for each clip."""
    of_scenes = groupby(made, key=lambda each: each[0].scene if isinstance(each[0], Clip) else each[0]["scene"])
    for (_, row, cells), (_, found) in zip(read_cells(scenes), of_scenes, strict=True):
        if isinstance(row, str):
            with suppress(ValueError):
                cells = parse_object(row)
        cells = {name: value for name, value in cells.items() if name and name not in (*RESULTS, VERDICT)}
        for each, line in found:
            results = {column: line.get(key) if line else None for column, key in RESULTS.items()}
            yield {**cells, **results, VERDICT: _verdict(each, line)}


def _verdict(each: Clip | Entry, line: Entry | None) -> str:
    if not isinstance(each, Clip):
        return f"refused: {each['error']}"
    clipped = line.get("clipped") if line else 0
    return f"made, {clipped} samples clipped" if clipped else "made" if line else "not made"


def write_sheet(path: Path, rows: Callable[[], Iterator[Cells]], replace: bool) -> None:
    """Write rows as the table that the suffix names. ``rows`` is read twice: first for the columns.

    Raises ValueError for another suffix or without the package for it, and OSError.
    """
    suffix = check_sheet(path)
    columns = list(dict.fromkeys(column for row in rows() for column in row))

    def write(temporary: Path) -> None:
        if suffix in WORKBOOKS:
            _write_workbook(temporary, openpyxl_for(str(path)), columns, rows())
        elif suffix == ".parquet":
            _write_parquet(temporary, pyarrow_for(str(path), "write a .csv"), columns, list(rows()))
        else:
            with open(temporary, "x", encoding="utf-8", newline="") as file:
                if suffix in JSON_LINES:
                    file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows())
                    return
                table = csv.writer(file, delimiter="," if suffix == ".csv" else "\t")
                table.writerows([columns, *([_as_cell(row.get(column)) for column in columns] for row in rows())])

    atomic_write(path, write, replace)


def check_sheet(path: Path) -> str:
    """The suffix of a table that can be written. Raises ValueError for others."""
    suffix, known = path.suffix.lower(), (*sorted(TABLES | JSON_LINES | WORKBOOKS), ".parquet")
    if suffix not in known:
        raise ValueError(f"{plain(path)}: expected a table's name, which ends in {', '.join(known)}.")
    return suffix


def _as_cell(value: Any) -> Any:
    """Nothing, a number, a date or a text of one cell."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list, tuple)) else value


def _write_workbook(path: Path, openpyxl: Any, columns: list[str], rows: Iterable[Cells]) -> None:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("results")
    sheet.append(columns)
    for row in rows:
        cells = [openpyxl.cell.WriteOnlyCell(sheet, _for_excel(openpyxl, row.get(column))) for column in columns]
        for cell in cells:
            # A text that begins with = is no formula.
            cell.data_type = "s" if isinstance(cell.value, str) else cell.data_type
        sheet.append(cells)
    book.save(path)


def _for_excel(openpyxl: Any, value: Any) -> Any:
    cell = _as_cell(value)
    return openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", cell)[:LONGEST_CELL] if isinstance(cell, str) else cell


def _write_parquet(path: Path, pyarrow: Any, columns: list[str], rows: list[Cells]) -> None:
    """Columns of one type keep it; others are texts."""
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays.append(pyarrow.array(values))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            arrays.append(pyarrow.array([None if value is None else str(_as_cell(value)) for value in values]))
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=columns), path)


def write_list(kind: str, path: Path, made: Iterable[Made], root: str, replace: bool) -> None:
    """Write a list of clips as one of :data:`LISTS`. Files are named from the list's folder on; in a bucket, by its root."""
    placed = (
        (clip, line, f"{root}/{clip.file}" if root else os.path.relpath(clip.file, path.parent))
        for clip, line in made
        if isinstance(clip, Clip) and line
    )

    def write(temporary: Path) -> None:
        with open(temporary, "x", encoding="utf-8", newline="") as file:
            file.writelines(LISTS[kind](placed))

    atomic_write(path, write, replace)


Placed = Iterable[tuple[Clip, Entry, str]]


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
    "wwise": wwise_lines,
    "unreal": unreal_lines,
    "reaper": reaper_lines,
}


def _object_name(text: str) -> str:
    return re.sub(r"[^\w -]", "_", text)


def _quoted(text: str) -> str:
    """A text of Reaper, between a kind of quotes that it does not hold."""
    text = plain(text, PATH)
    quote = next((sign for sign in "\"'`" if sign not in text), "`")
    return quote + (text.replace("`", "'") if quote == "`" else text) + quote
