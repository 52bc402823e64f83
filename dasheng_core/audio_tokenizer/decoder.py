"""Latent -> waveform: an upsampling convolution and a Vocos decoder (arXiv 2306.00814).

Dimensions: B batch, C latent channels, T latent frames, D decoder width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..duration import SAMPLES_PER_FRAME
from ..tensors import UNSTABLE, check_finite
from ..weights import published
from ..weights.checkpoint import Checkpoint
from ..weights.config import DecoderConfig
from ..weights.loading import OfAnyLayers, load_weights
from .spectral import inverse_stft

LAYER_NORM_EPS = 1e-6
# Kernel size of the convolutions along time.
KERNEL = 7
# One minute: the layers compute a longer clip in pieces of it.
PIECE_FRAMES = 3000


class Decoder(OfAnyLayers):
    """Latent ``[B, C, T]`` -> waveform ``[B, 640 T]`` float32; ValueError if the waveform has values that are not numbers.

    The head and the inverse STFT are float32 whatever the dtype of the rest: exp and phase need the precision.
    """

    def __init__(self, config: DecoderConfig, operations=nn, device=None, dtype=torch.float32):
        super().__init__()
        self.config = config
        self.dtype = dtype
        factory = {"device": device, "dtype": dtype}
        stride = SAMPLES_PER_FRAME // config.hop_length
        self.upsampler = operations.ConvTranspose1d(
            config.latent_dim, config.latent_dim, stride, stride=stride, **factory
        )
        self.decoder = nn.ModuleDict(
            {
                "backbone": VocosBackbone(config, operations, factory),
                "head": SpectrumHead(config, operations, {"device": device, "dtype": torch.float32}),
            }
        )

    @property
    def reach(self) -> int:
        """How many latent frames to either side a sample depends on: the convolutions' and the inverse STFT's."""
        config = self.config
        hops = reach(config.depth) + -(-config.n_fft // config.hop_length)
        return -(-hops * config.hop_length // SAMPLES_PER_FRAME)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.upsampler(latent.to(self.dtype))
        x = self.decoder["backbone"](x)
        return check_finite(self.decoder["head"](x.float()), "The decoded sound", UNSTABLE)


class VocosBackbone(nn.Module):
    """``[B, C, 2 T]`` -> ``[B, 2 T, D]``, in pieces: so a long clip takes little memory, and a caller can stop between layers."""

    def __init__(self, config: DecoderConfig, operations, factory: dict[str, Any]):
        super().__init__()
        D = config.dim
        self.embed = operations.Conv1d(config.latent_dim, D, kernel_size=KERNEL, padding=KERNEL // 2, **factory)
        self.norm = operations.LayerNorm(D, eps=LAYER_NORM_EPS, **factory)
        self.convnext = nn.ModuleList(ConvNeXtBlock(config, operations, factory) for _ in range(config.depth))
        self.final_layer_norm = operations.LayerNorm(D, eps=LAYER_NORM_EPS, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._clips(clips) for clips in x.split(max(1, PIECE_FRAMES // x.shape[-1]))])

    def _clips(self, x: Tensor) -> Tensor:
        around, pieces = reach(len(self.convnext)), []
        for first in range(0, x.shape[-1], PIECE_FRAMES):
            start = max(0, first - around)
            piece = self._piece(x[..., start : first + PIECE_FRAMES + around])
            pieces.append(piece[:, first - start :][:, :PIECE_FRAMES])
        return torch.cat(pieces, dim=1)

    def _piece(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).transpose(1, 2))
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt (arXiv 2201.03545) over time: depthwise convolution, then a pointwise MLP scaled by gamma."""

    def __init__(self, config: DecoderConfig, operations, factory: dict[str, Any]):
        super().__init__()
        D = config.dim
        self.dwconv = operations.Conv1d(D, D, kernel_size=KERNEL, padding=KERNEL // 2, groups=D, **factory)
        self.norm = operations.LayerNorm(D, eps=LAYER_NORM_EPS, **factory)
        self.pwconv1 = operations.Linear(D, config.intermediate_dim, **factory)
        self.pwconv2 = operations.Linear(config.intermediate_dim, D, **factory)
        self.gamma = nn.Parameter(torch.empty(D, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D]`` -> ``[B, T, D]``."""
        residual = x
        x = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        x = self.pwconv2(F.gelu(self.pwconv1(self.norm(x))))
        return residual + self.gamma.to(x) * x


class SpectrumHead(nn.Module):
    """``[B, T, D]`` -> log-magnitude and phase of each frame -> waveform."""

    def __init__(self, config: DecoderConfig, operations, factory: dict[str, Any]):
        super().__init__()
        self.n_fft, self.hop_length = config.n_fft, config.hop_length
        self.out = operations.Linear(config.dim, config.n_fft + 2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        log_magnitude, phase = self.out(x).chunk(2, dim=-1)
        return inverse_stft(log_magnitude, phase, self.n_fft, self.hop_length)


def reach(depth: int) -> int:
    """The receptive field to either side, in frames, of ``depth`` blocks and the convolution before them."""
    return KERNEL // 2 * (1 + depth)


def load_decoder(checkpoint: Checkpoint, operations=nn, dtype=torch.float32) -> Decoder:
    """Load the decoder half of an audio tokenizer; the encoder's tensors are not read.

    Raises CheckpointError for what is no audio tokenizer of this model.
    """
    names = published.prefixes(published.AUDIO_TOKENIZER, "decoder")
    config = DecoderConfig.from_checkpoint(checkpoint)
    decoder = Decoder(config, operations, device="meta", dtype=dtype)
    load_weights(decoder, {name: checkpoint.tensor(name) for name in checkpoint.under(*names)}, checkpoint)
    return decoder
