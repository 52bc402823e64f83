"""What a sound library reads of a file: the user's tags, levels, take and seed, and that a model made it.

A WAV holds it as ``bext`` (EBU Tech 3285, version 2), ``iXML`` (the fields of UCS and ASWG) and XMP; a FLAC as Vorbis comments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any
from xml.etree import ElementTree

from torch import Tensor

from ..quoting import plain
from .library_tags import BY_A_MODEL, UCS_BLOCKS, LibraryTags
from .measures import LOUDNESS_SECONDS, loudness_levels, true_peak
from .wav_chunks import broadcast_chunk, ixml_chunk, xmp_chunk

MADE_WITH = "dasheng-audiogen"
# Of a text; in ``bext`` 256 bytes are left of it.
LONGEST_TEXT = 2000


@dataclass(frozen=True)
class TaggedSound:
    """A sound ``[C, L]`` and all that its file says of it for a library.

    Attributes:
        reference: tells it apart from all others.
        cut: seconds that its beginning has lost.
        by_a_model: whether it was made by a model, as far as the program knows.
    """

    tags: LibraryTags
    sound: Tensor
    sample_rate: int
    seed: int | None = None
    take: int = 1
    reference: str = ""
    cut: float = 0.0
    by_a_model: bool = True

    @property
    def source_type(self) -> str:
        """The code of IPTC; nothing: no claim of how the sound was made."""
        return self.tags.source_type or (BY_A_MODEL if self.by_a_model else "")

    @property
    def first_sample(self) -> int:
        """Where the sound begins, counted from second 0 of the day; what was cut off its beginning moves it."""
        return round((self.tags.start + self.cut) * self.sample_rate)

    def chunks(self) -> bytes:
        """``bext``, ``iXML``, and XMP where there is a source type."""
        tags, scene = self.tags, self.tags.fxname or self.tags.description
        texts = tags.description, tags.originator or MADE_WITH, self.reference
        head = broadcast_chunk(*texts, self.first_sample, self._levels())
        root = ElementTree.Element("BWFXML")
        _add(root, {"IXML_VERSION": "3.01", "PROJECT": tags.sourceid, "SCENE": plain(scene, 80), "TAKE": self.take})
        _add(root, {"NOTE": tags.description, "FILE_UID": self.reference})
        tracks = ElementTree.SubElement(root, "TRACK_LIST")
        _add(tracks, {"TRACK_COUNT": len(self.sound)})
        for channel in range(1, len(self.sound) + 1):
            _add(ElementTree.SubElement(tracks, "TRACK"), {"CHANNEL_INDEX": channel, "INTERLEAVE_INDEX": channel})
        # Soundminer and Reaper read USER; Sony's ASWG has the blocks of UCS by their own names.
        user = {"SHORTID": tags.creatorid, "SHOW": tags.sourceid, "DESCRIPTION": tags.description}
        _add(
            ElementTree.SubElement(root, "USER"),
            {**self._blocks(), **user, "SEED": self.seed, "DIGITALSOURCETYPE": self.source_type},
        )
        aswg = {"catId": tags.catid, "fxName": tags.fxname, "creatorId": tags.creatorid, "sourceId": tags.sourceid}
        _add(ElementTree.SubElement(root, "ASWG"), {**aswg, "originator": tags.originator})
        return head + ixml_chunk(root) + (xmp_chunk(self.source_type) if self.source_type else b"")

    def comments(self) -> list[tuple[str, str]]:
        """The same as Vorbis comments."""
        tags = self.tags
        found = {"DESCRIPTION": tags.description, "ORIGINATOR": tags.originator or MADE_WITH, **self._blocks()}
        found |= {"TAKE": self.take, "SEED": self.seed, "TIMEREFERENCE": self.first_sample or None}
        levels = zip(
            ("LOUDNESS", "LOUDNESSRANGE", "MAXTRUEPEAK", "MAXMOMENTARY", "MAXSHORTTERM"), self._levels(), strict=True
        )
        found |= {name: None if level is None else f"{level:.2f}" for name, level in levels}
        found["DIGITALSOURCETYPE"] = self.source_type
        return [(name, plain(text, LONGEST_TEXT)) for name, text in found.items() if text not in ("", None)]

    def _blocks(self) -> dict[str, Any]:
        return {name.upper(): getattr(self.tags, name) for name in UCS_BLOCKS}

    def _levels(self) -> list[float | None]:
        """Loudness and its range, true peak, largest momentary and short-term loudness; None: it has none."""
        whole, spread, momentary, short_term = [None] * 4
        if len(self.sound) <= 2 and self.sound.shape[-1] >= LOUDNESS_SECONDS * self.sample_rate:
            try:
                whole, spread, momentary, short_term = loudness_levels(self.sound, self.sample_rate)
            except ImportError:
                pass
        levels = whole, spread, true_peak(self.sound, self.sample_rate), momentary, short_term
        return [level if level is not None and isfinite(level) else None for level in levels]


def _add(parent: ElementTree.Element, texts: Mapping[str, Any]) -> None:
    for name, text in texts.items():
        if text not in ("", None):
            ElementTree.SubElement(parent, name).text = plain(text, LONGEST_TEXT)
