"""Changes that make a model file damaged or hostile, drawn from a seed. Those of BOMBS are made to end, fill or stall whoever reads it."""

import base64
import copy
import json
import os
import random
import shutil
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / "golden" / "tiny"
PARTS = ("audiogen", "text_encoder", "audio_tokenizer")
# Part and form -> what is opened: a folder, or a lone file in it.
FORMS = {
    ("audiogen", "published"): "",
    ("audiogen", "zip"): "",
    ("audiogen", "legacy"): "",
    ("audiogen", "sharded"): "",
    ("audiogen", "gguf"): "model.gguf",
    ("audiogen", "folded"): "model.safetensors",
    ("text_encoder", "published"): "",
    ("text_encoder", "zip"): "",
    ("text_encoder", "legacy"): "",
    ("text_encoder", "spiece"): "",
    ("audio_tokenizer", "published"): "",
    ("audio_tokenizer", "legacy"): "",
    ("audio_tokenizer", "gguf"): "model.gguf",
}
JUNK = (
    None, True, 0, -1, 3, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "4", "x" * 5000, "\ud800",
    "<|caption|>", [], [[]], ["a", "a"], {}, {"a": {"b": []}}, "../../etc/passwd", "\0",
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4371049000\n"
# Larger than any test may take of memory, and nothing on disk.
SPARSE = 2**31


def make_forms(base: Path) -> None:
    """Each part of the golden checkpoint in each of its forms, under ``base``."""
    import sentencepiece
    import torch
    from safetensors.torch import load_file, save_file

    from dasheng_core.repack import repack_checkpoint
    from dasheng_core.weights.checkpoint import open_checkpoint
    from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES
    from tools.write_gguf import write_gguf

    for part, form in FORMS:
        folder = base / f"{part}-{form}"
        shutil.copytree(GOLDEN / part, folder)
        weights = folder / "model.safetensors"
        if form in ("zip", "legacy"):
            zipped = form == "zip"
            torch.save(load_file(weights), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        elif form == "sharded":
            tensors = load_file(weights)
            shards = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(tensors)}
            for shard in {*shards.values()}:
                save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        elif form == "gguf":
            types = AUDIOGEN_TYPES if part == "audiogen" else AUDIO_TOKENIZER_TYPES
            write_gguf(open_checkpoint(folder, types), folder / "model.gguf", "Q8_0")
        elif form == "folded":
            repack_checkpoint(folder, base / "folded.safetensors", "fp8")
            os.replace(base / "folded.safetensors", weights)
        elif form == "spiece":
            (folder / "tokenizer.json").unlink()
            corpus = base / "corpus.txt"
            corpus.write_text("a cat meowing softly\nrain on a tin roof\nthunder in the distance\n" * 50)
            sentencepiece.SentencePieceTrainer.train(
                input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=50, hard_vocab_limit=False, pad_id=0,
                eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, minloglevel=2,
            )  # fmt: skip
            (folder / "spiece.vocab").unlink()
        if form in ("zip", "legacy", "sharded", "gguf"):
            weights.unlink()
        if form in ("gguf", "folded"):
            (folder / "config.json").unlink()


def archived(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing, compresslevel=1) as new:
        for name, content in files.items():
            new.writestr(name, content)


# Damage: each changes one file.


def flip_bits(rng, path):
    data = bytearray(path.read_bytes())
    end = rng.choice((len(data), len(data), 8, 64, 1024, 20000))
    for _ in range(rng.choice((1, 1, 4, 30))):
        data[rng.randrange(min(end, len(data)))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def overwrite(rng, path):
    """A stretch of it with zeros, ones, noise, or another stretch; numbers that are sizes with large ones."""
    data = bytearray(path.read_bytes())
    length = rng.choice((1, 4, 8, 8, 100, 5000))
    start, other = rng.randrange(rng.choice((100, 2000, len(data)))), rng.randrange(len(data))
    same = data[other : other + length]
    others = (bytes(length), b"\xff" * length, rng.randbytes(length), same, b"\xff" * (length - 1) + b"\x0f")
    data[start : start + length] = rng.choice(others)
    path.write_bytes(data)


def resize(rng, path):
    data = path.read_bytes()
    cut = rng.randrange(rng.choice((16, len(data))) + 1)
    longer = data[:cut] + rng.randbytes(8) + data[cut:]
    path.write_bytes(rng.choice((data[:cut], data[cut:], data + rng.randbytes(100), longer, b"")))


def replace_file(rng, path):
    kind = rng.randrange(5)
    if kind in (0, 1):
        path.unlink()
        if kind == 1:
            path.mkdir()
        return
    others = sorted(other for other in path.parent.parent.rglob("*") if other.is_file())
    noise, page = rng.randbytes(rng.choice((1, 10000))), b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    path.write_bytes(rng.choice((POINTER, page, noise, rng.choice(others).read_bytes())))


def change_json(rng, value, changes=1):
    """Replace, drop, double or rename something anywhere in a JSON value."""
    for _ in range(changes):
        holder = value
        while True:
            if not isinstance(holder, dict | list) or not holder:
                return value
            key = rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            inner = holder[key]
            if not (isinstance(inner, dict | list) and inner and rng.random() < 0.8):
                break
            holder = inner
        what = rng.randrange(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "a.b.c"))] = holder.pop(key)
        elif what == 2 and isinstance(inner, int | float):
            holder[key] = rng.choice((inner + 1, -inner, inner * 1000, float(min(inner, 10**300)), str(inner)))
        elif what == 3 and isinstance(holder, list):
            holder.append(inner)
        else:
            holder[key] = copy.deepcopy(rng.choice(JUNK))
    return value


