"""GGUF files in the published layout: read right, kept quantised in memory, the same model as their expansion."""

import json
import subprocess
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import GOLDEN, deviation
from dasheng_core import CheckpointError, DashengAudioGen
from dasheng_core.audio_tokenizer.decoder import load_decoder
from dasheng_core.backbone import load_backbone
from dasheng_core.repack import repack_checkpoint
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES
from dasheng_core.weights.quantized import BLOCK, BLOCK_BYTES, QuantizedLinear, QuantizedWeight
from tools.comfyui import ROOT
from tools.random_checkpoint import FULL, TINY, write_checkpoints
from tools.write_gguf import AUDIOGEN_NAMES, main, write_gguf

PROMPT = "<|caption|> A cat meowing softly."
# Rows of 64, which divide into blocks; and one block's worth of real size.
SMALL = replace(TINY, embed_dim=64)
MEDIUM = replace(FULL, embed_dim=768, num_heads=12, depth=2)
KINDS = ("F16", "Q8_0", "Q4_0")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    write_checkpoints(out, SMALL, multilingual=False, dtype=torch.float32, seed=0)
    return out


@pytest.fixture(scope="module")
def files(plain):
    """The same model as dit.gguf of each type."""
    checkpoint = open_checkpoint(plain / "audiogen", AUDIOGEN_TYPES)
    for kind in KINDS:
        write_gguf(checkpoint, plain / f"{kind}.gguf", kind)
    return {kind: plain / f"{kind}.gguf" for kind in KINDS}


def model(plain, audiogen, **options) -> DashengAudioGen:
    return DashengAudioGen.from_pretrained(audiogen, plain / "text_encoder", plain / "audio_tokenizer", **options)


def sample(model: DashengAudioGen) -> torch.Tensor:
    return model.sample(*model.encode_text(PROMPT), seed=3, num_steps=4)


