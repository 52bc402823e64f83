"""What a file that should be text is instead, by its first bytes."""

import codecs
import re

# Bytes of a file that are read for it.
SEEN = 4096
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before UTF-16, whose mark is the beginning of this one.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SHEET, UNPACK = "save its sheet as CSV UTF-8", "unpack it"
TEXT_WANTED = "give a text file or a table"
# First bytes -> what such a file is, and what to do.
SIGNATURES: dict[bytes, tuple[str, str]] = {
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook or Word document", SHEET),
    b"%PDF": ("a PDF", TEXT_WANTED),
    b"{\\rtf": ("a rich text document", "save it as plain text"),
    b"\x89PNG": ("a PNG picture", TEXT_WANTED),
    b"\xff\xd8\xff": ("a JPEG picture", TEXT_WANTED),
    b"GIF8": ("a GIF picture", TEXT_WANTED),
    b"II*\0": ("a TIFF picture", TEXT_WANTED),
    b"MM\0*": ("a TIFF picture", TEXT_WANTED),
    b"fLaC": ("a FLAC sound", TEXT_WANTED),
    b"OggS": ("an Ogg sound", TEXT_WANTED),
    b"ID3": ("an MP3 sound", TEXT_WANTED),
    b"\x1f\x8b": ("a gzip archive", UNPACK),
    b"BZh": ("a bzip2 archive", UNPACK),
    b"\xfd7zXZ": ("an xz archive", UNPACK),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", UNPACK),
    b"Rar!": ("a RAR archive", UNPACK),
    b"SQLite format 3": ("an SQLite database", "export its table as CSV"),
    b"ARROW1": ("a Feather file", "write it as Parquet"),
    b"\x89HDF": ("an HDF5 file", "write it as Parquet"),
    b"\x93NUMPY": ("a NumPy array", TEXT_WANTED),
    b"\x80\x04\x95": ("a Python pickle", "write it as Parquet"),
    b"\x80\x05\x95": ("a Python pickle", "write it as Parquet"),
    b"GGUF": ("a GGUF checkpoint", TEXT_WANTED),
    b"version https://git-lfs": ("a Git LFS pointer", "run git lfs pull"),
}
# Within a ZIP archive, the names of what programs put there first.
ZIPPED: dict[bytes, tuple[str, str]] = {
    b"opendocument.spreadsheet": ("an ODS spreadsheet", SHEET),
    b"opendocument": ("an OpenDocument file", TEXT_WANTED),
    b"word/": ("a Word document", "save it as plain text"),
    b"Index/": ("a Numbers spreadsheet", SHEET),
    b"xl/": ("an Excel workbook (XLSX)", SHEET),
    b"[Content_Types].xml": ("an Excel workbook (XLSX) or another Office document", SHEET),
}


def encoding_of(start: bytes) -> str:
    """The encoding that the first bytes of a text name; UTF-8 where they name none."""
    return next((encoding for mark, encoding in ENCODINGS.items() if start.startswith(mark)), "utf-8")


def stranger(start: bytes) -> tuple[str, str] | None:
    """What a file with these first bytes is, and what to do about it; None for one that may be text."""
    if start.startswith(b"PK\x03\x04"):
        return next((what for sign, what in ZIPPED.items() if sign in start), ("a ZIP archive", UNPACK))
    if start[:4] == b"RIFF":
        return f"a RIFF file ({start[8:12].decode('ascii', 'replace').strip()}: sound, picture or video)", TEXT_WANTED
    if start[4:8] == b"ftyp":
        return "an MP4 file", TEXT_WANTED
    if re.match(
        rb"\s*(<!doctype|<\?xml|<(html|head|body|table)\b)", start.removeprefix(codecs.BOM_UTF8), re.IGNORECASE
    ):
        return "a web page or another XML document", TEXT_WANTED
    found = next((what for sign, what in SIGNATURES.items() if start.startswith(sign)), None)
    if not found and b"\0" in start and encoding_of(start) in ("utf-8", "utf-8-sig"):
        return "not text, or text in UTF-16 without its mark", "save it as UTF-8"
    return found
