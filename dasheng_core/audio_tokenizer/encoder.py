"""Waveform -> latent: a semantic vision transformer over a mel spectrogram plus an acoustic patch embedding.

Dimensions: B batch, L samples, M mel bands, C latent channels, T latent frames, H heads, d head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..tensors import check_finite
from ..weights.checkpoint import Checkpoint
from ..weights.config import EncoderConfig
from ..weights.loading import OfAnyLayers, load_weights
from ..weights.published import ENCODER
from .spectral import acoustic_mel, semantic_mel

VIT_LAYER_NORM_EPS = 1e-6


class Encoder(OfAnyLayers):
    """Waveform ``[B, L]`` at 16 kHz -> latent ``[B, C, T]`` float32, T = (L + 160) // 640.

    Spectra and the latent are float32; the transformer runs in the dtype of its weights.
    What it cannot encode is refused by :func:`dasheng_core.tensors.as_waveform`, before its weights are read.
    """

    def __init__(self, config: EncoderConfig, operations=nn, device=None, dtype=torch.float32):
        super().__init__()
        self.config = config
        self.dtype = dtype
        factory = {"device": device, "dtype": dtype}
        patch = (config.acoustic_mels, config.patch_frames)
        self.model = SemanticEncoder(config, operations, factory)
        self.patch_embed = operations.Conv2d(1, config.embed_dim, kernel_size=patch, stride=patch, **factory)
        self.norm = operations.LayerNorm(config.embed_dim, **factory)

    def forward(self, waveform: Tensor) -> Tensor:
        # One by one: the decibel floor of the semantic mel follows the loudest bin of the whole batch.
        latent = torch.cat([self.encode_alike(item) for item in waveform.float().split(1)])
        return check_finite(latent, "The encoded latent", "turn the sound down to peaks near 1")

    def encode_alike(self, waveform: Tensor) -> Tensor:
        """``[B, L]`` -> ``[B, C, T]`` with one decibel floor for all: for clips of similar loudness, as in training."""
        config = self.config
        mel = acoustic_mel(waveform, config.acoustic_mels, config.hop_length)
        acoustic = self.patch_embed(mel[:, None].to(self.dtype))[:, :, 0].transpose(1, 2)
        acoustic = self.norm(acoustic)
        mel = semantic_mel(waveform, config.semantic_mels, config.hop_length)
        semantic = self.model(mel)[:, : acoustic.shape[1]]
        return (acoustic + semantic).float().transpose(1, 2)


class SemanticEncoder(nn.Module):
    """Mel spectrogram ``[1, M, frames]`` -> ``[1, T, C]``, in windows that do not attend to each other."""

    def __init__(self, config: EncoderConfig, operations, factory: dict[str, Any]):
        super().__init__()
        C, patch = config.embed_dim, (config.semantic_mels, config.patch_frames)
        self.window_frames = config.window_patches * config.patch_frames
        self.patch_frames = config.patch_frames
        # In the published names, index 0 is a reshape.
        self.init_bn = nn.ModuleList([nn.Identity(), MelNorm(config.semantic_mels, factory["device"])])
        self.patch_embed = nn.ModuleDict({"proj": operations.Conv2d(1, C, kernel_size=patch, stride=patch, **factory)})
        self.time_pos_embed = nn.Parameter(torch.empty(1, C, 1, config.window_patches, **factory))
        self.freq_pos_embed = nn.Parameter(torch.empty(1, C, 1, 1, **factory))
        self.blocks = nn.ModuleList(ViTBlock(config, operations, factory) for _ in range(config.depth))
        self.norm = operations.LayerNorm(C, eps=VIT_LAYER_NORM_EPS, **factory)

    def forward(self, mel: Tensor) -> Tensor:
        mel = self.init_bn[1](mel)
        windows = [w for w in mel.split(self.window_frames, dim=-1) if w.shape[-1] >= self.patch_frames]
        return torch.cat([self._encode_window(window) for window in windows], dim=1)

    def _encode_window(self, mel: Tensor) -> Tensor:
        x = self.patch_embed["proj"](mel[:, None].to(self.time_pos_embed.dtype))
        x = x + self.time_pos_embed[..., : x.shape[-1]].to(x) + self.freq_pos_embed.to(x)
        x = rearrange(x, "b c 1 t -> b t c")
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MelNorm(nn.Module):
    """Batch normalisation of each mel band by its running statistics, in float32."""

    def __init__(self, bands: int, device=None):
        super().__init__()
        for name in ("running_mean", "running_var", "weight", "bias"):
            self.register_buffer(name, torch.empty(bands, device=device, dtype=torch.float32))

    def forward(self, mel: Tensor) -> Tensor:
        mean, variance, weight, bias = (buffer.to(mel) for buffer in self.buffers())
        return F.batch_norm(mel, mean, variance, weight, bias, eps=1e-5)


class ViTBlock(nn.Module):
    """Pre-norm transformer block, ``[B, T, C]`` -> ``[B, T, C]``."""

    def __init__(self, config: EncoderConfig, operations, factory: dict[str, Any]):
        super().__init__()
        C = config.embed_dim
        self.norm1 = operations.LayerNorm(C, eps=VIT_LAYER_NORM_EPS, **factory)
        self.attn = SelfAttention(C, config.num_heads, operations, factory)
        self.norm2 = operations.LayerNorm(C, eps=VIT_LAYER_NORM_EPS, **factory)
        self.mlp = nn.ModuleDict(
            {
                "fc1": operations.Linear(C, config.mlp_dim, **factory),
                "fc2": operations.Linear(config.mlp_dim, C, **factory),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection laid out (3, H, d)."""

    def __init__(self, width: int, num_heads: int, operations, factory: dict[str, Any]):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = operations.Linear(width, 3 * width, **factory)
        self.proj = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))


def load_encoder(checkpoint: Checkpoint, operations=nn, dtype=torch.float32) -> Encoder:
    """Load the encoder half of an audio tokenizer; the decoder's tensors are not read.

    Raises CheckpointError for what is no audio tokenizer of this model, or one that was saved without its encoder.
    """
    config = EncoderConfig.from_checkpoint(checkpoint)
    encoder = Encoder(config, operations, device="meta", dtype=dtype)
    weights = {name.removeprefix(ENCODER): checkpoint.tensor(name) for name in checkpoint.under(ENCODER)}
    load_weights(encoder, weights, checkpoint)
    return encoder
