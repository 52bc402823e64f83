"""``tokenizer.json`` and ``spiece.model``, checked before a library reads them.

tokenizers and sentencepiece trust them: a map of letters with a wrong length or place takes gigabytes, or ends the process.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..opening import read_file
from ..quoting import plain
from .reading import JSON_VALUES, read_json

# In order of preference; mT5 publishes only the second.
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
# mT5's, with 250,000 pieces, is half of it.
TOKENIZER_BYTES = 2**25
# T5's map of letters has 240 kB, its longest text 33 bytes.
MAP_BYTES, MAP_TEXT = 2**21, 256
# T5 has 103 added tokens; no section of a tokenizer.json has more than three members.
ADDED_TOKENS, MEMBERS = 10_000, 8
# Section -> the kinds of its parts, in T5's files and in the small model's. Others are not needed, and some never end.
PART_KINDS = {
    "normalizer": ("Precompiled", "Strip", "Replace", "NFKC", "Nmt", "Lowercase"),
    "pre_tokenizer": ("Metaspace", "WhitespaceSplit", "Punctuation"),
    "post_processor": ("TemplateProcessing",),
    "decoder": ("Metaspace",),
    "model": ("Unigram", "BPE"),
}
SEQUENCES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}
# The one thing that T5's files replace: several spaces by one letter.
SPACES = {"Regex": " {2,}"}
# The fields of a spiece.model that can hold a map of letters, and the map's own within them.
SPIECE_RULES, SPIECE_MAP = (3, 5), 2


def checked_json(path: Path) -> str:
    """The text of a ``tokenizer.json`` made of parts that T5's have, without its padding and truncation.

    Raises:
        OSError, RecursionError, ValueError: another file, or one too large; or a part that no T5 has.
    """
    value = read_json(path, TOKENIZER_BYTES)
    parts = {section: _parts(value.get(section), section) for section in PART_KINDS}
    maps = [part["precompiled_charsmap"] for part in parts["normalizer"] if part["type"] == "Precompiled"]
    if len(maps) > 1:
        raise ValueError("it has several maps of letters")
    for text in maps:
        check_map(base64.b64decode(text, validate=True))
    for part in parts["normalizer"]:
        if part["type"] == "Replace" and (part["pattern"] != SPACES or len(part["content"]) > 1):
            raise ValueError(f"its normalizer replaces {plain(part['pattern'])}; T5 replaces spaces alone")
    for part in parts["post_processor"]:
        if max(map(len, (part["single"], *(token["ids"] for token in part["special_tokens"].values())))) > MEMBERS:
            raise ValueError(f"its post_processor adds more than {MEMBERS} tokens")
    if len(value["added_tokens"]) > ADDED_TOKENS:
        raise ValueError(f"it adds {len(value['added_tokens']):,} tokens, expected at most {ADDED_TOKENS:,}")
    if value["model"].get("dropout"):
        raise ValueError("its model has a dropout, which makes other tokens each time")
    # Serialised again: the library reads what was checked, also where a key is there twice.
    return json.dumps({key: value.get(key) for key in ("version", "added_tokens", *PART_KINDS)})


def _parts(section: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if section is None:
        return []
    is_sequence = name in SEQUENCES and section.get("type") == "Sequence"
    parts = section[SEQUENCES[name]] if is_sequence else [section]
    if len(parts) > MEMBERS:
        raise ValueError(f"its {name} has {len(parts)} parts, expected at most {MEMBERS}")
    for part in parts:
        # Older files do not name the kind of their model.
        kind = part.setdefault("type", "Unigram") if name == "model" else part.get("type")
        if kind not in PART_KINDS[name]:
            raise ValueError(f"its {name} is {plain(kind)}, which no T5 has: expected {', '.join(PART_KINDS[name])}")
    return parts


def checked_spiece(path: Path) -> bytes:
    """The bytes of a ``spiece.model`` whose maps of letters are whole. Raises OSError or ValueError."""
    data = read_file(path, TOKENIZER_BYTES)
    for number, rule in _fields(memoryview(data)):
        if number in SPIECE_RULES:
            for inner, letters in _fields(rule):
                if inner == SPIECE_MAP and len(letters):
                    check_map(bytes(letters))
    return data


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of those fields of a protocol buffer's message that have bytes."""
    place = 0

    def number() -> int:
        nonlocal place
        value = 0
        for shift in range(0, 70, 7):
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("it has a number of more than ten bytes")

    for _ in range(JSON_VALUES):
        if place == len(message):
            return
        key = number()
        kind = key & 7
        if kind == 0:
            number()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"it has a field of kind {kind}")
        length = number() if kind == 2 else {1: 8, 5: 4}[kind]
        if place + length > len(message):
            raise ValueError("it ends within a field")
        if kind == 2:
            yield key >> 3, message[place : place + length]
        place += length
    raise ValueError(f"it has more than {JSON_VALUES:,} fields")


def check_map(data: bytes) -> None:
    """Raise ValueError unless every way through a map of letters (a double array, then its texts) stays within it.

    A unit of the array is 32 bits: of an inner one, the offset of the next in the upper 22 (in steps of 256 if bit 9 is
    set) and, in bit 8, whether a text ends here; a text's place, with bit 31 set, in that next one.
    """
    size = int.from_bytes(data[:4], "little")
    # The array comes in blocks of 256 units.
    if not 0 < size < len(data) - 4 <= MAP_BYTES or size % 1024:
        raise ValueError(f"its map of letters says {size:,} bytes of {len(data):,}, expected whole blocks and texts")
    units = np.frombuffer(data, "<u4", size // 4, offset=4).astype(np.int64)
    texts = data[4 + size :]
    inner = units < 2**31
    after = np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))
    # Any letter can follow: it changes the lowest eight bits.
    if (after[inner] | 255).max(initial=0) >= len(units):
        raise ValueError("its map of letters leads out of itself")
    places = units[after[inner & (units & 256 > 0)]] & 0x7FFFFFFF
    if places.max(initial=0) >= len(texts) or texts[-1]:
        raise ValueError("its map of letters names texts that are not there")
    texts.decode("utf-8")
    if (np.frombuffer(texts, np.uint8)[places] >> 6 == 2).any():
        raise ValueError("its map of letters names a text that starts within a letter")
    if max(map(len, texts.split(b"\0"))) > MAP_TEXT:
        raise ValueError(f"its map of letters has a text of more than {MAP_TEXT} bytes")
