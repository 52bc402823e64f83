"""Changes that make a model file damaged or hostile, drawn from a seed."""

import copy
import json
import os
import pickle
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

from bombs import (
    archive_bomb,
    directory_bomb,
    no_regular_file,
    pickle_bomb,
    size_bomb,
    tail_of_zeros,
    tokenizer_bomb,
)

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
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "4", "x" * 5000, "\ud800",
    "<|caption|>", [], [1], [[]], ["a", "a"], [None], {}, {"a": {"b": []}}, "../../etc/passwd", "\0",
)  # fmt: skip
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4371049000\n"


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


def junk(rng):
    return copy.deepcopy(rng.choice(JUNK))


# Mutations: each changes one file.


def flip_bits(rng, path, end=None):
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 4, 30))):
        position = rng.randrange(min(end or len(data), len(data)))
        data[position] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_bits_of_the_head(rng, path):
    flip_bits(rng, path, rng.choice((8, 64, 1024, 20000)))


def overwrite(rng, path):
    """A stretch of it with zeros, ones, noise, or another stretch; numbers that are sizes with large ones."""
    data = bytearray(path.read_bytes())
    length = rng.choice((1, 4, 8, 8, 100, 5000))
    start = rng.randrange(rng.choice((100, 2000, len(data))))
    other = rng.randrange(len(data))
    data[start : start + length] = rng.choice(
        (
            bytes(length),
            b"\xff" * length,
            rng.randbytes(length),
            data[other : other + length],
            b"\xff" * (length - 1) + b"\x0f",
        )
    )
    path.write_bytes(data)


def resize(rng, path):
    data = path.read_bytes()
    cut = rng.randrange(rng.choice((16, len(data))) + 1)
    path.write_bytes(
        rng.choice((data[:cut], data[cut:], data + rng.randbytes(100), data[:cut] + rng.randbytes(8) + data[cut:], b""))
    )


def replace_file(rng, path):
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(POINTER)
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        path.unlink()
    elif kind == 3:
        path.write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    elif kind == 4:
        path.write_bytes(rng.randbytes(rng.choice((1, 100, 10000))))
    else:
        others = sorted(other for other in path.parent.parent.rglob("*") if other.is_file())
        path.write_bytes(rng.choice(others).read_bytes())


def change_json(rng, value, changes=1):
    """Replace, drop, double or rename something anywhere in a JSON value."""
    for _ in range(changes):
        holder = value
        while True:
            if not isinstance(holder, dict | list) or not holder:
                return value
            key = rng.choice(sorted(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
            inner = holder[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
                holder = inner
                continue
            break
        what = rng.randrange(5)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "a.b.c"))] = holder.pop(key)
        elif what == 2 and isinstance(inner, int | float):
            holder[key] = rng.choice(
                (inner + 1, -inner, inner * 2, inner * 1000, float(min(inner, 10**300)), str(inner))
            )
        elif what == 3 and isinstance(holder, list):
            holder.append(rng.choice((inner, junk(rng))))
        else:
            holder[key] = junk(rng)
    return value


def change_json_file(rng, path):
    kind = rng.randrange(8)
    if kind == 0:
        text = json.dumps(junk(rng))
    elif kind == 1:
        text = rng.choice(("[" * 100_000, '{"a":' * 50_000, "{}", '{"model_type": "t5"}', "1" * 10_000, "\ufeff{}"))
    else:
        text = json.dumps(change_json(rng, json.loads(path.read_text("utf-8")), rng.choice((1, 1, 3))))
    path.write_text(text, "utf-8")


