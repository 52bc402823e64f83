"""VAE: the audio tokenizer, whose encoder is loaded when something is encoded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ...dasheng_core.audio_tokenizer.decoder import Decoder, load_decoder
from ...dasheng_core.audio_tokenizer.encoder import load_encoder
from ...dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from ...dasheng_core.quoting import plain
from ...dasheng_core.tensors import as_latent, as_tensor, as_waveform, check_finite
from ...dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES
from ..muted import switched_off
from ..node_text import plain_errors
from .patcher import make_patcher, open_interruptible


def as_sampled(latent: object, channels: int, hidden=None) -> Tensor:
    """A latent ``[B, C, T]`` that is to be heard; ``hidden``: the hidden inputs of the node that was given it.

    Raises ValueError for an empty one: a bypassed sampler hands on what it got.
    """
    samples = as_tensor(latent, "latent")
    if samples.ndim == 3 and samples.numel() and not samples.any():
        if off := switched_off(hidden, "latent"):
            raise ValueError(f"latent is empty, because {plain(off)}: switch it on.")
        raise ValueError(
            "latent is empty, expected one that a sampler has filled: connect Dasheng Sampler or another one, and switch it on if it "
            "is bypassed."
        )
    return as_latent(samples, channels)


@contextmanager
def without_warnings() -> Iterator[None]:
    """For a moment no warning goes to the log."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """ComfyUI makes the tensor of a decoded sound in torch's default dtype, which other packs change."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FirstStage(nn.Module):
    """The decoder under the name that ComfyUI's VAE calls."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def decode(self, latent: Tensor) -> Tensor:
        """``[B, C, T]`` -> ``[B, 1, 640 T]``."""
        return self.decoder(latent)[:, None]


class DashengVAE(comfy.sd.VAE):
    """The audio tokenizer as a VAE. The encoder, four times the decoder's size, is read when something is encoded."""

    def __init__(self, path: str, disable_dynamic: bool = False):
        # Of no weights ComfyUI makes a VAE with all that its methods read, and warns that it has no model: that comes below.
        with without_warnings():
            super().__init__(sd={})
        self.checkpoint = open_interruptible(path, AUDIO_TOKENIZER_TYPES)
        self.device = mm.vae_device()
        # What ComfyUI casts waveforms and latents to; weights have a dtype of their own.
        self.vae_dtype = torch.float32
        self.weight_dtype = mm.vae_dtype(self.device, [torch.bfloat16, torch.float32])
        self.output_device = mm.intermediate_device()
        self.disable_dynamic = disable_dynamic
        decoder = load_decoder(self.checkpoint, comfy.ops.disable_weight_init, self.weight_dtype)
        self.first_stage_model = FirstStage(decoder)
        self.patcher = self._patcher(self.first_stage_model)
        self.patcher.cached_patcher_init = (lambda disable_dynamic=False: DashengVAE(path, disable_dynamic).patcher, ())
        self._encoder_patcher = None

        self.latent_channels = decoder.config.latent_dim
        self.latent_dim = 1
        self.output_channels = 1
        self.upscale_ratio = self.downscale_ratio = SAMPLES_PER_FRAME
        self.audio_sample_rate = SAMPLE_RATE
        self.process_input = self.process_output = lambda audio: audio
        self.working_dtypes = [torch.float32]
        # Bytes that a latent frame and an audio sample take at their peak, from the layers' widths.
        self.memory_used_decode = lambda shape, dtype: shape[0] * shape[-1] * 400_000
        self.memory_used_encode = lambda shape, dtype: shape[0] * shape[-1] * 4_000
        self.model_size()

    def vae_output_dtype(self) -> torch.dtype:
        """Newer versions call it; with --fp16-intermediates theirs is float16, which no consumer of AUDIO expects."""
        return torch.float32

    def decode(self, samples_in: Tensor, vae_options={}) -> Tensor:
        """Latent ``[B, C, T]`` -> waveform ``[B, 640 T, 1]``, float32."""
        latent = as_sampled(samples_in, self.latent_channels)
        with float32_by_default():
            return super().decode(latent, vae_options)

    def decode_tiled(self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, **kwargs) -> Tensor:
        """The same in tiles of ``tile_x`` frames, which share ``overlap`` with the next; None: as many as ComfyUI takes."""
        tile_x, overlap = 128 if tile_x is None else tile_x, 32 if overlap is None else overlap
        latent = as_sampled(samples, self.latent_channels)
        if not 0 <= overlap < tile_x:
            raise ValueError(
                f"A tile has {tile_x} frames and shares {overlap} with the next, expected fewer shared than it has: nodes for pictures "
                f"count {SAMPLES_PER_FRAME} of tile_size as one frame; use Dasheng Decode, which needs no tiles."
            )
        with float32_by_default():
            return super().decode_tiled(latent, tile_x, tile_x, overlap, **kwargs)

    @plain_errors
    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Waveform ``[B, L, channels]`` at 16 kHz -> latent ``[B, C, T]``; channels are averaged."""
        waveform = as_waveform(pixel_samples.movedim(-1, 1)).mean(dim=1)
        # SelectVAEDevice makes a copy of this object and moves that to another device.
        if self._encoder_patcher is None or self._encoder_patcher.load_device != self.device:
            encoder = load_encoder(self.checkpoint, comfy.ops.disable_weight_init, self.weight_dtype)
            self._encoder_patcher = self._patcher(encoder)
        memory = self.memory_used_encode(waveform.shape, torch.float32)
        mm.load_models_gpu([self._encoder_patcher], memory_required=memory)
        latent = self._encoder_patcher.model(waveform.to(self.device)).to(self.output_device)
        return check_finite(latent, "The encoded latent", "the sound is far beyond full scale; turn it down")

    def _patcher(self, module: nn.Module):
        return make_patcher(module, self.device, mm.vae_offload_device(), self.disable_dynamic)