@torch.inference_mode()
def velocity(model: DashengAudioGen) -> torch.Tensor:
    """One evaluation, layer by layer."""
    config, generator = model.backbone.config, torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.latent_dim, 30, generator=generator).to(model.dtype)
    context = torch.randn(1, 5, config.context_dim, generator=generator).to(model.dtype)
    return model.backbone(latent, torch.tensor(500.0), context, model.backbone.dummy_ta_embed[None, None])


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_blocks_expand_as_the_format_says(kind):
    """Any bytes at all, against the package of the format's makers; and one block by hand."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (300, 7 * BLOCK_BYTES[kind]), dtype=torch.uint8, generator=generator)
    with np.errstate(invalid="ignore"):
        expected = gguf.dequantize(stored.numpy(), gguf.GGMLQuantizationType[kind])
    weight = QuantizedWeight(kind, stored)
    found = weight.to(torch.float32)
    assert weight.shape == found.shape == (300, 7 * BLOCK)
    assert np.isnan(expected).any(), "the scales take every value"
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(weight.to(torch.bfloat16).float(), found.bfloat16().float())

    d = np.frombuffer(np.float16(0.5).tobytes(), np.uint8).tolist()
    if kind == "Q8_0":
        block, values = d + [0xFF] * 32, [-0.5] * 32
    else:
        block, values = d + [0xF1] * 16, [-3.5] * 16 + [3.5] * 16
    assert QuantizedWeight(kind, torch.tensor([block], dtype=torch.uint8)).to(torch.float32).tolist() == [values]


@pytest.mark.parametrize(
    "kind, dtype",
    [("F16", torch.float32), ("Q8_0", torch.float32), ("Q4_0", torch.float32), ("Q8_0", torch.bfloat16)],
    ids=str,
)
def test_a_file_is_the_same_model_as_its_expansion(plain, files, tmp_path, kind, dtype, bfloat16_everywhere):
    """Expanded by the gguf package, saved as an ordinary checkpoint, and computed from that."""
    tensors = {
        t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)).reshape([*map(int, reversed(t.shape))])
        for t in gguf.GGUFReader(files[kind]).tensors
    }
    save_file(tensors | {"instruction_lengths": torch.tensor([14])}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((plain / "audiogen" / "config.json").read_text())
    ours, theirs = (model(plain, file, dtype=dtype) for file in (files[kind], tmp_path))
    quantized = [layer for layer in ours.backbone.modules() if isinstance(layer, QuantizedLinear)]
    assert len(quantized) == (0 if kind == "F16" else 5 * 12 + 2 + 6), kind
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert deviation(velocity(ours), velocity(theirs)) <= tolerance
    # A sampling call joins plain matrices, which may round their products otherwise.
    assert deviation(sample(ours), sample(theirs)) <= tolerance
    error = sample(ours) - sample(model(plain, plain / "audiogen"))
    assert 1e-5 < error.norm() / sample(ours).norm() < (0.3 if kind == "Q4_0" else 0.05)


def test_the_config_travels_in_the_file(plain, files, tmp_path):
    config = json.loads((plain / "audiogen" / "config.json").read_text())
    found = open_checkpoint(files["Q8_0"], AUDIOGEN_TYPES).config
    assert found == {key: value for key, value in config.items() if value != []}
    # And is checked against the tensors.
    edited = replace(open_checkpoint(plain / "audiogen", AUDIOGEN_TYPES), config={**config, "dit_num_heads": 2})
    write_gguf(edited, tmp_path / "edited.gguf", "F16")
    with pytest.raises(CheckpointError, match="dit_num_heads is 2 in config.json, but the tensors say 4"):
        load_backbone(open_checkpoint(tmp_path / "edited.gguf", AUDIOGEN_TYPES))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_stay_quantised_in_memory(tmp_path):
    """One real-size file: what loading and one evaluation take of this process's memory."""
    kind = "Q4_0"
    write_checkpoints(tmp_path / "out", MEDIUM, multilingual=False, dtype=torch.float32, seed=0, parts=("audiogen",))
    file = tmp_path / "dit.gguf"
    write_gguf(open_checkpoint(tmp_path / "out" / "audiogen", AUDIOGEN_TYPES), file, kind)
    code = f"""
import json, sys, torch
from pathlib import Path
from benchmarks.load import measure, status
from dasheng_core import backbone
from dasheng_core.weights import checkpoint
def load():
    # A file read before is in the system's cache, not in this process.
    return [backbone.load_backbone(checkpoint.open_checkpoint({str(file)!r}, ()), dtype=torch.bfloat16)]
load_once = measure(load)
net = load()[0]
before = status()["RssAnon"]
with torch.inference_mode():
    net(torch.randn(1, 1280, 2).bfloat16(), torch.tensor(500.0), torch.randn(1, 3, 1024).bfloat16(), net.dummy_ta_embed[None, None])
print(json.dumps({{**load_once, "grown": status()["RssAnon"] - before}}))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(run.stdout)
    shapes = open_checkpoint(file, ()).shapes
    parameters = sum(np.prod(s) for n, s in shapes.items() if n.startswith("backbone.") and len(s) == 2)
    bits = 8 * BLOCK_BYTES[kind] / BLOCK
    convolutions = 2 * sum(np.prod(s) for n, s in shapes.items() if n.startswith("backbone.") and len(s) == 3)
    # Norms and biases are 0.1 % of it.
    assert found["kept"] - convolutions <= 1.02 * parameters * bits / 8
    assert found["peak"] <= 1.15 * found["kept"] + 2**24, "held twice"
    largest = max(np.prod(s) for n, s in shapes.items() if n.startswith("backbone."))
    assert found["grown"] <= 5 * 4 * largest + 2**24, "expanded one layer at a time, and let go"


def test_vocoder_files_decode_and_say_what_they_lack(plain, tmp_path):
    checkpoint = open_checkpoint(plain / "audio_tokenizer", AUDIO_TOKENIZER_TYPES)
    file = tmp_path / "vocoder.gguf"
    write_gguf(checkpoint, file, "F16")
    names = open_checkpoint(file, AUDIO_TOKENIZER_TYPES).shapes
    assert not [name for name in names if "istft.window" in name or name.startswith("encoder.")]
    latent = torch.randn(1, SMALL.latent_dim, 9, generator=torch.Generator().manual_seed(0))
    decoder = load_decoder(open_checkpoint(file, AUDIO_TOKENIZER_TYPES))
    halved = {n: t.half().float() if t.ndim > 1 else t for n, t in load_decoder(checkpoint).state_dict().items()}
    expected = load_decoder(checkpoint)
    expected.load_state_dict(halved)
    with torch.inference_mode():
        assert torch.equal(decoder(latent), expected(latent))
    whole = DashengAudioGen.from_pretrained(plain / "audiogen", plain / "text_encoder", file)
    with pytest.raises(CheckpointError, match="vocoder.gguf: it holds a decoder only: to encode audio"):
        whole.encode(torch.zeros(1, 16000))


def test_what_cannot_be_read_is_refused_by_name(plain, files, tmp_path):
    damaged = tmp_path / "damaged.gguf"
    for content in (files["Q4_0"].read_bytes()[:-5000], b"something else"):
        damaged.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged.gguf is not a readable GGUF file"):
            open_checkpoint(damaged, AUDIOGEN_TYPES)

    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "dasheng_audiogen")
    values = np.zeros((2, 256), np.float32)
    writer.add_tensor("backbone.x.weight", gguf.quantize(values, gguf.GGMLQuantizationType.Q5_0), raw_dtype=6)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(CheckpointError, match="other.gguf: tensor backbone.x.weight is Q5_0 of shape .2, 256."):
        open_checkpoint(tmp_path / "other.gguf", AUDIOGEN_TYPES)

    # A text encoder under other names, and an audio generator that is none.
    with pytest.raises(CheckpointError, match="F16.gguf is an audio generator, expected another part"):
        DashengAudioGen.from_pretrained(plain / "audiogen", files["F16"], plain / "audio_tokenizer")
    with pytest.raises(CheckpointError, match="is quantised .*repack the published one"):
        repack_checkpoint(files["Q8_0"], tmp_path / "new.safetensors")


def test_the_multilingual_file_lacks_the_special_tokens_and_says_so(tmp_path):
    """As published: its backbone loads, its text side does not."""
    folder = GOLDEN / "tiny_multilingual"
    write_gguf(open_checkpoint(folder / "audiogen", AUDIOGEN_TYPES), tmp_path / "dit-multi.gguf", "F16")
    load_backbone(open_checkpoint(tmp_path / "dit-multi.gguf", AUDIOGEN_TYPES))
    with pytest.raises(CheckpointError, match="special_tokens has 6 entries, but .* has 0 rows: .*the published"):
        DashengAudioGen.from_pretrained(
            tmp_path / "dit-multi.gguf", folder / "text_encoder", folder / "audio_tokenizer"
        )


def test_the_package_is_not_needed(files, monkeypatch):
    expected = len(gguf.GGUFReader(files["Q8_0"]).tensors)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert len(open_checkpoint(files["Q8_0"], ()).shapes) == expected


def test_the_tool_writes_the_published_layout_and_overwrites_nothing(plain, files, tmp_path, caplog):
    reader = gguf.GGUFReader(files["Q4_0"])
    for tensor in reader.tensors:
        assert tensor.name.startswith(AUDIOGEN_NAMES)
        matrix = len(tensor.shape) == 2 and tensor.name.startswith("backbone.")
        expected = "F32" if len(tensor.shape) == 1 else "Q4_0" if matrix else "F16"
        assert tensor.tensor_type.name == expected, tensor.name
    assert main([str(plain / "audiogen"), str(tmp_path / "a.gguf")]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == files["F16"].read_bytes()
    assert main([str(plain / "audiogen"), str(tmp_path / "a.gguf")]) == 1
    assert "already there: choose another name" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
