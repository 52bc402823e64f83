"""Files that came down damaged, in an older form, or changed under way: read, or refused by their name."""

import argparse
import base64
import json
import os
import random
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mutations
from conftest import GOLDEN, load_model, unprivileged
from dasheng_core import CheckpointError, DashengAudioGen
from dasheng_core.batch.model import fingerprint_model
from dasheng_core.batch.rows import read_rows
from dasheng_core.weights import reading
from dasheng_core.weights.checkpoint import fingerprint, open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES, TEXT_ENCODER_TYPES
from dasheng_core.weights.reading import naming
from graphs import run, text_to_sound
from hostile_files import try_seed
from mutations import FORMS, PARTS, POINTER, make_forms
from tools.comfyui import MODEL_FOLDERS

PROMPT = "<|caption|> A cat meowing softly."


@pytest.fixture
def copy(tmp_path):
    """A copy of the small English checkpoint to damage."""
    shutil.copytree(GOLDEN / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The small checkpoint's parts in every form that is read."""
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="files have no modes on Windows")
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin", "config.json"])
def test_a_file_of_another_user_is_said_to_be_that(name):
    """And not to be fetched again. That user must be able to open the folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for file in {name, "model.safetensors"} if name == "config.json" else {name}:
            shutil.copy(GOLDEN / "tiny" / "audiogen" / "model.safetensors", Path(folder, file))
        os.chmod(Path(folder, name), 0)
        opened = Path(folder, name if name.startswith("model") else "")
        said = f"{name} may not be read by this user: change its perm"
        with unprivileged(), pytest.raises(CheckpointError, match=said):
            open_checkpoint(opened, AUDIOGEN_TYPES)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_damaged_files(forms, full):
    """None ends the process, hangs, runs code or takes memory; what does not load is refused by its name."""
    cases = 1000 if full else 100
    results = try_seed(forms, seed=1, cases=cases)
    assert len(results) == cases
    assert [result for result in results if result["outcome"] not in ("loaded", "refused")] == []
    # A quarter of those that are not made so that nothing may load them.
    may_load = [result for result in results if result["may_load"]]
    assert len(may_load) >= cases / 2 and sum(result["outcome"] == "loaded" for result in may_load) >= len(may_load) / 4


@pytest.mark.parametrize("form", ["published", "zip", "legacy", "sharded", "gguf"])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_weights_stay_mapped(forms, form):
    """Whoever cuts a mapped file ends the process that has it mapped."""
    text_encoder = form if form in ("zip", "legacy") else "published"
    audiogen = forms / f"audiogen-{form}" / ("model.gguf" if form == "gguf" else "")
    model = DashengAudioGen.from_pretrained(
        audiogen, forms / f"text_encoder-{text_encoder}", forms / "audio_tokenizer-published"
    )
    with open("/proc/self/maps") as maps:
        assert str(forms) not in maps.read()
    assert model.latent_channels == 24


@pytest.mark.parametrize(
    "part, file",
    [
        ("audio_tokenizer", "model.safetensors"),
        ("text_encoder", "config.json"),
        ("text_encoder", "tokenizer.json"),
        ("text_encoder", "spiece.model"),
        ("text_encoder", "pytorch_model.bin"),
        ("audiogen", "model.gguf"),
        ("audiogen", "model.safetensors.index.json"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "content, said", [(POINTER, "Git LFS pointer .*: run git lfs pull, or "), (b"", "it is empty")]
)
def test_pointers_and_empty_files_are_named(copy, part, file, content, said):
    if file == "spiece.model":
        (copy / part / "tokenizer.json").unlink()
    elif file.startswith(("pytorch", "model")) and file != "model.safetensors":
        (copy / part / "model.safetensors").unlink()
    (copy / part / file).write_bytes(content)
    paths = {name: copy / name for name in PARTS} | ({part: copy / part / file} if file.endswith(".gguf") else {})
    with pytest.raises(CheckpointError, match=f"{file} is .*{said}"):
        DashengAudioGen.from_pretrained(*paths.values())


def with_metadata(copy, metadata, **changes) -> None:
    """Another audio generator's file in the copy."""
    path = copy / "audiogen" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file({**tensors, **changes}, path, metadata)


