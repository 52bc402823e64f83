"""Files made to end, fill or stall whoever reads them: each function puts one in the place of a good file.

They are drawn from a seed like the mutations; each returns whether the file must be refused, or may load as well.
"""

import base64
import json
import os
import socket
import struct
import zipfile
from contextlib import suppress

# Larger than any test may take of memory, and nothing on disk.
SPARSE = 2**31


def no_regular_file(rng, path):
    """A pipe, a device, a folder, a socket, or a link to one of them, to nowhere or to itself."""
    path.unlink()
    kind = rng.choice(("pipe", "link to a pipe", "/dev/zero", "/dev/zero", "/dev/full", "folder", "loop", "socket"))
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "socket":
        here = os.getcwd()
        try:
            # The name of a socket may be 100 letters long.
            os.chdir(path.parent)
            with suppress(OSError), socket.socket(socket.AF_UNIX) as endpoint:
                endpoint.bind(path.name)
        finally:
            os.chdir(here)
    elif "pipe" in kind:
        other = path.with_name("pipe")
        os.mkfifo(path if kind == "pipe" else other)
        if kind != "pipe":
            path.symlink_to(other)
    else:
        path.symlink_to(kind)
    # A link to nowhere is a file that is not there, which some can do without.
    return path.exists()


def tail_of_zeros(rng, path):
    """What a download leaves that made room for the whole file, and was stopped."""
    size = path.stat().st_size
    share = rng.choice((0.02, 0.5, 15 / 16, 1.0))
    with open(path, "r+b") as file:
        file.truncate(size - int(size * share))
        file.truncate(size)
    return share > 0.6


def size_bomb(rng, path):
    """Gigabytes behind a good start, or as much in a few megabytes as takes the most memory once it is read."""
    kind = rng.randrange(6)
    if kind == 0 or path.suffix in (".bin", ".gguf"):
        os.truncate(path, SPARSE)
        # A list of tensors at the start is whole.
        return path.suffix in (".json", ".model")
    if path.suffix == ".model":
        # Fields of two bytes, or one that claims more than there is.
        path.write_bytes(rng.choice((b"\x08\x01" * 2**23, b"\x1a\xff\xff\xff\xff\x07", b"\x1a" + b"\xff" * 12)))
        return True
    text = (
        "[" + "[]," * rng.choice((1_000_000, 10_000_000)) + "[]]",
        '{"a":' * 700_000 + "1" + "}" * 700_000,
        "[" + "{}," * rng.choice((600_000, 1_300_000)) + "{}]",
        '{"dit_depth":"' + "x" * rng.choice((4_000_000, 50_000_000)) + '"}',
        "1" * rng.choice((4_000, 4_000_000)),
    )[kind - 1]
    if path.suffix == ".json":
        path.write_text(text)
        return True
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    is_config = rng.random() < 0.5
    if is_config:
        header["__metadata__"] = {"config": text}
    else:
        # Tensors that nobody asks for.
        header.update({f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(150_000)})
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    return is_config


# tokenizer.json and spiece.model


