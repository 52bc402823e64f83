"""The rows of a file of scenes, one by one: lines of text, or a table; local, or what pyarrow reaches by a URI."""

import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from ..opening import explained, open_file
from ..quoting import PATH, plain
from .signatures import SEEN, encoding_of, stranger
from .tables import Row, csv_rows, is_header, parquet_rows, xlsx_rows

EXTRA = "pip install 'dasheng-audiogen[ray]'"
TABLES = {".csv", ".tsv", ".tab"}
WORKBOOKS = {".xlsx", ".xlsm"}
ZIP = b"PK\x03\x04"
JSON_LINES = {".jsonl", ".ndjson", ".json"}
# Characters of a line: thousands of spans, and a bound for a file without line ends.
LONGEST = 2**24


def split_root(name: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``s3://bucket``, ``a/b``; a local path -> nothing and itself."""
    match = re.fullmatch(r"(\w+://[^/]*)/(.+)", name.removeprefix("file://"))
    return (match[1], match[2]) if match else ("", name.removeprefix("file://"))


def openpyxl_for(name: str) -> Any:
    try:
        import openpyxl
    except ImportError as error:
        raise ValueError(
            f"{plain(name, PATH)} needs openpyxl: pip install 'dasheng-audiogen[xlsx]', or save its sheet as CSV UTF-8."
        ) from error
    return openpyxl


def pyarrow_for(name: str, instead: str) -> Any:
    try:
        import pyarrow.fs
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{plain(name, PATH)} needs pyarrow: {EXTRA}, or {instead}.") from error
    return pyarrow


def filesystem(root: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path of its root in it."""
    pyarrow = pyarrow_for(root, "name a local path")
    try:
        files, base = pyarrow.fs.FileSystem.from_uri(f"{root}/")
    except pyarrow.ArrowInvalid as error:
        raise ValueError(
            f"{plain(root)} is no place that pyarrow knows ({plain(error)}): give s3://, gs:// or a local path."
        ) from error
    return files, base.rstrip("/")


@contextmanager
def open_binary(name: str) -> Iterator[IO[bytes]]:
    root, path = split_root(name)
    with explained(f"{plain(name, PATH)} cannot be read", "expected a file of scenes"):
        if root:
            files, base = filesystem(root)
            with files.open_input_file(f"{base}/{path}") as file:
                yield file
        else:
            with open_file(Path(path).expanduser()) as file:
                yield file


def read_rows(name: str) -> Iterator[tuple[int, str | Row]]:
    """Number and content of each line of a file of prompts, or of each row of a table.

    They are read one by one. A line of JSON is given as it is, and empty cells of a table are left out. The content of a
    file decides what it is, not its name: Parquet, an Excel workbook, a table whose first line names columns, or one tagged
    prompt per line.

    Raises:
        ValueError: another kind of file, not UTF-8, a header that no scene has, or no package to read it with.
        OSError: the file cannot be read.
    """
    for number, row, _ in read_cells(name):
        yield number, row


def read_cells(name: str) -> Iterator[tuple[int, str | Row, dict[str, Any]]]:
    """The same, each with its cells as they are, by the names of their columns. A line of JSON has none."""
    with open_binary(name) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PAR1":
            yield from parquet_rows(name, pyarrow_for(name, "write a .jsonl or a .csv"), file)
            return
        suffix = Path(name).suffix.lower()
        if start == ZIP and suffix in WORKBOOKS:
            yield from xlsx_rows(name, openpyxl_for(name), file)
            return
        lines = _decoded(name, file, "\n" if suffix in JSON_LINES else "")
        first = next(lines, "")
        lines = chain([first], lines)
        if suffix in TABLES or suffix not in JSON_LINES and is_header(first):
            yield from csv_rows(name, lines)
            return
        if suffix == ".json" and not _is_object(first):
            raise ValueError(
                f"{plain(name, PATH)} is one JSON text, expected one object per line: write it so (pandas: to_json(..., orient='records', "
                "lines=True)), as a .jsonl."
            )
        for number, line in _sayings(lines):
            yield (number, line, {}) if suffix in JSON_LINES else (number, {"prompt": line}, {"prompt": line})


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file that are neither blank nor comments. Raises as :func:`read_rows` does."""
    with open_binary(name) as file:
        yield from _sayings(_decoded(name, file, ""))


def read_text(name: str, most: int) -> str:
    """A text file; of one longer than ``most`` characters a beginning that is longer. Raises as :func:`read_rows` does."""
    lines: list[str] = []
    with open_binary(name) as file:
        for line in _decoded(name, file, ""):
            lines.append(line)
            most -= len(line)
            if most < 0:
                break
    return "".join(lines)


def _sayings(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line and not line.startswith("#"):
            yield number, line


def _decoded(name: str, file: IO[bytes], newline: str) -> Iterator[str]:
    """The lines of a text, each with its end."""
    start = file.read(SEEN)
    file.seek(0)
    if found := stranger(start):
        what, remedy = found
        raise ValueError(f"{plain(name, PATH)} is {what}, expected a file of scenes: {remedy}.")
    # Bytes that cannot be decoded become lone surrogates, which show their line.
    text = io.TextIOWrapper(file, encoding_of(start), "surrogateescape", newline)
    number = 1
    try:
        while line := text.readline(LONGEST):
            line.encode()
            if len(line) == LONGEST:
                raise ValueError(
                    f"{plain(name, PATH)}:{number}: the line is longer than {LONGEST} characters: write a line for each scene."
                )
            yield line
            number += 1
    except UnicodeError as error:
        where = f" after {plain(error.object[: error.start][-20:])!r}" if isinstance(error, UnicodeEncodeError) else ""
        raise ValueError(
            f"{plain(name, PATH)}:{number}: this line is not {encoding_of(start).upper().removesuffix('-SIG')} text{where}: save the file as UTF-8 (in "
            "Excel: CSV UTF-8)."
        ) from error


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
