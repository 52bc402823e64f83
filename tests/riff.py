"""What a RIFF file holds, read by struct alone."""

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


def _split(data: bytes) -> list[tuple[str, bytes]]:
    place, found = 0, []
    while place < len(data):
        name, size = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
        found.append((name.decode(), data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    assert place == len(data)
    return found
