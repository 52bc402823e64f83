"""Tables of scenes as other programs write them: a header that names the columns, then a row for each scene.

Spreadsheets and data tools differ in delimiter, decimal sign, index columns, and in what they write for an empty cell.
"""

import csv
import difflib
import json
import logging
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import chain, zip_longest
from typing import IO, Any

from ..delivery.formats import FORMATS
from ..prompt import ASPECTS
from ..quoting import PATH, plain

log = logging.getLogger(__name__)

# The keys of a scene, in a JSONL file and as columns of a table, each with the types of its value and their name.
KEYS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys((*ASPECTS, "prompt", "name", "content"), (str, "a text")),
    "audio_id": ((str, int), "a text"),
    "seed": (int, "a whole number"),
    "seconds": ((int, float), "a number"),
    "takes": (int, "a whole number"),
    "variations": (int, "a whole number"),
    "negative": (str, "a tagged prompt"),
    "timeline": (list, "a list of pairs of a second and a prompt"),
    "script": (str, "lines of a time, an aspect and a text"),
    "fade": ((int, float), "a number"),
    "category": (str, "a text"),
    "format": (str, f"one of {', '.join(FORMATS)}"),
    **dict.fromkeys(
        ("description", "originator", "catid", "fxname", "creatorid", "sourceid", "source_type"), (str, "a text")
    ),
    "start": ((int, float), "a second"),
}
# What people call these columns. The first name that a table has counts.
SYNONYMS = {
    "caption": ("text", "sound", "sound_description", "scene"),
    "speech": ("voice", "speaker", "delivery"),
    "asr": ("transcript", "words", "line", "dialogue", "dialog", "spoken_words"),
    "sfx": ("effects", "sound_effects", "fx"),
    "music": ("score",),
    "env": ("ambience", "ambient", "atmosphere", "background", "environment"),
    "name": ("filename", "file_name", "asset", "asset_name", "cue", "cue_name", "id"),
    "seconds": ("duration", "length", "length_s", "duration_s", "seconds_long"),
    "takes": ("number_of_takes", "count", "quantity", "qty"),
    "negative": ("negative_prompt", "avoid"),
    "category": ("type", "sound_category"),
    "format": ("file_format",),
    "originator": ("artist", "author"),
    "catid": ("cat_id", "ucs", "ucs_id"),
    "fxname": ("fx_name", "title"),
    "creatorid": ("creator_id", "creator", "designer"),
    "sourceid": ("source_id", "library", "project", "show"),
    "source_type": ("digital_source_type", "digitalsourcetype"),
    "start": ("start_s", "position"),
}
# A column that is not read, and comes back in the results: an index, and what no scene has.
UNREAD = "-"
# A scene needs one of them.
SOUNDING = ("caption", "prompt", "content", "timeline", "script")
WHOLE = ("seed", "takes", "variations")
NUMBERS = (*WHOLE, "seconds", "fade", "start")
# How alike a name must be to one of ours to be taken for a typing error.
ALIKE = 0.85
# A float holds no larger whole number exactly.
EXACT = 2**53
# A workbook is a ZIP archive: bytes of what is in it, and the rows and columns that are read.
LARGEST_BOOK, MOST_ROWS, MOST_COLUMNS = 2**28, 2**20, 500
# What a damaged workbook raises; of XML it is a SyntaxError.
BROKEN_BOOK = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    IndexError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    SyntaxError,
)
# Rows of a Parquet file that are held at once: a long text that stands in each takes a few bytes of the file.
TOGETHER = 32
EMPTY_NUMBERS = {"nan", "na", "n/a", "<na>", "null", "none"}
# What a spreadsheet shows for a formula that failed.
FORMULA_ERROR = re.compile(r"#(NAME\?|REF!|VALUE!|DIV/0!|N/A|NUM!|NULL!|SPILL!|CALC!|ERROR!)|Err:\d+")
DELIMITERS = ",;\t"
# The line in which Excel names the delimiter.
HINT = re.compile(r"\s*sep=(.)\s*")
# How pandas names the column of an index that has no name, as our keys.
INDEX = re.compile(r"unnamed:_\d+(_level_\d+)?|_index_level_\d+_")

# A row by our keys, or what is wrong with it.
Row = dict[str, Any] | ValueError
# Its number, itself, and its cells as they are, by the names of their columns.
Line = tuple[int, Row, dict[str, Any]]


def csv_rows(name: str, lines: Iterable[str]) -> Iterator[Line]:
    """Each row of a delimited text by the number of its last line; rows of empty cells are left out.

    Raises ValueError where there is no header, one that names what no scene has or one thing twice, or a quote that does not close.
    """
    lines = iter(lines)
    passed, first = _first_line(lines)
    if hint := HINT.fullmatch(first):
        passed, delimiter = passed + 1, hint[1]
    else:
        delimiter, lines = find_delimiter(first), chain([first], lines)
    table = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    columns: list[str] = []
    while True:
        start = passed + table.line_num + 1
        try:
            cells = next(table, None)
        except csv.Error as error:
            raise ValueError(
                f"{plain(name, PATH)}:{start}: the row that starts here cannot be read ({error}): close each quote, and write one inside of a "
                "quoted text twice."
            ) from error
        if cells is None:
            return
        number = passed + table.line_num
        if not any(map(str.strip, cells)):
            continue
        if not header:
            header, columns = cells, read_header(name, cells)
        # Concatenated tables repeat it.
        elif cells != header:
            row = _row_under(columns, f"{plain(name, PATH)}:{number}", cells, delimiter)
            yield number, row, dict(zip_longest(header, cells[: len(header)], fillvalue=""))


