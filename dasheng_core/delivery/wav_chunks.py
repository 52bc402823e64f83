"""What a WAV file holds beside its sound: a comment, loop points, markers.

The chunks are those of Microsoft's "Multimedia Programming Interface and Data Specifications 1.0" and its "New
Multimedia Data Types" of 1994; editors and samplers read them.
"""

import struct
from collections.abc import Sequence

from ..quoting import plain


def append_chunks(wav: bytes, chunks: bytes) -> bytes:
    """A RIFF file with chunks at its end, and its size updated."""
    if not chunks:
        return wav
    whole = wav + bytes(len(wav) % 2) + chunks
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def comment_chunk(text: str) -> bytes:
    """``LIST INFO`` with ``ICMT``, which players and ffprobe show as the comment. ``text`` is ASCII."""
    return _chunk(b"LIST", b"INFO" + _chunk(b"ICMT", text.encode("ascii") + b"\0"))


def loop_chunk(start: int, end: int, sample_rate: int) -> bytes:
    """``smpl``: play samples ``start`` to ``end`` (not included) again and again, forward, without end."""
    middle_c = 60
    sampler = struct.pack("<9I", 0, 0, round(1e9 / sample_rate), middle_c, 0, 0, 0, 1, 0)
    # The last sample of a loop is played.
    return _chunk(b"smpl", sampler + struct.pack("<6I", 0, 0, start, end - 1, 0, 0))


def marker_chunks(markers: Sequence[tuple[int, str] | tuple[int, str, int]]) -> bytes:
    """``cue`` and, in ``LIST adtl``, the names of its points, a number where one has none: markers at these samples.

    A marker of three is a region; its length in samples is written as ``ltxt``.
    """
    if not markers:
        return b""
    points, labels = [struct.pack("<I", len(markers))], [b"adtl"]
    for number, (sample, name, *length) in enumerate(markers, start=1):
        points.append(struct.pack("<II4sIII", number, sample, b"data", 0, 0, sample))
        labels.append(_chunk(b"labl", struct.pack("<I", number) + (plain(name, 500) or str(number)).encode() + b"\0"))
        if any(length):
            labels.append(_chunk(b"ltxt", struct.pack("<II4sHHHH", number, length[0], b"rgn ", 0, 0, 0, 0)))
    return _chunk(b"cue ", b"".join(points)) + _chunk(b"LIST", b"".join(labels))


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
