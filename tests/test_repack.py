"""The repacked checkpoint: smaller, in the order of use, the same model."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, SETS, deviation, load_model, same_weights
from dasheng_core import DashengAudioGen, repack
from dasheng_core.cli import main
from dasheng_core.tensors import DTYPES
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from dasheng_core.weights.published import DERIVED
from dasheng_core.weights.quantized import QuantizedLinear, quantize_fp8

PROMPT = "<|caption|> A cat meowing softly."
AUDIOGEN = GOLDEN / "tiny" / "audiogen"


def repacked(tmp_path, dtype="bf16", source=AUDIOGEN):
    out = tmp_path / f"{dtype}.safetensors"
    assert main(["repack", str(source), "-o", str(out), "--dtype", dtype]) == 0
    return out


def sample(model: DashengAudioGen) -> torch.Tensor:
    return model.sample(*model.encode_text(PROMPT), seed=3, num_steps=4)


def with_audiogen(path, golden="tiny", **options) -> DashengAudioGen:
    folder = GOLDEN / golden
    return DashengAudioGen.from_pretrained(path, folder / "text_encoder", folder / "audio_tokenizer", **options)


def header(path) -> tuple[dict, int]:
    """The tensors of a safetensors file, in the order of their bytes, and where these start."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8:start])
    tensors.pop("__metadata__")
    return dict(sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])), start


@pytest.mark.parametrize("published", SETS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_repacked_checkpoint_is_the_same_model(tmp_path, published, dtype, bfloat16_everywhere):
    run = DTYPES[dtype]
    path = repacked(tmp_path, dtype, GOLDEN / published / "audiogen")
    model = with_audiogen(path, published, dtype=run)
    original = load_model(GOLDEN / published, dtype=run)
    assert same_weights(model, original)
    assert deviation(sample(model), sample(original)) <= (1e-4 if dtype == "fp32" else 0.05)
    # The files it needs are named by its own config.
    assert open_checkpoint(path, AUDIOGEN_TYPES).config["text_encoder_name"].startswith("google/")


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_it_lies_in_the_order_of_use(tmp_path, dtype):
    path = repacked(tmp_path, dtype)
    tensors, start = header(path)
    published = load_file(AUDIOGEN / "model.safetensors")
    left_out = {name for name in published if name.startswith(repack.LEFT_OUT) or DERIVED.search(name)}
    assert {name.removesuffix("_scale") for name in tensors} == set(published) - left_out
    derived = {re.sub(r"^backbone.*rotary", "rotary", name) for name in left_out}
    assert {name for name in derived if not name.startswith("content_adapter.duration_predictor.")} == {
        "rotary.inv_freq",
        "dummy_nta_embed",
    }

    end = 0
    for name, tensor in tensors.items():
        size = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "I64": 8}[tensor["dtype"]]
        first, last = tensor["data_offsets"]
        assert first == end and (start + first) % size == 0, name
        end = last
    assert start + end == path.stat().st_size
    stretches = [repack.section_of(name.removesuffix("_scale")) for name in tensors]
    assert stretches == sorted(stretches) and set(stretches) == {0, 1, 2}


def test_fp8_weights_stay_so_and_compute_as_their_expansion_does(tmp_path, bfloat16_everywhere):
    path = repacked(tmp_path, "fp8")
    model = with_audiogen(path)
    layers = {name: layer for name, layer in model.backbone.named_modules() if isinstance(layer, QuantizedLinear)}
    matrices = [name for name, weight in model.backbone.named_parameters() if weight.dtype == torch.float8_e4m3fn]
    assert len(matrices) == len(layers) == 5 * 12 + 2, "12 in each of 5 blocks, a skip in 2"

    published = load_file(AUDIOGEN / "model.safetensors")
    plain = {name: tensor.bfloat16().float() for name, tensor in published.items()}
    plain |= {name: tensor for name, tensor in published.items() if not name.startswith(("backbone.", "dummy_ta"))}
    for name, layer in layers.items():
        weight = layer.weight.float() * layer.weight_scale[:, None]
        original = published[f"backbone.{name}.weight"]
        # Half of the last of three mantissa bits, and below 2^-6 of the largest value over 448 the subnormals' step.
        step = original.abs().amax(dim=1, keepdim=True) / 448 * 2.0**-9
        assert ((weight - original).abs() <= original.abs() / 16 + step / 2 + 1e-9).all()
        plain[f"backbone.{name}.weight"] = weight
    expanded = tmp_path / "expanded"
    expanded.mkdir()
    save_file(plain, expanded / "model.safetensors")
    (expanded / "config.json").write_text((AUDIOGEN / "config.json").read_text())
    # A sampling call joins plain matrices, which may round their products otherwise.
    assert deviation(sample(model), sample(with_audiogen(expanded))) <= 1e-4
    for dtype in (torch.float32, torch.bfloat16):
        error = sample(with_audiogen(path, dtype=dtype)) - sample(load_model(GOLDEN / "tiny"))
        assert 1e-4 < error.norm() / sample(model).norm() < 0.15