@pytest.mark.parametrize("config", ["[]", "null", '"t5"', "{", "[" * 100_000], ids=lambda text: text[:4])
def test_a_config_that_is_no_object(copy, config):
    path = copy / "text_encoder" / "config.json"
    good = path.read_text()
    path.write_text(config)
    with pytest.raises(CheckpointError, match=r"text_encoder.config.json is not a readable config.json \("):
        load_model(copy)
    path.write_text(good)
    with_metadata(copy, {"config": config})
    with pytest.raises(CheckpointError, match="model.safetensors is not a readable safetensors file"):
        load_model(copy)


def test_a_scale_for_the_whole_matrix_is_not_taken_for_one_a_row(copy):
    name = "backbone.mid_block.attn.to_q.weight"
    with_metadata(copy, None, **{name: torch.zeros(48, 48).to(torch.float8_e4m3fn), name + "_scale": torch.tensor(0.1)})
    with pytest.raises(CheckpointError, match=r"model.safetensors: .* with a scale F32 \[\], expected a matrix"):
        load_model(copy)


def test_a_shard_of_another_folder(copy):
    folder = copy / "audiogen"
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../text_encoder/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index.json is not an index of shards .it names files of other folders"):
        load_model(copy)


def test_a_text_encoder_of_another_program(tmp_path):
    file = tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(file, "t5encoder")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    encoder = open_checkpoint(file, TEXT_ENCODER_TYPES)
    assert encoder.config is None
    with pytest.raises(CheckpointError, match="t5.gguf is a text encoder in llama.cpp's GGUF form"):
        DashengAudioGen.from_pretrained(GOLDEN / "tiny" / "audiogen", file, GOLDEN / "tiny" / "audio_tokenizer")


