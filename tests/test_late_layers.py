"""Every module, of layers that hold no weights before they are loaded, as ComfyUI's do under dynamic VRAM."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dasheng_core import CheckpointError
from dasheng_core.adapter import load_adapter
from dasheng_core.audio_tokenizer.decoder import load_decoder
from dasheng_core.audio_tokenizer.encoder import load_encoder
from dasheng_core.backbone import load_backbone
from dasheng_core.repack import repack_checkpoint
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES, AdapterConfig
from dasheng_core.weights.quantized import QuantizedLinear
from tools.random_checkpoint import TINY, write_checkpoints
from tools.write_gguf import write_gguf


class Late(nn.Module):
    """No parameters, ``weight`` and ``bias`` None, until a state dict brings them; whatever it brings is taken."""

    def start(self, *sizes, names=("weight", "bias")):
        nn.Module.__init__(self)
        for name, size in zip(names, sizes, strict=True):
            setattr(self, name, size)
        self.weight = self.bias = None

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        for name, tensor in state.items():
            if (own := name.removeprefix(prefix)) in ("weight", "bias"):
                setattr(self, own, nn.Parameter(tensor, requires_grad=False))
            else:
                unexpected.append(name)
        if self.weight is None:
            missing.append(prefix + "weight")


class LateLinear(Late, nn.Linear):
    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
        self.start(in_features, out_features, names=("in_features", "out_features"))


class LateEmbedding(Late, nn.Embedding):
    def __init__(self, num_embeddings, embedding_dim, device=None, dtype=None):
        self.start(num_embeddings, embedding_dim, names=("num_embeddings", "embedding_dim"))
        self.padding_idx = self.max_norm = None
        self.norm_type, self.scale_grad_by_freq, self.sparse = 2.0, False, False


LATE = SimpleNamespace(**{**vars(nn), "Linear": LateLinear, "Embedding": LateEmbedding})
AUDIOGEN_FILES = ("audiogen", "bf16.safetensors", "fp8.safetensors", "F16.gguf", "Q8_0.gguf", "Q4_0.gguf")
VOCODER_FILES = ("audio_tokenizer", "vocoder.gguf")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One small model in every form that loads here."""
    out = tmp_path_factory.mktemp("late") / "out"
    # Rows of 64, which divide into blocks.
    write_checkpoints(out, replace(TINY, embed_dim=64), multilingual=False, dtype=torch.float32, seed=0)
    audiogen = open_checkpoint(out / "audiogen", AUDIOGEN_TYPES)
    for dtype in ("bf16", "fp8"):
        repack_checkpoint(out / "audiogen", out / f"{dtype}.safetensors", dtype)
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_gguf(audiogen, out / f"{kind}.gguf", kind)
    write_gguf(open_checkpoint(out / "audio_tokenizer", AUDIO_TOKENIZER_TYPES), out / "vocoder.gguf", "F16")
    return out


@torch.inference_mode()
def check(load, checkpoint, evaluate, **options) -> nn.Module:
    """A module of late layers has the plain one's tensors and gives what it gives; the late one."""
    plain, late = load(checkpoint, nn, **options), load(checkpoint, LATE, **options)
    state, expected = late.state_dict(), plain.state_dict()
    assert sorted(state) == sorted(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    layers = [layer for layer in late.modules() if isinstance(layer, (nn.Linear, nn.Embedding, QuantizedLinear))]
    assert layers and all(isinstance(layer, (Late, QuantizedLinear)) for layer in layers)
    torch.testing.assert_close(evaluate(late), evaluate(plain), rtol=0, atol=0)
    return late


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("file", AUDIOGEN_FILES)
def test_the_backbone(out, file, dtype):
    def evaluate(backbone):
        config = backbone.config
        shapes = (config.latent_dim, 9), (5, config.context_dim), (1, config.ta_context_dim)
        latent, context, time_aligned = (draw(2, *shape).to(dtype) for shape in shapes)
        return backbone(latent, torch.tensor([500.0, 3.0]), context, time_aligned)

    late = check(load_backbone, open_checkpoint(out / file, AUDIOGEN_TYPES), evaluate, dtype=dtype)
    quantized = [layer for layer in late.modules() if isinstance(layer, QuantizedLinear)]
    assert bool(quantized) == file.startswith(("fp8", "Q"))
    # Some layers have a bias and some have none: a quantised one keeps which.
    assert {layer.bias is None for layer in quantized} in ({True, False}, set())


@pytest.mark.parametrize("file", AUDIOGEN_FILES)
def test_the_adapter(out, file):
    checkpoint = open_checkpoint(out / file, AUDIOGEN_TYPES)
    config = AdapterConfig.from_checkpoint(checkpoint)
    mask = torch.ones(1, 7, dtype=torch.bool)
    load = lambda checkpoint, operations: load_adapter(checkpoint, config, operations)  # noqa: E731
    check(load, checkpoint, lambda adapter: adapter(draw(1, 7, config.content_dim), mask))


def test_decoder_and_encoder(out):
    for file in VOCODER_FILES:
        checkpoint = open_checkpoint(out / file, AUDIO_TOKENIZER_TYPES)
        check(
            load_decoder,
            checkpoint,
            lambda decoder: decoder(draw(1, decoder.config.latent_dim, 12)),
            dtype=torch.bfloat16,
        )
    checkpoint = open_checkpoint(out / "audio_tokenizer", AUDIO_TOKENIZER_TYPES)
    check(load_encoder, checkpoint, lambda encoder: encoder(draw(1, 16000) / 10))


def test_a_wrong_file_is_still_refused(out, tmp_path):
    tensors = load_file(out / "audiogen" / "model.safetensors")
    del tensors["backbone.mid_block.attn.proj.bias"]
    tensors["backbone.mid_block.attn.proj.weight"] = torch.zeros(64, 65)
    tensors["backbone.mid_block.attn.to_q.bias"] = torch.zeros(64)
    save_file(tensors, tmp_path / "wrong.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((out / "audiogen" / "config.json").read_text())
    with pytest.raises(CheckpointError) as refused:
        load_backbone(open_checkpoint(tmp_path / "wrong.safetensors", AUDIOGEN_TYPES), LATE)
    for problem in ("missing mid_block.attn.proj.bias", "unexpected mid_block.attn.to_q.bias", "[64, 65]"):
        assert problem in str(refused.value)