def find_delimiter(line: str) -> str:
    """The delimiter under which most cells of a header are names of columns."""
    return max(DELIMITERS, key=lambda delimiter: len({*as_keys(_cells(line, delimiter))} & {*KEYS}))


def is_header(line: str) -> bool:
    """Whether a line names the columns of a table of scenes. No tagged prompt does."""
    cells = [] if line.lstrip().startswith("<|") else _cells(line, find_delimiter(line))
    return bool({*as_keys(cells)} & {*SOUNDING})


def _cells(line: str, delimiter: str) -> list[str]:
    with suppress(csv.Error):
        return next(csv.reader([line], delimiter=delimiter), [])
    return []


def parquet_rows(name: str, pyarrow: Any, file: IO[bytes]) -> Iterator[Line]:
    """Each row of a Parquet file, from 1.

    Raises ValueError for what is no Parquet file, or a column that no scene has, or of another type.
    """
    try:
        table = pyarrow.parquet.ParquetFile(file)
        schema = table.schema_arrow
        columns = read_header(name, schema.names)
        for column, field in zip(columns, schema, strict=True):
            if column in KEYS and not _fits(pyarrow.types, column, field.type):
                raise ValueError(
                    f"{plain(name, PATH)}: the column {plain(field.name)} is {plain(field.type)}, expected {KEYS[column][1]}: convert it."
                )
        number = 0
        for batch in table.iter_batches(batch_size=TOGETHER):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                if row := row_of(dict(zip(columns, values, strict=True))):
                    yield number, row, dict(zip(schema.names, values, strict=True))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{plain(name, PATH)} is no Parquet file ({plain(error)}): write it again, or a .jsonl."
        ) from error


def read_header(name: str, cells: Sequence[str]) -> list[str]:
    """Our key of each column; UNREAD for an index and for what no scene has, and "" for another without a name.

    A name that is nearly one of ours is refused here, once, and not in each row.
    """
    columns = as_keys(cells)
    expected = ", ".join(KEYS)
    if not set(columns) & set(KEYS):
        raise ValueError(
            f"{plain(name, PATH)} begins with {plain(', '.join(cells))}, expected a first row that names the columns: {expected}."
        )
    counts = Counter(columns)
    leading = next(place for place, column in enumerate(columns) if column)
    unread = []
    for place, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        if place < leading or INDEX.fullmatch(column):
            columns[place] = UNREAD
            log.warning(
                "%s: column %d is taken for an index, since it has no name, and left out.", plain(name, PATH), place + 1
            )
        elif column and counts[column] > 1:
            raise ValueError(f"{plain(name, PATH)} has the column {plain(column)} twice, expected it once: remove one.")
        elif column not in (*KEYS, ""):
            check_near(f"{plain(name, PATH)} has the column", column, cell)
            columns[place] = UNREAD
            unread.append(plain(cell, 40))
    if not set(SOUNDING) & set(columns):
        raise ValueError(f"{plain(name, PATH)} has no column caption, and no prompt, expected one of them: add it.")
    if unread:
        log.warning("%s: not read, and kept for --sheet: %s.", plain(name, PATH), plain(", ".join(unread)))
    return columns


def check_near(where: str, key: str, cell: str) -> None:
    """Raise ValueError for a key that is none of ours and looks like a typing error of one."""
    if near := difflib.get_close_matches(key[:40], KEYS, 1, ALIKE):
        expected = ", ".join(KEYS)
        raise ValueError(
            f"{where} {plain(cell)!r}, expected {expected}: write {near[0]} if that is meant, or another name."
        )


def as_keys(cells: Iterable[str]) -> list[str]:
    """The names of columns, or of a line's values, as our keys: "Audio ID " is audio_id, and Duration is seconds.

    A synonym counts where our own name is not there; so does "Description", for the caption of a scene without one.
    """
    keys = [re.sub(r"[\s_-]+", "_", cell.strip().strip("\ufeff").strip()).casefold() for cell in cells]
    there = set(keys)
    for key, names in SYNONYMS.items():
        found = [name for name in names if name in there]
        if found and key not in there:
            keys[keys.index(found[0])] = key
    if "description" in there and not set(keys) & set(SOUNDING):
        keys[keys.index("description")] = "caption"
    return keys