def test_a_row_of_zeros_and_one_of_any_size_are_quantised():
    matrix = torch.cat([torch.zeros(1, 64), torch.randn(2, 64) * torch.tensor([[1e-6], [1e6]])])
    stored = quantize_fp8(matrix)
    found = stored.to(torch.float32)
    assert found.isfinite().all() and torch.equal(found[0], matrix[0])
    assert ((found - matrix).norm(dim=1)[1:] / matrix.norm(dim=1)[1:] < 0.05).all()


def test_what_cannot_be_repacked_is_refused(tmp_path, caplog):
    def refused(source, out="new.safetensors", *options):
        before = sorted(tmp_path.rglob("*"))
        caplog.clear()
        assert main(["repack", str(source), "-o", str(tmp_path / out), *options]) == 1
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"
        return caplog.text

    path = repacked(tmp_path)
    assert "bf16.safetensors: it is repacked already (bf16): repack the published one" in refused(path)
    assert "bf16.safetensors is there already: choose another name" in refused(AUDIOGEN, "bf16.safetensors")
    assert "a repacked checkpoint is a .safetensors file" in refused(AUDIOGEN, "new.bin")
    assert "model_type is 't5', expected dasheng_audiogen" in refused(GOLDEN / "tiny" / "text_encoder")
    assert "backbone.patch_embed.proj.weight is missing" in refused(GOLDEN / "tiny/text_encoder/model.safetensors")
    assert "neither a path nor a hub repository" in refused(tmp_path / "nothing")

    tensors = load_file(AUDIOGEN / "model.safetensors")
    for name in ("backbone.mid_block.norm2.bias", "content_adapter.norm.weight"):
        save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / "half.safetensors")
        config = tmp_path / "half.config.json"
        config.write_text((AUDIOGEN / "config.json").read_text())
        assert f"missing {name.split('.', 1)[1]}" in refused(tmp_path / "half.safetensors")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["Ctrl-C", "full"])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, stop):
    shutil.copytree(AUDIOGEN, tmp_path / "audiogen")
    (tmp_path / "audiogen" / "tokenizer.json").write_text("its own")
    done = []
    original = repack.converted

    def interrupted(checkpoint, entry):
        done.append(entry)
        if len(done) == 20:
            raise stop
        return original(checkpoint, entry)

    monkeypatch.setattr(repack, "converted", interrupted)
    assert main(["repack", str(tmp_path / "audiogen"), "-o", str(tmp_path / "new.safetensors")]) in (1, 130)
    assert len(done) == 20 and [path.name for path in tmp_path.iterdir()] == ["audiogen"]


def test_a_file_that_appears_meanwhile_stays(tmp_path, monkeypatch, caplog):
    out = tmp_path / "new.safetensors"
    original = repack.write_entries

    def slow(*args):
        original(*args)
        out.write_text("somebody else's")

    monkeypatch.setattr(repack, "write_entries", slow)
    assert main(["repack", str(AUDIOGEN), "-o", str(out)]) == 1
    assert "has appeared meanwhile" in caplog.text
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody else's"]


def test_a_tokenizer_of_its_own_goes_along(tmp_path):
    source = shutil.copytree(AUDIOGEN, tmp_path / "audiogen")
    tokenizer = (GOLDEN / "tiny" / "text_encoder" / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").write_bytes(tokenizer)
    path = repacked(tmp_path, source=source)
    assert (tmp_path / "bf16.tokenizer.json").read_bytes() == tokenizer
    assert open_checkpoint(path, AUDIOGEN_TYPES).beside("tokenizer.json", in_shared_folder=False)
