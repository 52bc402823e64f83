"""The notes in a sound file: what was asked for, loop points, markers.

A WAV holds them as RIFF chunks (:mod:`dasheng_core.delivery.wav_chunks`), a FLAC as Vorbis comments: ``COMMENT``, ``LOOPSTART`` and
``LOOPLENGTH`` in samples, which game engines read, and ``CHAPTER000`` and ``CHAPTER000NAME``, which players read.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import soundfile

from .. import __version__
from ..control.timeline import Timeline
from ..duration import SAMPLE_RATE
from ..prompt import first_words, parse_prompt
from .tagged_sound import TaggedSound
from .wav_chunks import append_chunks, comment_chunk, loop_chunk, marker_chunks, read_chunks

MADE_BY = f"dasheng-audiogen {__version__}"
# The size of a block of a FLAC has 24 bits.
FLAC_BLOCK = 2**24
VORBIS_COMMENT = 4


def with_notes(
    sound: bytes,
    suffix: str,
    about: Mapping[str, Any],
    scene: str | Timeline = "",
    loop: int | None = None,
    tagged: TaggedSound | None = None,
) -> bytes:
    """An encoded sound with its notes.

    Args:
        sound: a WAV or a FLAC, as ``suffix`` says.
        about: what was asked for; it stands in the comment, as JSON.
        scene: where its prompts begin, the file has a marker; nothing for a prompt.
        loop: the clip's samples, all of which are a loop; None: no loop.
        tagged: what the file says for a sound library; None: nothing.

    Raises ValueError for notes of 16 MB, which no FLAC can hold.
    """
    comment, markers = json.dumps({"made_by": MADE_BY, **about}), timeline_markers(scene)
    if suffix == ".wav":
        points = loop_chunk(0, loop, SAMPLE_RATE) if loop else b""
        library = tagged.chunks() if tagged else b""
        return append_chunks(sound, library + comment_chunk(comment) + points + marker_chunks(markers))
    # Of DESCRIPTION and COMMENT, ffmpeg shows the last as the comment.
    tags = [*(tagged.comments() if tagged else ()), ("COMMENT", comment)]
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
        texts = [text for kind, body, _ in _blocks(sound) if kind == VORBIS_COMMENT for text in _comments(body)]
    else:
        texts = [body[12:] for name, body in read_chunks(sound) if name == b"LIST" and body[:8] == b"INFOICMT"]
    try:
        values = json.loads(texts[0].rstrip(b"\0")) if texts else None
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


def _blocks(flac: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Kind and body of each block before the sound of a FLAC, and where it ends."""
    place, last = 4, False
    while not last and place + 4 <= len(flac):
        kind, last = flac[place] & 127, flac[place] > 127
        body = flac[place + 4 : place + 4 + int.from_bytes(flac[place + 1 : place + 4], "big")]
        place += 4 + len(body)
        yield kind, body, place


def _comments(body: bytes) -> Iterator[bytes]:
    """The texts of the Vorbis comments COMMENT in a block of them, as far as it is whole."""
    place = 8 + int.from_bytes(body[:4], "little")
    while place + 4 <= len(body):
        size = int.from_bytes(body[place : place + 4], "little")
        text = body[place + 4 : place + 4 + size]
        if text.startswith(b"COMMENT="):
            yield text[len(b"COMMENT=") :]
        place += 4 + size


def _with_tags(flac: bytes, tags: list[tuple[str, str]]) -> bytes:
    """A FLAC with these Vorbis comments in place of its own; the encoder's name stays."""
    found = list(_blocks(flac))
    vendors = [body[: 4 + int.from_bytes(body[:4], "little")] for kind, body, _ in found if kind == VORBIS_COMMENT]
    kept, place = [(kind, body) for kind, body, _ in found if kind != VORBIS_COMMENT], found[-1][2]
    texts = [f"{name}={text}".encode() for name, text in tags]
    comments = (
        (vendors or [bytes(4)])[0]
        + struct.pack("<I", len(texts))
        + b"".join(struct.pack("<I", len(t)) + t for t in texts)
    )
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
