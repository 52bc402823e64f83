"""Files that came down damaged, in an older form, or changed under way: read, or refused by their name."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, load_model, unprivileged
from dasheng_core import CheckpointError, DashengAudioGen
from dasheng_core.weights.checkpoint import fingerprint, open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES, TEXT_ENCODER_TYPES
from hostile_files import try_seed
from mutations import PARTS, POINTER, make_forms

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
    """And not to be fetched again."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        shutil.copy(GOLDEN / "tiny" / "audiogen" / "model.safetensors", folder / name)
        if name == "config.json":
            shutil.copy(GOLDEN / "tiny" / "audiogen" / "model.safetensors", folder)
            (folder / "model.safetensors").chmod(0o644)
        (folder / name).chmod(0)
        with (
            unprivileged(),
            pytest.raises(CheckpointError, match=f"{name} may not be read by this user: change its perm"),
        ):
            open_checkpoint(folder / name if name.startswith("model") else folder, AUDIOGEN_TYPES)
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_damaged_files(forms):
    """None ends the process, hangs, runs code or takes memory; what does not load is refused by its name."""
    results = try_seed(forms, seed=1, cases=1000)
    assert len(results) == 1000
    assert [result for result in results if result["outcome"] not in ("loaded", "refused")] == []
    assert sum(result["outcome"] == "loaded" for result in results) >= 200


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_both_forms_of_a_bin_are_read(forms, tiny, form):
    tokenizer = forms / f"audio_tokenizer-{'legacy' if form == 'legacy' else 'published'}"
    model = DashengAudioGen.from_pretrained(forms / f"audiogen-{form}", forms / f"text_encoder-{form}", tokenizer)
    for ours, expected in (
        (model.backbone, tiny.backbone),
        (model.text_encoder, tiny.text_encoder),
        (model.decoder, tiny.decoder),
    ):
        expected = expected.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    assert model.generate(PROMPT, num_steps=1, seed=1, duration=0.2).isfinite().all()


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
        *((part, "model.safetensors") for part in PARTS),
        *((part, "config.json") for part in PARTS),
        ("text_encoder", "tokenizer.json"),
        ("text_encoder", "spiece.model"),
        ("text_encoder", "pytorch_model.bin"),
        ("audiogen", "model.gguf"),
        ("audiogen", "model.safetensors.index.json"),
    ],
    ids=str,
)
def test_git_lfs_pointers_are_named(copy, part, file):
    replaced = {"spiece.model": "tokenizer.json", "pytorch_model.bin": "model.safetensors"}.get(
        file, "model.safetensors"
    )
    if not (copy / part / file).exists():
        (copy / part / replaced).unlink()
    (copy / part / file).write_bytes(POINTER)
    paths = {name: copy / name for name in PARTS} | ({part: copy / part / file} if file.endswith(".gguf") else {})
    with pytest.raises(CheckpointError, match=f"{file} is .* Git LFS pointer .*: run git lfs pull, or "):
        DashengAudioGen.from_pretrained(*paths.values())


@pytest.mark.parametrize("config", ["[]", "3", "null", '"t5"', "{", "[" * 100_000], ids=lambda text: text[:4])
@pytest.mark.parametrize("part", PARTS)
def test_a_config_that_is_no_object(copy, part, config):
    (copy / part / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=rf"{part}.config.json is not a readable config.json \("):
        load_model(copy)


@pytest.mark.parametrize(
    "part, key, value, expected",
    [
        ("audiogen", "special_tokens", "abc", "a list of different texts"),
        ("audiogen", "special_tokens", ["", "a"], "a list of different texts"),
        ("audiogen", "tokenizer_max_length", "512", "a whole number from 2"),
        ("audiogen", "tokenizer_max_length", 1, "a whole number from 2"),
        ("audiogen", "duration_offset", "1", "a number"),
        ("audiogen", "duration_offset", float("nan"), "a number"),
        ("audiogen", "use_zero_instruction", 1, "true or false"),
        ("audiogen", "adapter_num_heads", 0, "a whole number from 1"),
        ("audiogen", "adapter_num_heads", 4.0, "a whole number from 1"),
        ("text_encoder", "layer_norm_epsilon", [], "a number"),
        ("text_encoder", "relative_attention_max_distance", 1, "a whole number from "),
        ("audio_tokenizer", "istft_hop", "320", "a whole number from "),
    ],
    ids=str,
)
def test_config_values_of_another_type(copy, part, key, value, expected):
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=f"{part}: {key} is .* in config.json, expected {expected}"):
        load_model(copy)


def test_names_of_other_checkpoints_are_texts(copy):
    path = copy / "audiogen" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "text_encoder_name": 5}))
    with pytest.raises(CheckpointError, match="audiogen: text_encoder_name is 5 in config.json, expected a text"):
        DashengAudioGen.from_pretrained(copy / "audiogen", None, copy / "audio_tokenizer")