def change_json_file(rng, path):
    kind = rng.randrange(8)
    text = json.dumps(rng.choice(JUNK))
    if kind == 1:
        text = rng.choice(("[" * 100_000, '{"a":' * 50_000, "{}", '{"model_type": "t5"}', "1" * 10_000, "\ufeff{}"))
    elif kind > 1:
        text = json.dumps(change_json(rng, json.loads(path.read_text("utf-8")), rng.choice((1, 1, 3))))
    path.write_text(text, "utf-8")


def change_header(rng, path):
    """Of a safetensors file: its entries; with a length that fits or does not."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 1, 5))):
        # What was changed before may be no entry any more.
        with suppress(TypeError, ValueError, LookupError, AttributeError, RecursionError):
            change_entry(rng, header)
    text = json.dumps(header).encode()
    told = rng.choice((len(text),) * 8 + (len(text) - 1, len(text) + 9, 0, 2**40, 2**64 - 1))
    path.write_bytes(told.to_bytes(8, "little") + text + data[8 + length :])


def change_entry(rng, header):
    """A name, dtype, shape, offset, or the metadata."""
    name, other = rng.choice(sorted(header)), rng.choice(sorted(header))
    entry, metadata = header[name], header.get("__metadata__")
    what = rng.randrange(9)
    if what == 0:
        del header[name]
    elif what == 1:
        header[name + rng.choice(("x", ".0", "_scale"))] = header.pop(name)
    elif what == 2:
        header[name], header[other] = header[other], header[name]
    elif what == 3:
        config = rng.choice(("not json", "[1,2]", "{}", "[" * 50_000))
        header["__metadata__"] = rng.choice(({"config": config}, {"a": "b"}, *JUNK))
    elif what == 4 and isinstance(metadata, dict):
        metadata["config"] = json.dumps(change_json(rng, json.loads(metadata["config"]), 2))
    elif what == 5:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U32", "U8", "BOOL", "F8_E4M3", "C64", "", None))
    elif what == 6:
        shape = entry["shape"]
        entry["shape"] = rng.choice((shape[::-1], shape + [1], [0, *shape], [0, 2**40], [-1], [2**63], [], *JUNK))
    elif what == 7:
        start, end = entry["data_offsets"]
        move = rng.choice((1, 4, -4, 2**20, 2**62, -(2**62)))
        others = ([start + move, end + move], [start, end + move], [end, start], [start], rng.choice(JUNK))
        entry["data_offsets"] = rng.choice(others)
    else:
        change_json(rng, entry)


class Code:
    """Runs when it is unpickled without care."""

    def __init__(self, marker, way):
        self.marker, self.way = str(marker), way

    def __reduce__(self):
        if self.way == 0:
            return os.system, (f"touch {self.marker}",)
        return (open, (self.marker, "w")) if self.way == 1 else (exec, (f"open({self.marker!r}, 'w')",))


def change_pickle(rng, path):
    """Another object in torch's pickle: code, other containers, tensors that are not what they claim."""
    import torch

    tensors = torch.load(path, weights_only=True)
    name = rng.choice(sorted(tensors))
    tensor, code = tensors[name], Code(path.parent.parent / "code_was_run", rng.randrange(3))
    dtypes = torch.complex64, torch.int32, torch.bool, torch.float64, torch.float16
    instead = (
        lambda: code,
        lambda: rng.choice((5, None, "x", [tensor], tensor.tolist())),
        lambda: tensor.flatten()[:1].expand(2**20, 2**20),
        lambda: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
        lambda: tensor.to_sparse() if tensor.ndim else tensor,
        lambda: tensor.to("meta"),
        lambda: tensor.to(rng.choice(dtypes)),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.reshape(rng.choice(((-1,), (1, *tensor.shape)))),
        lambda: tensor.T if tensor.ndim == 2 else tensor,
        lambda: tensor * rng.choice((0, float("nan"), float("inf"), 1e30)),
    )
    saved = rng.choice(
        (code, {code: tensor}, {"state_dict": tensors}, [*tensors.values()], tensor, {**tensors, None: tensor})
        + tuple({**tensors, name: make()} for make in instead)
    )
    torch.save(saved, path, _use_new_zipfile_serialization=zipfile.is_zipfile(path))


