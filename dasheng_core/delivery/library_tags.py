"""What a user says of a sound for a library: what it is, who made it, where it belongs. Nothing here needs torch."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..inputs import as_float, as_text, shown

# The four blocks of a name by UCS, the Universal Category System, as it spells them.
UCS_BLOCKS = {"catid": "CatID", "fxname": "FXName", "creatorid": "CreatorID", "sourceid": "SourceID"}
# CatShort and an abbreviation, perhaps with a category of the user's own behind a dash.
CAT_ID = re.compile(r"[A-Z]{2,}[A-Za-z0-9]*(-[^\W_][\w .,()+=@]*)?")
# What file systems take; UCS keeps _ to stand between blocks.
NAME_BLOCK = re.compile(r"(?!_)[\w(](?:(?!_)[\w .,()+=@-])*")
LONGEST_BLOCK = 80
# IPTC's name of what a trained model made, https://cv.iptc.org/newscodes/digitalsourcetype/
BY_A_MODEL = "trainedAlgorithmicMedia"
A_DAY = 86400.0


@dataclass(frozen=True)
class LibraryTags:
    """What the user says of a sound. An empty text is left out of the file.

    Attributes:
        catid, fxname, creatorid, sourceid: blocks of a name by UCS.
        start: the second of a picture or a session at which the sound begins.
        source_type: a code of IPTC's digital source types, for another one than what the program knows.

    Raises ValueError for a block that UCS does not have, or a second that no day has.
    """

    description: str = ""
    originator: str = ""
    catid: str = ""
    fxname: str = ""
    creatorid: str = ""
    sourceid: str = ""
    start: float = 0.0
    source_type: str = ""

    def __post_init__(self) -> None:
        for name in ("description", "originator", *UCS_BLOCKS, "source_type"):
            as_text(getattr(self, name), name)
        for name, called in UCS_BLOCKS.items():
            text = getattr(self, name)
            is_cat_id = name == "catid"
            if text and not ((CAT_ID if is_cat_id else NAME_BLOCK).fullmatch(text) and len(text) <= LONGEST_BLOCK):
                expected = "capitals and an abbreviation, as in DOORWood" if is_cat_id else "letters, digits and spaces"
                raise ValueError(
                    f"{called} is {shown(text)}, expected {expected}, at most {LONGEST_BLOCK}, and no _, which stands between the "
                    "blocks of a name by UCS: write it so."
                )
        if not re.fullmatch("[A-Za-z]{0,80}", self.source_type):
            raise ValueError(
                f"source_type is {shown(self.source_type)}, expected a code of IPTC's digital source types: {BY_A_MODEL} or another."
            )
        # Numbers of a table may be whole.
        start = as_float(self.start, "start", 0, A_DAY, "it is a second of a day")
        object.__setattr__(self, "start", start)

    def given(self) -> dict[str, Any]:
        """The values that are not the defaults."""
        return {name: value for name, value in asdict(self).items() if value != getattr(NO_TAGS, name)}

    def ucs_name(self, number: str = "") -> str:
        """CatID_FXName_CreatorID_SourceID, ``number`` at the end of FXName. Raises ValueError where a block is missing."""
        missing = [called for name, called in UCS_BLOCKS.items() if not getattr(self, name)]
        if missing:
            raise ValueError(
                f"A name by UCS has four blocks, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: add it."
            )
        return "_".join((self.catid, f"{self.fxname} {number}".strip(), self.creatorid, self.sourceid))


NO_TAGS = LibraryTags()
TAG_NAMES = tuple(field.name for field in fields(LibraryTags))


def parse_tags(lines: Iterable[str]) -> LibraryTags:
    """Lines of a name and a text, as in CatID = DOORWood or cat id: DOORWood. Raises ValueError for others."""
    values: dict[str, Any] = {}
    for line in filter(str.strip, lines):
        match = re.fullmatch(r"([^=:]*)[=:](.*)", line.strip(), re.DOTALL)
        key = re.sub(r"[\s_-]", "", match[1]).casefold() if match else ""
        key = "source_type" if key == "sourcetype" else key
        if not match or key not in TAG_NAMES or key in values:
            called = ", ".join(UCS_BLOCKS.get(name, name) for name in TAG_NAMES)
            raise ValueError(
                f"The metadata {shown(line.strip())} is no name and text of its own, expected {called}: write it as in "
                "CatID=DOORWood."
            )
        values[key] = match[2].strip()
        if key == "start":
            with suppress(ValueError):
                values[key] = float(match[2].replace(",", "."))
    return LibraryTags(**values)