def _the_map(rng, good: bytes) -> tuple[bytes, bool]:
    """A map of letters that is not as it was."""
    data = bytearray(good)
    size = int.from_bytes(data[:4], "little")
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice((b"\0\0", b"\xff\xff\xff\xff", b"", b"\0" * 9, b"\xff\xff\xff\x7f" + b"x" * 99)), True
    if kind == 1:
        for _ in range(rng.choice((1, 20, 20, 1000))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data), False
    if kind == 2:
        return bytes(data[: rng.randrange(len(data))]), False
    if kind == 3:
        data[:4] = (rng.choice((0, 1, size - 4, size + 1024, 2**31, 2**32 - 1))).to_bytes(4, "little")
        return bytes(data), True
    if kind == 4:
        # Each unit leads as far as it can.
        units = rng.choice((b"\xff\xff\xff\x7f", b"\x61\xff\xff\x7f"))
        return bytes(data[:4]) + units * (size // 4) + bytes(data[4 + size :]), True
    if kind == 5:
        return bytes(data[:4]) + rng.randbytes(size) + bytes(data[4 + size :]), True
    return bytes(data[: 4 + size]) + b"\x80" * (len(data) - 4 - size), True


def _odd_parts(rng) -> dict:
    """Sections that tokenizers reads and no T5 has."""
    endless = {"Regex": "(a|a|aa)+$|(\\s*)*x"}
    return rng.choice(
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 100_000}},
            {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
            {"normalizer": {"type": "Replace", "pattern": endless, "content": ""}},
            {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000}},
            {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "a"}},
            {"pre_tokenizer": {"type": "Split", "pattern": endless, "behavior": "Isolated", "invert": False}},
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
            {"model": {"type": "WordPiece", "unk_token": "x", "vocab": {"a": 0}, "max_input_chars_per_word": 2**60}},
            {"model": {"type": "Unigram", "unk_id": 2**60, "vocab": [["a", 0.0]]}},
            {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")], ["", -1.0]]}},
            {"decoder": {"type": "Replace", "pattern": endless, "content": "a"}},
            {"added_tokens": [{"id": 10**6 + i, "content": f"<{i}>", "single_word": False, "lstrip": False,
                               "rstrip": False, "normalized": True, "special": False} for i in range(60_000)]},
            {"post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
                                "pair": [], "special_tokens": {}}},
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [],
                                "special_tokens": {"x": {"id": "x", "ids": [1] * 500_000, "tokens": ["x"] * 500_000}}}},
        )
    )  # fmt: skip