def change_archive(rng, path):
    """The stream of instructions within the zip archive, or its list of files."""
    if not zipfile.is_zipfile(path):
        return flip_bits(rng, path)
    files = archived(path)
    name, stream = rng.choice(sorted(files)), next(key for key in files if key.endswith("data.pkl"))
    if rng.random() < 0.7:
        data = bytearray(files[stream])
        for _ in range(rng.choice((1, 2, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        files[stream] = bytes(data)
    elif rng.random() < 0.5:
        del files[name]
    else:
        files[name] = files[name][: rng.randrange(len(files[name]) + 1)]
    archive(path, files)


def change_gguf(rng, path):
    """Counts, lengths, types, dimensions and offsets of its directory."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3))):
        # The directory is far smaller than the tensors.
        start = rng.choice((8, 16, 24, rng.randrange(24, 1500), rng.randrange(24, len(data) // 8)))
        width = rng.choice((1, 4, 8))
        number = rng.choice((0, 1, 2, 8, 12, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1)) % 256**width
        data[start : start + width] = number.to_bytes(width, "little")
    path.write_bytes(data)


# Harm: each returns whether the file must be refused, or may load as well.


def no_regular_file(rng, path):
    """A pipe, a device, a folder, or a link to one of them or to itself."""
    path.unlink()
    kind = rng.choice(("pipe", "link to a pipe", "/dev/zero", "/dev/zero", "/dev/full", "folder", "loop"))
    if kind == "folder":
        path.mkdir()
    elif "pipe" in kind:
        os.mkfifo(path if kind == "pipe" else path.with_name("pipe"))
    if not path.exists():
        path.symlink_to({"loop": path.name, "link to a pipe": path.with_name("pipe")}.get(kind, kind))
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
    if rng.random() < 0.2 or path.suffix in (".bin", ".gguf"):
        os.truncate(path, SPARSE)
        # A list of tensors at the start is whole.
        return path.suffix in (".json", ".model")
    if path.suffix == ".model":
        # Fields of two bytes, or one that claims more than there is.
        path.write_bytes(rng.choice((b"\x08\x01" * 2**23, b"\x1a\xff\xff\xff\xff\x07", b"\x1a" + b"\xff" * 12)))
        return True
    text = rng.choice(
        (
            "[" + "[]," * rng.choice((1_000_000, 10_000_000)) + "[]]",
            '{"a":' * 700_000 + "1" + "}" * 700_000,
            '{"dit_depth":"' + "x" * rng.choice((4_000_000, 50_000_000)) + '"}',
            "1" * rng.choice((4_000, 4_000_000)),
        )
    )
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
    # An object beside a config.json of its own may be one of other keys.
    return is_config and not text.startswith('{"dit')


def map_of_letters(rng, good: bytes) -> tuple[bytes, bool]:
    """A map of letters that is not as it was."""
    data, kind = bytearray(good), rng.randrange(6)
    size = int.from_bytes(data[:4], "little")
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
    # Each unit leads as far as it can, or anywhere; or no letter behind them is text.
    units = rng.choice((b"\xff\xff\xff\x7f" * (size // 4), b"\x61\xff\xff\x7f" * (size // 4), rng.randbytes(size)))
    letters = b"\x80" * (len(data) - 4 - size)
    return bytes(data[:4] + (units + data[4 + size :] if kind == 4 else data[4 : 4 + size] + letters)), True


# Sections that tokenizers reads and no T5 has.
ENDLESS = {"Regex": "(a|a|aa)+$|(\\s*)*x"}
TEMPLATE = {"type": "TemplateProcessing", "pair": []}
ODD_PARTS = (
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 100_000}},
    {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    {"normalizer": {"type": "Replace", "pattern": ENDLESS, "content": ""}},
    {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000}},
    {"pre_tokenizer": {"type": "Split", "pattern": ENDLESS, "behavior": "Isolated", "invert": False}},
    {"model": {"type": "WordPiece", "unk_token": "x", "vocab": {"a": 0}, "max_input_chars_per_word": 2**60}},
    {"model": {"type": "Unigram", "unk_id": 2**60, "vocab": [["a", 0.0]]}},
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")], ["", -1.0]]}},
    {"decoder": {"type": "Replace", "pattern": ENDLESS, "content": "a"}},
    {
        "post_processor": {
            **TEMPLATE,
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 100_000,
            "special_tokens": {},
        }
    },
)


def tokenizer_bomb(rng, path):
    """Another map of letters, or parts that no T5 has."""
    if path.suffix == ".model":
        data = bytearray(path.read_bytes())
        # T5's rule begins so: a double array of 177 kB or a little more.
        place = data.index(b"nmt_nfkc") + len(b"nmt_nfkc\x12")
        for _ in range(rng.choice((1, 20, 2000))):
            data[rng.randrange(place, min(place + 200_000, len(data)))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        return False
    value, refused = json.loads(path.read_text("utf-8")), True
    good = json.dumps(value["normalizer"])
    if rng.random() < 0.5:
        rule = value["normalizer"]
        rule = rule if rule["type"] == "Precompiled" else rule["normalizers"][0]
        changed, refused = map_of_letters(rng, base64.b64decode(rule["precompiled_charsmap"]))
        rule["precompiled_charsmap"] = base64.b64encode(changed).decode()
    else:
        value.update(rng.choice(ODD_PARTS))
    text = json.dumps(value)
    if rng.random() < 0.2 and refused:
        # Python reads the last of two keys; the good one stands behind.
        text, refused = text[:-1] + f', "normalizer": {good}' + "}", False
    path.write_text(text, "utf-8")
    return refused


def long_text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def long_number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


STORAGE = b"(" + long_text("storage") + b"ctorch\nFloatStorage\n" + long_text("0") + long_text("cpu")
# Pickles that are no list of tensors.
LISTS = (
    b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
    b"cos\nsystem\n(" + long_text("true") + b"tR.",
    b"ctorch.storage\nUntypedStorage\n(J\xff\xff\xff\x7ftR.",
    b"\x80\x02}K\x01" + b"\x85" * 300_000 + b"K\x01s.",
    b"\x80\x02}K\x01q\0" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60)) + b"K\x01s.",
    b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    b"\x80\x02" + b"}" * 1_500_000 + b".",
    b"\x80\x02" + b"(" * 900_000 + b".",
    b"\x80\x02X\xff\xff\xff\x7f.",
    b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b".",
    b"\x80\x02c" + b"a" * 3_000_000 + b"\nb\n.",
    # A tensor that is longer than what is stored of it.
    *(
        b"\x80\x02}" + long_text("shared.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE
        + long_number(count) + b"tQK\0" + long_number(2**40) + b"\x85K\x01\x85\x89NtRs."
        for count in (4, 2**40)
    ),
    b"\x80\x02]q\0h\0a.",
    b"",
)  # fmt: skip


def pickle_bomb(rng, path):
    """Another list in a good file of either format."""
    bomb = rng.choice(LISTS)
    if zipfile.is_zipfile(path):
        archive(path, {name: bomb if name.endswith("data.pkl") else old for name, old in archived(path).items()})
        return True
    data = path.read_bytes()
    # Behind the magic number, the protocol and the system's sizes comes the list.
    place = data.index(b".", data.index(b"type_sizes")) + 1
    path.write_bytes(data[:place] + bomb + data[place:])
    return bool(bomb)


def archive_bomb(rng, path):
    """An archive whose files inflate, or whose directory is long."""
    if not zipfile.is_zipfile(path):
        return size_bomb(rng, path)
    files = archived(path)
    if rng.random() < 0.3:
        entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHH", 1, 0, 0) + bytes(12) + b"x"
        end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 2_000_000 * len(entry), 0, 0)
        path.write_bytes(entry * 2_000_000 + end)
    else:
        archive(path, {**files, rng.choice([*files]): bytes(100_000_000)}, zipfile.ZIP_DEFLATED)
    return True


def directory_bomb(rng, path):
    """A GGUF directory of many keys, long arrays, or counts without end."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    def key(kind: int, value: bytes, name: bytes = b"dasheng_audiogen.x") -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    def array(kind: int, count: int, values: bytes) -> bytes:
        return key(9, struct.pack("<IQ", kind, count) + values, rng.choice((b"tokens", b"dasheng_audiogen.x")))

    def keys(count: int) -> bytes:
        return b"".join(key(7, b"\1", b"k%d" % i) for i in range(count))

    tensor = text(b"a") + struct.pack("<IQIQ", 1, 2**62, 0, 0)
    # How many tensors and keys it says, and what follows.
    tensors, count, rest = rng.choice(
        (
            (0, 1, lambda: array(0, 8_000_000, bytes(8_000_000))),
            (0, 1, lambda: array(8, 1_000_000, text(b"") * 1_000_000)),
            (0, 1, lambda: array(8, 2**60, text(b""))),
            (0, 1, lambda: array(4, 2**62, b"")),
            (0, 1, lambda: array(9, 1, struct.pack("<IQ", 9, 1) * 100_000)),
            (0, 300_000, lambda: keys(300_000)),
            (0, 60_000, lambda: keys(60_000)),
            (300_000, 0, lambda: tensor * 300_000),
            (1, 0, lambda: tensor),
            (1, 0, lambda: text(b"a") + struct.pack("<I", 2**31) + bytes(100)),
            (0, 1, lambda: struct.pack("<Q", 2**62)),
            (0, 1, lambda: key(10, b"\xff" * 8, b"general.alignment")),
            (2**62, 2**62, bytes),
        )
    )
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + rest())
    return True


ANY_FILE = (flip_bits, flip_bits, flip_bits, flip_bits, overwrite, resize, replace_file)
BY_SUFFIX = {
    ".safetensors": (change_header,) * 5,
    ".json": (change_json_file,) * 6,
    ".bin": (change_pickle,) * 3 + (change_archive,) * 2,
    ".gguf": (change_gguf,) * 5,
    ".model": (),
}
# Windows has no pipes and devices among its files.
BOMBS_FOR_ANY = (size_bomb,) * 2 + (no_regular_file,) * (0 if os.name == "nt" else 2)
BOMBS = {
    ".safetensors": (tail_of_zeros,) * 2,
    ".json": (),
    ".bin": (tail_of_zeros, *(pickle_bomb,) * 3, *(archive_bomb,) * 2),
    ".gguf": (tail_of_zeros, *(directory_bomb,) * 3),
    ".model": (tokenizer_bomb,) * 3,
    "tokenizer.json": (tokenizer_bomb,) * 8,
}


def make_case(base: Path, seed: int, case: int, folder: Path) -> tuple[str, dict[str, Path], Path, bool]:
    """The case's text, what to open for each part, the folder of the file that is not as it was, and if it must not load."""
    rng = random.Random(f"{seed}/{case}")
    part, form = rng.choice(sorted(FORMS))
    paths = {other: base / f"{other}-published" for other in PARTS}
    shutil.copytree(base / f"{part}-{form}", folder / part)
    paths[part] = folder / part / FORMS[part, form]
    unread = ("tokenizer_config.json", "special_tokens_map.json")
    file = rng.choice(sorted(path for path in (folder / part).iterdir() if path.name not in unread))
    bombs = BOMBS.get(file.name, BOMBS[file.suffix])
    mutation = rng.choice((*ANY_FILE, *BY_SUFFIX[file.suffix]) if rng.random() < 0.5 else (*BOMBS_FOR_ANY, *bombs))
    refused = mutation(rng, file) is True
    return f"{part} {form} {file.name} {mutation.__name__}", paths, folder / part, refused
