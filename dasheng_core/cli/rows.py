"""The rows of a file of scenes, one by one: lines of text, or a table; local, or what pyarrow reaches by a URI."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..opening import open_file
from ..quoting import PATH, plain

EXTRA = "pip install 'dasheng-audiogen[ray]'"
# Columns of a table that hold numbers.
NUMBERS: dict[str, Callable[[Any], float]] = {"seed": int, "takes": int, "seconds": float, "fade": float}


def split_root(name: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` -> ``s3://bucket``, ``a/b``; a local path -> nothing and itself."""
    match = re.fullmatch(r"(\w+://[^/]*)/(.+)", name.removeprefix("file://"))
    return (match[1], match[2]) if match else ("", name.removeprefix("file://"))


def _pyarrow(name: str, instead: str) -> Any:
    try:
        import pyarrow.fs
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{plain(name, PATH)} needs pyarrow: {EXTRA}, or {instead}.") from error
    return pyarrow


def filesystem(root: str) -> tuple[Any, str]:
    """pyarrow's file system of a URI, and the path of its root in it."""
    pyarrow = _pyarrow(root, "name a local path")
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
    try:
        if root:
            files, base = filesystem(root)
            with files.open_input_file(f"{base}/{path}") as file:
                yield file
        else:
            with open_file(path) as file:
                yield file
    except OSError as error:
        raise OSError(
            f"{plain(name, PATH)} cannot be read ({plain(error.strerror or error)}): expected a file of scenes."
        ) from error


def read_rows(name: str) -> Iterator[tuple[int, str | dict[str, Any]]]:
    """Number and content of each line of a file of prompts, or of each row of a ``.csv`` or ``.parquet`` table.

    They are read one by one. A line of a ``.jsonl`` file is given as it is, and empty cells are left out.

    Raises:
        ValueError: not UTF-8, no Parquet file, or no pyarrow to read it with.
        OSError: the file cannot be read.
    """
    suffix = Path(name).suffix.lower()
    if suffix in (".csv", ".parquet"):
        for number, row in _csv_rows(name) if suffix == ".csv" else enumerate(_parquet_rows(name), start=1):
            yield number, {key: _as_number(key, value) for key, value in row.items() if value not in ("", None)}
    else:
        for number, line in read_lines(name):
            yield number, line if suffix == ".jsonl" else {"prompt": line}


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """The numbered lines of a text file that say something. Raises as :func:`read_rows` does."""
    # A JSON text can contain what else ends a line for Python.
    for number, line in enumerate(map(str.strip, _text(name, newline="\n")), start=1):
        if line and not line.startswith("#"):
            yield number, line


def _text(name: str, newline: str) -> Iterator[str]:
    read = 0
    with open_binary(name) as file:
        try:
            for line in io.TextIOWrapper(file, "utf-8-sig", newline=newline):
                yield line
                read += 1
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{plain(name, PATH)} is not UTF-8 text ({error.reason} after line {read}): save it as UTF-8."
            ) from error


def _csv_rows(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    table = csv.DictReader(_text(name, newline=""), restkey="more cells than the header")
    for row in table:
        yield table.line_num, row


def _parquet_rows(name: str) -> Iterator[dict[str, Any]]:
    pyarrow = _pyarrow(name, "write a .jsonl or a .csv")
    with open_binary(name) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"{plain(name, PATH)} is no Parquet file ({plain(error)}): write it again, or a .jsonl."
            ) from error
        for batch in table.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


def _as_number(column: str, value: Any) -> Any:
    """What a cell of a column of numbers says; what is no number stays as it is, and is refused by name later."""
    if column in NUMBERS and (isinstance(value, str) or isinstance(value, float) and value.is_integer()):
        with suppress(ValueError):
            return NUMBERS[column](value)
    return value