def xlsx_rows(name: str, openpyxl: Any, file: IO[bytes]) -> Iterator[Line]:
    """Each row of the first sheet of an Excel workbook by its number; rows of empty cells are left out.

    Formulas are the values that the spreadsheet program saved. Raises ValueError as :func:`csv_rows` does.
    """
    header: list[str] = []
    columns: list[str] = []
    for number, cells in _sheet_rows(name, openpyxl, file):
        if not header:
            header = ["" if cell is None else str(cell) for cell in cells]
            columns = read_header(name, header)
        else:
            # Cells beyond the header stand in columns without a name.
            named = [*columns, *[""] * (len(cells) - len(columns))]
            row = _row_under(named, f"{plain(name, PATH)}:{number}", cells)
            yield number, row, dict(zip_longest(header, cells[: len(header)]))


def _sheet_rows(name: str, openpyxl: Any, file: IO[bytes]) -> Iterator[tuple[int, list[Any]]]:
    """The rows of the first sheet that are not empty, without the empty cells at their ends."""
    try:
        size = sum(part.file_size for part in zipfile.ZipFile(file).infolist())
        if size > LARGEST_BOOK:
            raise ValueError(f"unpacked it has {size:,} bytes, expected at most {LARGEST_BOOK:,}")
        sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
        rows = sheet.iter_rows(max_row=MOST_ROWS, max_col=MOST_COLUMNS, values_only=True)
        for number, cells in enumerate(rows, start=1):
            # Most of a million rows can be empty.
            if cells.count(None) < len(cells):
                yield number, list(cells[: max(place for place, cell in enumerate(cells, start=1) if cell is not None)])
    except BROKEN_BOOK as error:
        raise ValueError(
            f"{plain(name, PATH)} is no XLSX workbook that can be read ({plain(error)}): save its sheet as CSV UTF-8."
        ) from error


def _first_line(lines: Iterator[str]) -> tuple[int, str]:
    """How many blank lines a table begins with, and the line after them."""
    for passed, line in enumerate(lines):
        if line.strip():
            return passed, line
    return 0, ""


def _row_under(columns: list[str], place: str, cells: list[Any], delimiter: str = "") -> Row:
    if any(map(str.strip, cells[len(columns) :])):
        return ValueError(
            f"the row has {len(cells)} cells, the header {len(columns)}: put a text that has {delimiter!r} in it between quotes."
        )
    values = {}
    for column, cell in zip(columns, cells, strict=False):
        if not column and str("" if cell is None else cell).strip():
            raise ValueError(
                f"{place}: {plain(cell)!r} stands in a column without a name: name it in the header, or remove it."
            )
        values[column] = cell
    return row_of(values, comma=delimiter == ";")


def row_of(values: dict[str, Any], comma: bool = False) -> Row:
    """The values of a row by our keys; ``comma``: a comma in a number is its decimal sign."""
    row = {}
    for column in values.keys() & KEYS.keys():
        value = values[column]
        if isinstance(value, str):
            text = value.strip()
            if FORMULA_ERROR.fullmatch(text):
                return ValueError(
                    f"{column} is {text}, the mark of a failed formula, expected {KEYS[column][1]}: correct it."
                )
            if column in NUMBERS:
                value = _number(text, column in WHOLE, comma)
            elif column == "timeline":
                with suppress(ValueError, RecursionError):
                    value = json.loads(text)
            value = value if text else None
        elif column not in NUMBERS and isinstance(value, (int, float)) and not isinstance(value, bool):
            # A spreadsheet takes a name of digits for a number.
            value = str(_plain_number(value, True))
        elif isinstance(value, (float, Decimal)):
            value = _plain_number(value, column in WHOLE)
        if value is not None:
            row[column] = value
    return row


def _number(text: str, whole: bool, comma: bool) -> Any:
    """A number as a table writes it. What is none, or could be another, stays a text, and is refused by name later."""
    if text.casefold() in EMPTY_NUMBERS:
        return None
    # 1,500 and 1.500 are fifteen hundred in one country, and one and a half in another.
    thousands = ".," if whole else "." if comma else ","
    if re.fullmatch(rf"[+-]?[1-9]\d{{0,2}}([{thousands}]\d{{3}})+", text):
        return text
    with suppress(ValueError):
        if not whole:
            # Python reads 1_000, too.
            return text if "_" in text else float(text.replace(",", "."))
        # With a point it was a float, which may have been rounded.
        if (match := re.fullmatch(r"([+-]?\d+)([.,]0*)?", text)) and (not match[2] or abs(int(match[1])) < EXACT):
            return int(match[1])
    return text


def _plain_number(value: float | Decimal, whole: bool) -> Any:
    """A float or decimal as Python's number; an int for a whole one, None for NaN."""
    if math.isnan(value):
        return None
    exact = isinstance(value, Decimal) or abs(value) < EXACT
    return int(value) if whole and exact and math.isfinite(value) and value == int(value) else float(value)


def _fits(types: Any, column: str, kind: Any) -> bool:
    """Whether a column of pyarrow's type can hold what its name says; numbers may stand there as texts."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or str(kind) == "string_view"
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if types.is_null(kind) or column == "timeline":
        return types.is_null(kind) or text or types.is_list(kind) or types.is_large_list(kind)
    return text or (number and (column in NUMBERS or (column in ("audio_id", "category") and types.is_integer(kind))))
