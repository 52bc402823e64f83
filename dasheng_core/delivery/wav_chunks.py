"""What a WAV file holds beside its sound: a comment, loop points, markers, and what a sound library reads.

The chunks are those of Microsoft's "Multimedia Programming Interface and Data Specifications 1.0" and its "New
Multimedia Data Types" of 1994, EBU Tech 3285 (``bext``), iXML 3, and Adobe's XMP; editors and samplers read them.
"""

import struct
import unicodedata
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree

from ..quoting import plain

# What ``bext`` has in place of a loudness that is not known.
UNKNOWN_LEVEL = 0x7FFF
# Bytes before the first chunk of a RIFF file, and of ``bext``.
FIRST_CHUNK, BEXT_BYTES = 12, 610


def append_chunks(wav: bytes, chunks: bytes) -> bytes:
    """A RIFF file with chunks at its end, but ``bext``, the first of them, before its own; and its size updated."""
    if not chunks:
        return wav
    head = BEXT_BYTES if chunks.startswith(b"bext") else 0
    whole = wav[:FIRST_CHUNK] + chunks[:head] + wav[FIRST_CHUNK:] + bytes(len(wav) % 2) + chunks[head:]
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def read_chunks(wav: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk of a RIFF file, as far as they are whole."""
    place = FIRST_CHUNK
    while wav[:4] == b"RIFF" and place + 8 <= len(wav):
        size = int.from_bytes(wav[place + 4 : place + 8], "little")
        if place + 8 + size > len(wav):
            return
        yield wav[place : place + 4], wav[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


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


def broadcast_chunk(
    description: str, originator: str, reference: str, first_sample: int, levels: Sequence[float | None]
) -> bytes:
    """``bext``, version 2. Its texts are ASCII: other letters lose their accents, or become ``?``.

    Dates stay empty, so that the same sound gives the same bytes.

    Args:
        first_sample: counted from midnight.
        levels: loudness, its range, true peak, largest momentary and short-term loudness, in LUFS, LU and dBTP; None: unknown.
    """
    texts = _ascii(description, 256), _ascii(originator, 32), _ascii(reference, 32), b"", b""
    numbers = [UNKNOWN_LEVEL if level is None else max(-9999, min(9999, round(100 * level))) for level in levels]
    body = struct.pack("<256s32s32s10s8sQH64s5h180x", *texts, first_sample, 2, b"", *numbers)
    return _chunk(b"bext", body)


def ixml_chunk(root: ElementTree.Element) -> bytes:
    return _chunk(b"iXML", ElementTree.tostring(root, "UTF-8", xml_declaration=True))


def xmp_chunk(source_type: str) -> bytes:
    """``_PMX``: a packet of XMP with IPTC's digital source type, one of its codes."""
    packet = (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source_type}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )
    return _chunk(b"_PMX", packet.encode())


def _ascii(text: str, most: int) -> bytes:
    # Of a letter with an accent, NFKD makes two.
    letters = (
        letter for letter in unicodedata.normalize("NFKD", text[: 8 * most]) if not unicodedata.combining(letter)
    )
    return plain("".join(letters), 8 * most).encode("ascii", "replace")[:most]


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
