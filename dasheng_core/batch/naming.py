"""What files are called: the fields of a name, what a name may hold, and whether a folder can be written to."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from string import Formatter

import regex

from ..delivery.library_tags import UCS_BLOCKS, LibraryTags
from ..opening import explained
from ..quoting import MESSAGE, plain

# The fields a naming template can have: name of the prompt, number of the clip, number and seed of the take, category of the
# line, the blocks of UCS, and all four of them as UCS joins them.
NUMBER_FIELDS = ("index", "take", "seed")
FIELDS = ("name", *NUMBER_FIELDS, "category", *UCS_BLOCKS.values(), "ucs")
NAME_LENGTH = 80
FILE_NAME_BYTES = 255
# Windows gives these to devices, whatever follows the first dot.
DEVICE_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def with_fields(output: str) -> str:
    """A naming template as it is; a name without fields with a number. Raises ValueError for unknown fields."""
    return output if _has_fields(output) else str(Path(output).with_stem(f"{Path(output).stem}_{{index}}"))


def fill_name(template: str, name: str, category: str, tags: LibraryTags, numbers: Mapping[str, int]) -> str:
    """A naming template with its fields. ``numbers``: of the clip and its take, its seed, and ``takes``.

    Raises ValueError for a field that the line leaves empty.
    """
    texts = {"name": name, "category": category and safe_name(category)}
    texts |= {called: getattr(tags, block) for block, called in UCS_BLOCKS.items()}
    fields = {field for _, field, _, _ in Formatter().parse(template) if field}
    if "ucs" in fields:
        # UCS numbers takes within FXName.
        texts["ucs"] = tags.ucs_name(f"{numbers['take']:02}" if numbers["takes"] > 1 else "")
    if empty := [field for field in fields if not texts.get(field, "x")]:
        raise ValueError(f"{plain(template)} names {empty[0]}, which this line does not have: add a column {empty[0]}.")
    return template.format(**texts, **{**numbers, "index": Index(numbers["index"])})


def plain_name(path: str | Path) -> str:
    """The same for all names of one file: some file systems ignore case."""
    return os.path.normpath(path).casefold()


def claim(owners: dict[str, int], path: Path, index: int) -> None:
    """Reserve a name for a clip. Raises ValueError if it is another clip's already."""
    first = owners.setdefault(plain_name(path), index)
    if first != index:
        raise ValueError(
            f"Clips {first} and {index} would both be written to {plain(path)}: tell them apart by "
            "{index}, {take} or {seed} in the output name, or by other names in the prompt file."
        )


def safe_name(name: str) -> str:
    """``name`` as one part of a path: what a file name cannot have becomes ``_``.

    Raises ValueError for a name that is too long, or of which nothing is left.
    """
    if len(name) > NAME_LENGTH:
        raise ValueError(f"The name {plain(name, 20)} has {len(name)} characters, expected at most {NAME_LENGTH}.")
    safe = regex.sub(r"[^\w .,()+=@-]", "_", unicodedata.normalize("NFC", name)).strip(" .")
    if not safe.strip("_"):
        raise ValueError(
            f"The name {plain(repr(name))} has nothing in it that a file name can have: use letters or digits."
        )
    return "_" + safe if DEVICE_NAME.fullmatch(safe) else safe


def check_length(path: Path) -> None:
    try:
        long = [part for part in path.parts if len(os.fsencode(part)) > FILE_NAME_BYTES]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{plain(path)} cannot be a file name where file names are {error.encoding}, as the locale says: set LC_ALL=C.UTF-8, "
            "or use {index} in place of {name}."
        ) from error
    if long:
        raise ValueError(
            f"{plain(long[0])} is longer than the {FILE_NAME_BYTES} bytes a file name can have: shorten it."
        )


class Index(int):
    """Three digits unless the template says otherwise, so that names sort."""

    def __format__(self, spec: str) -> str:
        return format(int(self), spec or "03")


def _has_fields(output: str) -> bool:
    """Whether a naming template has fields. Raises ValueError for unknown ones."""
    known = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        fields = [(field, spec, how) for _, field, spec, how in Formatter().parse(output) if field is not None]
        for field, spec, how in fields:
            if field not in FIELDS or how:
                raise ValueError(
                    f"{{{plain(field)}{'!' + plain(how) if how else ''}}} is not one of the fields {known}"
                )
            # Python would write a field of a billion letters.
            if any(len(number) > 3 for number in re.findall(r"\d+", spec or "")):
                raise ValueError(f"{plain(spec)} is wider than any file name")
            # The format is tried on a value of the field's type.
            format(1 if field in NUMBER_FIELDS else "", spec or "")
    except ValueError as error:
        raise ValueError(
            f"{plain(output)}: {plain(error, MESSAGE)}; a brace that is part of the name is written twice."
        ) from error
    return bool(fields)


def check_folder(folder: Path) -> None:
    remedy = "choose another, or change its permissions"
    with explained(f"The output folder {plain(folder)} cannot be written to", remedy):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if existing.is_dir():
            with tempfile.TemporaryFile(dir=existing):
                return
    raise NotADirectoryError(
        f"{plain(existing)} is a file, but the output {plain(folder)} needs a folder there: choose another name."
    )
