"""The notes in a sound file: what was asked for, loop points, markers.

A WAV holds them as RIFF chunks (:mod:`dasheng_core.delivery.wav_chunks`), a FLAC as Vorbis comments: ``COMMENT``, ``LOOPSTART`` and
``LOOPLENGTH`` in samples, which game engines read, and ``CHAPTER000`` and ``CHAPTER000NAME``, which players read.
"""

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import soundfile

from .. import __version__
from ..control.timeline import Timeline
from ..duration import SAMPLE_RATE
from ..prompt import first_words, parse_prompt
from .wav_chunks import append_chunks, comment_chunk, loop_chunk, marker_chunks

MADE_BY = f"dasheng-audiogen {__version__}"
# The size of a block of a FLAC has 24 bits.
FLAC_BLOCK = 2**24
VORBIS_COMMENT = 4


def with_notes(
    sound: bytes, suffix: str, about: Mapping[str, Any], scene: str | Timeline = "", loop: int | None = None
) -> bytes:
    """An encoded sound with its notes.

    Args:
        sound: a WAV or a FLAC, as ``suffix`` says.
        about: what was asked for; it stands in the comment, as JSON.
        scene: where its prompts begin, the file has a marker; nothing for a prompt.
        loop: the clip's samples, all of which are a loop; None: no loop.

    Raises ValueError for notes of 16 MB, which no FLAC can hold.
    """
    comment, markers = json.dumps({"made_by": MADE_BY, **about}), timeline_markers(scene)
    if suffix == ".wav":
        points = loop_chunk(0, loop, SAMPLE_RATE) if loop else b""
        return append_chunks(sound, comment_chunk(comment) + points + marker_chunks(markers))
    tags = [("COMMENT", comment)]
    if loop:
        tags += [("LOOPSTART", "0"), ("LOOPLENGTH", str(loop))]
    for number, (sample, name) in enumerate(markers):
        minutes, seconds = divmod(sample / SAMPLE_RATE, 60)
        tags += [
            (f"CHAPTER{number:03}", f"{int(minutes // 60):02}:{int(minutes % 60):02}:{seconds:06.3f}"),
            (f"CHAPTER{number:03}NAME", name),
        ]
    return _with_tags(sound, tags)


def as_json(prompt: str | Timeline) -> Any:
    """A prompt as a file's comment and a manifest hold it."""
    return prompt if isinstance(prompt, str) else {"entries": [list(e) for e in prompt.entries], "fade": prompt.fade}


def read_about(sound: bytes) -> dict[str, Any]:
    """What :func:`with_notes` wrote into the comment; empty for any other file."""
    if sound[:4] == b"fLaC":
        # Before the text stands its length, with the name.
        place = sound.find(b"COMMENT=", 0, FLAC_BLOCK) - 4
        length, start = sound[place : place + 4], place + 4 + len(b"COMMENT=")
        end = place + 4 + int.from_bytes(length, "little")
    else:
        place = sound.rfind(b"INFOICMT")
        start = place + 12
        end = start + int.from_bytes(sound[place + 8 : start], "little")
    try:
        values = json.loads(sound[start:end].rstrip(b"\0")) if place >= 0 else None
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def says_asked(encoded: bytes, asked: str) -> bool:
    """Whether a file is complete, and its comment has this digest of what is asked for."""
    return read_about(encoded).get("asked") == asked and is_whole(encoded)


def is_whole(encoded: bytes, seconds: float | None = None) -> bool:
    """Whether a file can be read to its end, and is of that length, to the millisecond."""
    try:
        sound, rate = soundfile.read(io.BytesIO(encoded), dtype="float32")
    except soundfile.SoundFileError:
        return False
    return len(sound) > 0 and (seconds is None or round(len(sound) / rate, 3) == seconds)


def timeline_markers(scene: str | Timeline) -> list[tuple[int, str]]:
    """Samples at which the prompts of a timeline begin, each with the first words of its caption; none for a prompt."""
    entries = scene.entries if isinstance(scene, Timeline) else ()
    return [(round(start * SAMPLE_RATE), first_words(parse_prompt(prompt)["caption"])) for start, prompt in entries]


def _with_tags(flac: bytes, tags: list[tuple[str, str]]) -> bytes:
    """A FLAC with these Vorbis comments in place of its own; the encoder's name stays."""
    place, last, vendor, kept = 4, False, b"\0" * 4, []
    while not last:
        kind, last = flac[place] & 127, flac[place] > 127
        body = flac[place + 4 : place + 4 + int.from_bytes(flac[place + 1 : place + 4], "big")]
        place += 4 + len(body)
        if kind == VORBIS_COMMENT:
            vendor = body[: 4 + int.from_bytes(body[:4], "little")]
        else:
            kept.append((kind, body))
    texts = [f"{name}={text}".encode() for name, text in tags]
    comments = vendor + struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(t)) + t for t in texts)
    if len(comments) >= FLAC_BLOCK:
        raise ValueError(
            f"The prompt and its markers are {len(comments)} bytes, expected less than 16 MB, which is what a FLAC can hold "
            "beside its sound: write a .wav."
        )
    # The block of the stream itself is the first, and the last one says that it is.
    blocks = [kept[0], (VORBIS_COMMENT, comments), *kept[1:]]
    whole = flac[:4]
    for number, (kind, body) in enumerate(blocks, start=1):
        whole += bytes([kind + 128 * (number == len(blocks))]) + len(body).to_bytes(3, "big") + body
    return whole + flac[place:]
