"""The forms of a delivered file, and which one a name asks for."""

from pathlib import Path

from ..inputs import as_choice
from ..quoting import plain

# Name -> the file's suffix and libsndfile's subtype. Float keeps peaks beyond full scale as they are; FLAC has no float form.
FORMATS = {
    "wav16": (".wav", "PCM_16"),
    "wav24": (".wav", "PCM_24"),
    "wav32": (".wav", "FLOAT"),
    "flac": (".flac", "PCM_24"),
}
# The format of a file whose suffix alone is given.
FORMAT_OF_SUFFIX = {".wav": "wav32", ".flac": "flac"}


def choose_format(path: Path, name: str | None = None) -> str:
    """The entry of :data:`FORMATS` of a file, which ``name`` None leaves to the file's suffix.

    Raises ValueError for a suffix of no format, or of another than ``name``.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMAT_OF_SUFFIX:
        raise ValueError(f"{plain(path)}: expected a name that ends in {' or '.join(FORMAT_OF_SUFFIX)}.")
    name = name or FORMAT_OF_SUFFIX[suffix]
    if FORMATS[as_choice(name, "format", FORMATS)][0] != suffix:
        raise ValueError(f"{plain(path)}: the format {plain(name)} needs a name that ends in {FORMATS[name][0]}.")
    return name