@pytest.mark.parametrize("form", ["published", "legacy", "zip", "another of the same size and time"])
def test_an_encoder_is_not_read_from_a_file_that_was_replaced(copy, form):
    """It is read at the first use; the decoder is of the file as it was. ``cp -p`` and ``rsync -t`` keep size and time."""
    weights = copy / "audio_tokenizer" / "model.safetensors"
    if form in ("legacy", "zip"):
        tensors, weights = load_file(weights), weights.with_name("pytorch_model.bin")
        torch.save(tensors, weights, _use_new_zipfile_serialization=form == "zip")
        weights.with_name("model.safetensors").unlink()
    model, before, stat = load_model(copy), fingerprint(weights), weights.stat()
    content = bytearray(weights.read_bytes())
    if form.startswith("another"):
        # The file systems of Linux tell times some milliseconds apart.
        time.sleep(0.05)
        content[-1] ^= 1
        weights.with_name("other").write_bytes(content)
        os.utime(weights.with_name("other"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(weights.with_name("other"), weights)
    else:
        os.truncate(weights, len(content) // 2)
    assert fingerprint(weights) != before
    with pytest.raises(CheckpointError, match=f"{weights.name} has changed since it was opened: load it again"):
        model.encode(torch.zeros(1, 16000))


def test_a_fingerprint_is_of_all_files_beside(copy):
    """Written again, replaced, or a side file that appears: each is another."""
    weights = copy / "text_encoder" / "model.safetensors"
    seen = [fingerprint(weights)]
    assert fingerprint(weights) == seen[0]
    os.utime(weights, ns=(1, 1))
    seen.append(fingerprint(weights))
    for name in ("config.json", "tokenizer.json", "model.config.json", "model.spiece.model"):
        (copy / "text_encoder" / name).write_text("another one")
        seen.append(fingerprint(weights))
    assert len({str(found) for found in seen}) == len(seen)


# What is no file of a bounded size.

only_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes and devices among its files")


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def as_sparse(path):
    os.truncate(path, 2**31)


@pytest.mark.parametrize(
    "change, said",
    [
        pytest.param(as_pipe, "it is a pipe, expected a regular file", marks=only_posix),
        pytest.param(as_device, "it is a device, expected a regular file", marks=only_posix),
        (as_sparse, "it has 2,147,483,648 bytes, expected at most"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize(
    "part, form, file",
    [
        *((part, "published", "config.json") for part in PARTS),
        ("text_encoder", "published", "tokenizer.json"),
        ("text_encoder", "spiece", "spiece.model"),
        ("audiogen", "sharded", "model.safetensors.index.json"),
        ("audiogen", "published", "model.safetensors"),
        ("audiogen", "zip", "pytorch_model.bin"),
        ("audiogen", "gguf", "model.gguf"),
    ],
    ids=str,
)
def test_only_regular_files_of_a_bounded_size_are_read(copy, forms, part, form, file, change, said):
    if change is as_sparse and file.endswith(("safetensors", "bin", "gguf")):
        pytest.skip("weights may have any size")
    shutil.copytree(forms / f"{part}-{form}", copy / "changed")
    change(copy / "changed" / file)
    paths = {name: copy / name for name in PARTS} | {part: copy / "changed" / FORMS[part, form]}
    with pytest.raises(CheckpointError, match=f"{file} is not an? .*{said}"):
        DashengAudioGen.from_pretrained(*paths.values())


@only_posix
def test_neither_a_fingerprint_nor_scenes_wait_for_a_pipe(copy):
    as_pipe(copy / "text_encoder" / "tokenizer.json")
    assert fingerprint_model(argparse.Namespace(**{part: copy / part for part in PARTS})) is None
    with pytest.raises(OSError, match="tokenizer.json cannot be read .it is a pipe, expected a regular file"):
        next(read_rows(str(copy / "text_encoder" / "tokenizer.json")))


# Sizes and counts are looked at first.


@pytest.mark.parametrize(
    "text, said",
    [
        ("[" + "[]," * 1_300_000 + "[]]", "it has 2,60.,... values, expected at most 2,000,000"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "recursion"),
        ("1" * 5000, "4300"),
        ('{"model_type": "' + "\u202e\\u001b" * 100_000 + '"}', "model_type is .{20,600}, expected"),
    ],
    ids=["values", "depth", "digits", "letters"],
)
@pytest.mark.parametrize("where", ["file", "metadata"])
def test_texts_of_json_out_of_proportion(copy, where, text, said):
    folder = copy / "audiogen"
    if where == "file":
        (folder / "config.json").write_text(text, "utf-8")
    elif "model_type" in said:
        pytest.skip("the type of a file's own config is not asked")
    else:
        with_metadata(copy, {"config": text})
    with pytest.raises(CheckpointError, match=f"audiogen.*{said}") as raised:
        load_model(copy)
    assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()


def test_a_header_of_any_size(copy):
    with_metadata(copy, {"notes": "x" * 2**24})
    with pytest.raises(CheckpointError, match="model.safetensors is not .*its header has 16,.* bytes"):
        load_model(copy)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.", "something else than named tensors: builtins.bytearray"),
        (b"ctorch.storage\nUntypedStorage\n(J\xff\xff\xff\x7ftR.", "named tensors: torch.storage.UntypedStorage"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "named tensors: the instruction SHORT_BINUNICODE"),
        (b"c\x1b[2J" + b"x" * 10**6 + b"\ny\n.", "something else than named tensors: .{0,300}$"),
        # Their hash would take for ever, or the whole stack of the process.
        (b"\x80\x02}K\x01" + b"\x85" * 250_000 + b"K\x01s.", "something else than named tensors"),
        (b"\x80\x02}K\x01q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"K\x01s.", "named tensors"),
        (b"\x80\x02" + b"}" * 400_000 + b".", "more than 300,000 instructions"),
        (b"\x80\x02" + b"}" * 5_000_000 + b".", "list of tensors has more than 4,194,304 bytes"),
        (b"\x80\x02K\x01", "pickle exhausted before seeing STOP"),
    ],
    ids=["bytearray", "storage", "newer", "name", "deep", "wide", "instructions", "bytes", "end"],
)
def test_lists_that_are_no_list_of_tensors(tmp_path, content, said):
    path = tmp_path / "model.bin"
    torch.save({"a": torch.zeros(3)}, path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    # An archive that is packed, too, is none of torch's: what is in it could be of any size.
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, old in files.items():
                archive.writestr(name, content if name.endswith("data.pkl") and packing == zipfile.ZIP_STORED else old)
        reason = said if packing == zipfile.ZIP_STORED else "its files are compressed, which torch does not do"
        with pytest.raises(CheckpointError, match=f"model.bin is not a file of plain tensors.*{reason}"):
            open_checkpoint(path, ())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_writes_of_plain_tensors_is_read(tmp_path, zipped, monkeypatch):
    """Parameters, transposed ones, parts of a storage, two names for one, every dtype, none, and a state dict."""
    whole = torch.arange(24.0).view(4, 6)
    layer = torch.nn.Linear(3, 2)
    tensors = {
        **{"parameter": torch.nn.Parameter(whole), "turned": whole.T, "part": whole[1:, ::2], "number": torch.tensor(3.0)},
        **{"again": whole, "none": torch.zeros(0, 3), "of three": torch.randn(2, 3, 4).permute(2, 0, 1)},
        **{str(dtype): torch.tensor([0, 1, 2]).to(dtype) for dtype in (
            *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
            *(torch.uint8, torch.bool),
        )},
    }  # fmt: skip
    for content in (tensors, layer.state_dict()):
        path = tmp_path / "model.bin"
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        checkpoint = open_checkpoint(path, ())
        assert [*checkpoint.shapes] == [*content]
        for name, tensor in content.items():
            file = checkpoint._sources[name][0]
            found = file.tensor(name)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)
            # In pieces of two numbers, or fewer.
            monkeypatch.setattr(reading, "CONVERTED_BYTES", 16)
            assert torch.equal(file.tensor(name, torch.float64), tensor.to(torch.float64))


@pytest.mark.parametrize(
    "normalizer, said",
    [
        ("AAA=", "map of letters says 0 bytes of 2"),
        ("/////w==", "map of letters says 4,294,967,295 bytes of 4"),
        ("not base64", "base64"),
        ({"type": "Prepend", "prepend": "x"}, "its normalizer is Prepend, which no T5 has: expected Precompiled, "),
        ({"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}, "T5 replaces spaces alone"),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}] * 9}, "its normalizer has 9 parts, expected at most 8"),
    ],
    ids=ascii,
)
def test_normalizers_that_no_t5_has(copy, normalizer, said):
    path = copy / "text_encoder" / "tokenizer.json"
    if isinstance(normalizer, str):
        normalizer = {"type": "Precompiled", "precompiled_charsmap": normalizer}
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "normalizer": normalizer}), "utf-8")
    with pytest.raises(CheckpointError, match=f"tokenizer.json is not a readable tokenizer.json .*{said}"):
        load_model(copy)


def test_maps_of_letters_with_changed_bits(copy):
    """tokenizers panics on each; what still loads reads a text or says whose fault it is."""
    path = copy / "text_encoder" / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    good = base64.b64decode(value["normalizer"]["precompiled_charsmap"])
    rng, refused = random.Random(1), 0
    for _ in range(12):
        bad = bytearray(good)
        for _ in range(20):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        value["normalizer"]["precompiled_charsmap"] = base64.b64encode(bad).decode()
        path.write_text(json.dumps(value), "utf-8")
        try:
            load_model(copy).encode_text(PROMPT)
        except CheckpointError as error:
            refused += "tokenizer.json is not a" in str(error)
    assert refused >= 6


def test_a_panic_of_rust_becomes_an_error_and_ctrl_c_does_not(tmp_path):
    from tokenizers.normalizers import Precompiled

    with pytest.raises(CheckpointError, match="x is not a good file .*: fetch it again"):
        with naming(tmp_path / "x", "a good file"):
            Precompiled(b"\0\0")
    for error in (KeyboardInterrupt, SystemExit, ImportError):
        with pytest.raises(error), naming(tmp_path / "x", "a good file"):
            raise error
    with pytest.raises(CheckpointError, match="x takes more memory to read than there is"):
        with naming(tmp_path / "x", "a good file"):
            raise MemoryError


@pytest.mark.parametrize(
    "part, form, file",
    [
        ("audiogen", "published", "model.safetensors"),
        ("audiogen", "folded", "model.safetensors"),
        ("audiogen", "gguf", "model.gguf"),
        ("text_encoder", "published", "model.safetensors"),
        ("audio_tokenizer", "legacy", "pytorch_model.bin"),
    ],
    ids=str,
)
def test_weights_of_zeros_are_named(copy, forms, part, form, file):
    """A download that made room for the whole file, and was stopped."""
    shutil.copytree(forms / f"{part}-{form}", copy / "cut")
    path = copy / "cut" / file
    opened = open_checkpoint(path, ())
    size, data = path.stat().st_size, path.read_bytes()
    # The tensors alone: directories stand in front of them.
    start = size - sum(tensor.nbytes for name in opened.shapes if (tensor := stored(opened, name)) is not None)
    kept = max(start, size // 4)
    path.write_bytes(data[:kept] + bytes(size - kept))
    paths = {name: copy / name for name in PARTS} | {part: copy / "cut" / FORMS[part, form]}
    with pytest.raises(CheckpointError, match="cut.*: all values of .* are zero, expected weights: .*fetch it again"):
        model = DashengAudioGen.from_pretrained(*paths.values())
        model.encode(torch.zeros(1, 16000))


def stored(checkpoint, name):
    tensor = checkpoint.tensor(name)
    return tensor.quantized if tensor.is_quantized else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


# The same within a server.

LIVE = [
    *(("text_encoders", "published", "tokenizer.json", mutations.tokenizer_bomb) for _ in range(5)),
    ("text_encoders", "spiece", "spiece.model", mutations.tokenizer_bomb),
    *(("text_encoders", form, "pytorch_model.bin", mutations.pickle_bomb) for form in ("zip", "legacy")),
    ("text_encoders", "zip", "pytorch_model.bin", mutations.archive_bomb),
    ("diffusion_models", "gguf", "model.gguf", mutations.directory_bomb),
    ("diffusion_models", "published", "model.safetensors", mutations.size_bomb),
    ("diffusion_models", "published", "config.json", mutations.size_bomb),
    ("vae", "published", "model.safetensors", mutations.tail_of_zeros),
    ("diffusion_models", "published", "config.json", mutations.no_regular_file),
    ("text_encoders", "published", "tokenizer.json", mutations.no_regular_file),
    ("vae", "published", "model.safetensors", mutations.no_regular_file),
]


@only_posix
def test_a_server_makes_a_good_sound_after_each(server, forms):
    refused = 0
    for number, (kind, form, file, bomb) in enumerate(LIVE):
        made = []
        for source in (forms / f"{MODEL_FOLDERS[kind]}-{form}").iterdir():
            is_weights = source.name.startswith(("model.", "pytorch_model."))
            target = server.base / "models" / kind / f"bomb{number}{source.suffix if is_weights else '.' + source.name}"
            shutil.copy(source, target)
            made.append(target)
            if is_weights:
                name = target.name
            if source.name == file:
                must_fail = bomb(random.Random(number), target)
        failed = run(server, text_to_sound(number, **{kind: name}))
        assert failed.events[-1][0] == "execution_error" or not must_fail, (number, kind, file)
        if failed.events[-1][0] == "execution_error":
            assert f"bomb{number}" in failed.error() and "\n" not in failed.error()
            refused += 1
        ((samples, _),) = run(server, text_to_sound(1000 + number)).audio()
        assert len(samples) == 5 * 640 and samples.isfinite().all() and samples.abs().max() > 0
        for path in (*made, server.base / "models" / kind / "pipe"):
            if path.is_dir():
                path.rmdir()
            elif path.is_symlink() or path.exists():
                path.unlink()
    assert refused >= len(LIVE) - 6