def test_a_null_in_a_config_is_no_value(copy):
    path = copy / "audiogen" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_max_length": None, "dit_depth": None}))
    assert load_model(copy).tokenizer.max_tokens == 512


@pytest.mark.parametrize("config", ["not json", "[1, 2]", "null", "[" * 100_000], ids=lambda text: text[:4])
def test_a_config_in_metadata_that_is_no_object(copy, config):
    path = copy / "audiogen" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file(tensors, path, {"config": config})
    with pytest.raises(CheckpointError, match="model.safetensors is not a readable safetensors file"):
        load_model(copy)


def damaged_tensors(copy, part, change) -> DashengAudioGen:
    path = copy / part / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    change(tensors)
    save_file(tensors, path)
    return load_model(copy)


@pytest.mark.parametrize("name", sorted(load_file(GOLDEN / "tiny" / "text_encoder" / "model.safetensors")))
def test_a_text_encoder_with_one_tensor_renamed(copy, name):
    with pytest.raises(CheckpointError, match="text_encoder.* "):
        damaged_tensors(copy, "text_encoder", lambda tensors: tensors.update({name + "x": tensors.pop(name)}))


@pytest.mark.parametrize(
    "part, name", [("audiogen", "backbone.time_ada_final.bias"), ("text_encoder", "encoder.final_layer_norm.weight")]
)
def test_whole_numbers_are_no_weights(copy, part, name):
    with pytest.raises(
        CheckpointError, match=f"model.safetensors: tensor {name} is torch.int64, expected torch.float32"
    ):
        damaged_tensors(copy, part, lambda tensors: tensors.update({name: tensors[name].long()}))


def test_a_scale_for_the_whole_matrix_is_not_taken_for_one_a_row(copy):
    name = "backbone.mid_block.attn.to_q.weight"

    def change(tensors):
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name + "_scale"] = torch.tensor(0.1)

    with pytest.raises(
        CheckpointError, match=r"model.safetensors: .* with a scale F32 \[\], expected a matrix with a scale"
    ):
        damaged_tensors(copy, "audiogen", change)


def test_a_tensor_that_claims_more_than_it_stores(copy):
    """It would fill any memory once it is copied."""
    folder = copy / "text_encoder"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["shared.weight"] = torch.zeros(1, 1).expand(2**31, 32)
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is not a file of plain tensors"):
        load_model(copy)


def test_a_shard_of_another_folder(copy):
    folder = copy / "audiogen"
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../text_encoder/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="index.json is not an index of shards .it names files of other folders"):
        load_model(copy)


def test_a_gguf_count_without_end(forms, tmp_path):
    """The package would read on past the end of the file, for ever."""
    file = tmp_path / "endless.gguf"
    writer = gguf.GGUFWriter(file, "dasheng_audiogen")
    writer.add_array("numbers", [*range(77)])
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    content = file.read_bytes().replace((77).to_bytes(8, "little"), (2**60).to_bytes(8, "little"))
    # Where the last number ends with the file, nothing else tells that there is no more.
    for padding in range(4):
        file.write_bytes(content + bytes(padding))
        with pytest.raises(CheckpointError, match="endless.gguf is not a readable GGUF file"):
            open_checkpoint(file, ())


def test_a_text_encoder_of_another_program(tmp_path):
    file = tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(file, "t5encoder")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    encoder = open_checkpoint(file, TEXT_ENCODER_TYPES)
    assert encoder.config is None
    with pytest.raises(
        CheckpointError, match="t5.gguf is a text encoder in llama.cpp's GGUF form, .* use the published"
    ):
        DashengAudioGen.from_pretrained(GOLDEN / "tiny" / "audiogen", file, GOLDEN / "tiny" / "audio_tokenizer")


def test_a_tokenizer_whose_ids_lie_beyond_the_table(copy):
    path = copy / "text_encoder" / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [5000]
    path.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(
        CheckpointError, match="tokenizer.json makes token 5000 of a text, but the text encoder has 152 tokens"
    ):
        load_model(copy).encode_text(PROMPT)


@pytest.mark.parametrize("form", ["published", "legacy", "zip"])
def test_an_encoder_is_not_read_from_a_file_that_was_replaced(copy, form):
    """It is read at the first use; the decoder is of the file as it was."""
    folder = copy / "audio_tokenizer"
    weights = folder / "model.safetensors"
    if form != "published":
        torch.save(load_file(weights), folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
        weights.unlink()
        weights = folder / "pytorch_model.bin"
    model = load_model(copy)
    before = fingerprint(weights)
    content = weights.read_bytes()
    with open(weights, "r+b") as file:
        file.truncate(len(content) // 2)
    assert fingerprint(weights) != before
    if form == "legacy":
        # Read as a whole already.
        assert model.encode(torch.zeros(1, 16000)).isfinite().all()
        return
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