def change_header(rng, path):
    """Of a safetensors file: its entries; with a length that fits or does not."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 1, 5))):
        # What was changed before may be no entry any more.
        with suppress(TypeError, ValueError, LookupError, AttributeError):
            change_entry(rng, header)
    text = json.dumps(header).encode()
    told = rng.choice((len(text),) * 8 + (len(text) - 1, len(text) + 9, 0, 2**40, 2**64 - 1))
    path.write_bytes(told.to_bytes(8, "little") + text + data[8 + length :])


def change_entry(rng, header):
    """A name, dtype, shape, offset, or the metadata."""
    name = rng.choice(sorted(header))
    entry, metadata = header[name], header.get("__metadata__")
    what = rng.randrange(9)
    if what == 0:
        del header[name]
    elif what == 1:
        header[name + rng.choice(("x", ".0", "_scale"))] = header.pop(name)
    elif what == 2:
        other = rng.choice(sorted(header))
        header[name], header[other] = header[other], header[name]
    elif what == 3:
        config = rng.choice(("not json", "[1,2]", "null", "{}", "[" * 50_000))
        header["__metadata__"] = rng.choice(({"config": config}, {"a": "b"}, junk(rng)))
    elif what == 4 and isinstance(metadata, dict):
        # An earlier change may have left no JSON there.
        with suppress(ValueError, RecursionError):
            metadata["config"] = json.dumps(change_json(rng, json.loads(metadata["config"]), 2))
    elif not isinstance(entry, dict) or "dtype" not in entry:
        header[name] = junk(rng)
    elif what == 5:
        codes = ("F64", "F32", "F16", "BF16", "I64", "I32", "U32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "C64", "", None)
        entry["dtype"] = rng.choice(codes)
    elif what == 6:
        shape = entry["shape"]
        others = ([1, *shape], [0, *shape], [0, 2**40], [-1], [2**63], [])
        entry["shape"] = rng.choice((shape[::-1], shape + [1], shape[1:], *others, junk(rng)))
    elif what == 7:
        start, end = entry["data_offsets"]
        move = rng.choice((1, 4, -4, 2**20, 2**62, -(2**62)))
        others = ([start + move, end + move], [start, end + move], [end, start], [start])
        entry["data_offsets"] = rng.choice((*others, junk(rng)))
    else:
        change_json(rng, entry)


class Code:
    """Runs when it is unpickled without care."""

    def __init__(self, marker, way):
        self.marker, self.way = str(marker), way

    def __reduce__(self):
        if self.way == 0:
            return os.system, (f"touch {self.marker}",)
        if self.way == 1:
            return open, (self.marker, "w")
        return exec, (f"open({self.marker!r}, 'w')",)


def change_pickle(rng, path):
    """Another object in torch's pickle: code, other containers, tensors that are not what they claim."""
    import torch

    tensors = torch.load(path, weights_only=True)
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    marker = path.parent.parent / "code_was_run"
    zipped = zipfile.is_zipfile(path)
    saved = rng.choice(
        (
            lambda: {**tensors, name: Code(marker, rng.randrange(3))},
            lambda: Code(marker, rng.randrange(3)),
            lambda: {Code(marker, 1): tensor},
            lambda: {"state_dict": tensors},
            lambda: [*tensors.values()],
            lambda: tensor,
            lambda: {**tensors, rng.choice((5, None, (), "x")): tensor},
            lambda: {**tensors, name: rng.choice((5, None, "x", [tensor], tensor.tolist()))},
            lambda: {**tensors, name: tensor.flatten()[:1].expand(2**20, 2**20)},
            lambda: {**tensors, name: tensor.flatten()[:1].expand(tensor.shape)},
            lambda: {**tensors, name: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor},
            lambda: {**tensors, name: tensor.to_sparse() if tensor.ndim else tensor},
            lambda: {**tensors, name: tensor.to("meta")},
            lambda: {**tensors, name: tensor.to(rng.choice((torch.complex64, torch.int32, torch.bool, torch.float64, torch.float16)))},
            lambda: {**tensors, name: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)},
            lambda: {**tensors, name: tensor.reshape(rng.choice(((-1,), (1, *tensor.shape))))},
            lambda: {**tensors, name: tensor.T if tensor.ndim == 2 else tensor},
            lambda: {**tensors, name: torch.full_like(tensor, rng.choice((0, float("nan"), float("inf"), 1e30))) if tensor.is_floating_point() else tensor},
            lambda: {key: value for key, value in tensors.items() if key != name},
        )
    )()  # fmt: skip
    if rng.random() < 0.1:
        path.write_bytes(pickle.dumps(saved))
    else:
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)


def change_archive(rng, path):
    """The stream of instructions within the zip archive, or its list of files."""
    if not zipfile.is_zipfile(path):
        return flip_bits(rng, path, 3000)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(files))
    stream = next(key for key in files if key.endswith("data.pkl"))
    if rng.random() < 0.7:
        data = bytearray(files[stream])
        for _ in range(rng.choice((1, 2, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        files[stream] = bytes(data)
    elif rng.random() < 0.5:
        del files[name]
    else:
        files[name] = files[name][: rng.randrange(len(files[name]) + 1)]
    with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,))) as archive:
        for key, value in files.items():
            archive.writestr(key, value)


def change_gguf(rng, path):
    """Counts, lengths, types, dimensions and offsets of its directory."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 3))):
        # The directory is far smaller than the tensors.
        start = rng.choice((8, 16, 24, rng.randrange(24, 1500), rng.randrange(24, len(data) // 8)))
        width = rng.choice((1, 4, 8))
        number = rng.choice((0, 1, 2, 5, 8, 9, 12, 255, 2**31, 2**32 - 1, 2**62, 2**64 - 1)) % 256**width
        data[start : start + width] = number.to_bytes(width, "little")
    path.write_bytes(data)


ANY_FILE = (flip_bits, flip_bits, flip_bits, flip_bits_of_the_head, overwrite, resize, replace_file)
BY_SUFFIX = {
    ".safetensors": (change_header,) * 5,
    ".json": (change_json_file,) * 6,
    ".bin": (change_pickle, change_pickle, change_pickle, change_archive, change_archive),
    ".gguf": (change_gguf,) * 5,
    ".model": (),
}
# The same of what is made to do harm. Windows has no pipes and devices among its files.
BOMBS_FOR_ANY = (size_bomb, size_bomb) if os.name == "nt" else (size_bomb, size_bomb, no_regular_file, no_regular_file)
BOMBS = {
    ".safetensors": (tail_of_zeros, tail_of_zeros),
    ".json": (),
    ".bin": (tail_of_zeros, pickle_bomb, pickle_bomb, pickle_bomb, archive_bomb, archive_bomb),
    ".gguf": (tail_of_zeros, directory_bomb, directory_bomb, directory_bomb),
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
    files = sorted(
        path
        for path in (folder / part).iterdir()
        if path.name not in ("tokenizer_config.json", "special_tokens_map.json")
    )
    file = rng.choice(files)
    bombs = BOMBS.get(file.name, BOMBS[file.suffix])
    mutations = (*ANY_FILE, *BY_SUFFIX[file.suffix]) if rng.random() < 0.5 else (*BOMBS_FOR_ANY, *bombs)
    mutation = rng.choice(mutations)
    refused = mutation(rng, file) is True
    return f"{part} {form} {file.name} {mutation.__name__}", paths, folder / part, refused
