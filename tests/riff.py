"""What a RIFF file and a FLAC hold, read by struct alone."""

import struct
from pathlib import Path


def chunks_of(path: Path) -> list[tuple[str, bytes]]:
    """The chunks of a file in order; the sizes must add up."""
    data = path.read_bytes()
    assert data[:4] == b"RIFF" and data[8:12] == b"WAVE" and struct.unpack("<I", data[4:8])[0] == len(data) - 8
    return _split(data[12:])


def loops_of(path: Path) -> list[tuple[int, int]]:
    """First and last sample of each loop."""
    (sampler,) = [body for name, body in chunks_of(path) if name == "smpl"]
    count = struct.unpack("<9I", sampler[:36])[7]
    assert len(sampler) == 36 + 24 * count
    return [struct.unpack("<6I", sampler[36 + 24 * i :][:24])[2:4] for i in range(count)]


def markers_of(path: Path) -> list[tuple[int, str]]:
    """Sample and name of each marker, in the order of the file; none where it has no ``cue``."""
    chunks = chunks_of(path)
    names = {}
    for body in (body[4:] for name, body in chunks if name == "LIST" and body[:4] == b"adtl"):
        for kind, label in _split(body):
            # The length of a region.
            if kind == "ltxt":
                assert len(label) == 20
                continue
            assert kind == "labl" and label[-1:] == b"\0"
            names[struct.unpack("<I", label[:4])[0]] = label[4:-1].decode()
    markers = []
    for body in (body for name, body in chunks if name == "cue "):
        assert len(body) == 4 + 24 * struct.unpack("<I", body[:4])[0]
        for place in range(4, len(body), 24):
            number, _, kind, _, _, sample = struct.unpack("<II4sIII", body[place : place + 24])
            assert kind == b"data"
            markers.append((sample, names.pop(number)))
    assert not names
    return markers


def tags_of(path: Path) -> dict[str, str]:
    """The Vorbis comments of a FLAC; its blocks must end where its sound begins."""
    data, place, found = path.read_bytes(), 4, []
    while True:
        kind, size = data[place] & 127, int.from_bytes(data[place + 1 : place + 4], "big")
        found += [data[place + 4 :][:size]] * (kind == 4)
        last, place = data[place] > 127, place + 4 + size
        if last:
            break
    assert data[:4] == b"fLaC" and data[place : place + 2] in (b"\xff\xf8", b"\xff\xf9")
    (body,) = found
    place = 4 + struct.unpack("<I", body[:4])[0]
    (count,), place, tags = struct.unpack("<I", body[place : place + 4]), place + 4, {}
    for _ in range(count):
        (size,) = struct.unpack("<I", body[place : place + 4])
        name, _, text = body[place + 4 :][:size].decode().partition("=")
        tags[name], place = text, place + 4 + size
    assert place == len(body)
    return tags


def _split(data: bytes) -> list[tuple[str, bytes]]:
    place, found = 0, []
    while place < len(data):
        name, size = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        found.append((name.decode(), data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    assert place == len(data)
    return found