def tokenizer_bomb(rng, path):
    """Another map of letters, or parts that no T5 has."""
    if path.suffix == ".model":
        data = path.read_bytes()
        # T5's rule begins so: a double array of 177 kB or a little more.
        place = data.index(b"nmt_nfkc") + len(b"nmt_nfkc\x12")
        bad = bytearray(data)
        for _ in range(rng.choice((1, 20, 2000))):
            bad[rng.randrange(place, min(place + 200_000, len(data)))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        return False
    value = json.loads(path.read_text("utf-8"))
    refused = True
    if rng.random() < 0.5:
        rule = value["normalizer"]
        rule = rule if rule["type"] == "Precompiled" else rule["normalizers"][0]
        changed, refused = _the_map(rng, base64.b64decode(rule["precompiled_charsmap"]))
        rule["precompiled_charsmap"] = base64.b64encode(changed).decode()
    elif rng.random() < 0.1:
        value["padding"] = {
            **{"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0},
            **{"pad_type_id": 0, "pad_token": "<pad>"},
        }
        refused = False
    else:
        value.update(_odd_parts(rng))
    text = json.dumps(value)
    if rng.random() < 0.2 and refused:
        # Python reads the last of two keys; the good one stands behind.
        good = json.loads(path.read_text("utf-8"))["normalizer"]
        text, refused = text[:-1] + f', "normalizer": {json.dumps(good)}' + "}", False
    path.write_text(text, "utf-8")
    return refused


# torch's pickles


def _lists() -> tuple[bytes, ...]:
    """Pickles that are no list of tensors."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def tensor(count: int, shape: int) -> bytes:
        storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
        storage += b"\x8a\x08" + struct.pack("<q", count) + b"tQ"
        size = b"\x8a\x08" + struct.pack("<q", shape)
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + size + b"\x85K\x01\x85\x89NtR"

    start = b"\x80\x02}"
    return (
        b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
        b"cos\nsystem\n(" + text("true") + b"tR.",
        b"cposix\nsystem\nq\0.",
        b"ctorch.storage\nUntypedStorage\n(J\xff\xff\xff\x7ftR.",
        b"ctorch\nFloatStorage\n(J\xff\xff\xff\x7ftR.",
        start + b"K\x01" + b"\x85" * 300_000 + b"K\x01s.",
        start + b"K\x01" + b"\x85K\x01\x86" * 100_000 + b"K\x01s.",
        start + b"K\x01q\0" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)) + b"K\x01s.",
        b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        b"\x80\x02" + b"}" * 1_500_000 + b".",
        b"\x80\x02" + b"(" * 900_000 + b".",
        b"\x80\x02X\xff\xff\xff\x7f.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b".",
        b"\x80\x02c" + b"a" * 3_000_000 + b"\nb\n.",
        b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
        start + text("shared.weight") + tensor(2**40, 2**40) + b"s.",
        start + text("shared.weight") + tensor(4, 2**40) + b"s.",
        b"\x80\x02]q\0h\0a.",
        b"",
    )


def pickle_bomb(rng, path):
    """Another list in a good file of either format."""
    bomb = rng.choice(_lists())
    if not zipfile.is_zipfile(path):
        data = path.read_bytes()
        # Behind the magic number, the protocol and the system's sizes comes the list.
        place = data.index(b"type_sizes")
        place = data.index(b".", place) + 1
        path.write_bytes(data[:place] + bomb + data[place:])
        return bool(bomb)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, bomb if name.endswith("data.pkl") else content)
    return True


def archive_bomb(rng, path):
    """An archive whose files inflate, whose directory is long, or in which two files have one name."""
    if not zipfile.is_zipfile(path):
        return size_bomb(rng, path)
    with zipfile.ZipFile(path) as archive:
        files = [(name, archive.read(name)) for name in archive.namelist()]
    kind = rng.randrange(4)
    if kind == 3:
        entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHH", 1, 0, 0) + bytes(12) + b"x"
        count = 2_000_000
        end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 0, 0)
        path.write_bytes(entry * count + end)
        return True
    name = rng.choice([name for name, _ in files])
    if kind == 2:
        files.append((name, rng.choice((b"", b"x" * 100))))
    with zipfile.ZipFile(path, "w", compresslevel=1) as archive:
        for key, content in files:
            packed = kind < 2 and key == name
            bomb = bytes(100_000_000) if packed and kind == 0 else content
            with suppress(UserWarning):
                archive.writestr(key, bomb, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return True


def directory_bomb(rng, path):
    """A GGUF directory of many keys, long arrays, or counts without end."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def key(kind: int, value: bytes, name: bytes = b"dasheng_audiogen.x") -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    def array(kind: int, count: int, values: bytes) -> bytes:
        return key(9, struct.pack("<IQ", kind, count) + values, rng.choice((b"tokens", b"dasheng_audiogen.x")))

    def head(keys: int, tensors: int = 0) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)

    tensor = text(b"a") + struct.pack("<IQIQ", 1, 2**62, 0, 0)
    path.write_bytes(
        rng.choice(
            (
                lambda: head(1) + array(0, 8_000_000, bytes(8_000_000)),
                lambda: head(1) + array(8, 1_000_000, text(b"") * 1_000_000),
                lambda: head(1) + array(8, 2**60, text(b"")),
                lambda: head(1) + array(4, 2**62, b""),
                lambda: head(1) + array(9, 1, struct.pack("<IQ", 9, 1) * 100_000),
                lambda: head(300_000) + b"".join(key(7, b"\1", b"k%d" % i) for i in range(300_000)),
                lambda: head(60_000) + b"".join(key(7, b"\1", b"k%d" % i) for i in range(60_000)),
                lambda: head(0, 300_000) + tensor * 300_000,
                lambda: head(0, 1) + tensor,
                lambda: head(0, 1) + text(b"a") + struct.pack("<I", 2**31) + bytes(100),
                lambda: head(1) + struct.pack("<Q", 2**62),
                lambda: head(1) + key(4, bytes(4), b"general.alignment"),
                lambda: head(1) + key(10, b"\xff" * 8, b"general.alignment"),
                lambda: head(2**62, 2**62),
            )
        )()
    )
    return True
