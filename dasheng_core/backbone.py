"""The backbone: a U-shaped transformer over latent frames that predicts the flow-matching velocity.

Reading order: Backbone (whole network), Block, then the parts of a block.

Dimensions: B batch, T latent frames, S text tokens, C latent channels, D model width,
H heads, d width of a head, X context width.

Module names are the published tensor names with ``backbone.`` removed, so that LoRA keys and saved
models speak the checkpoint's language.
"""

import math
import re
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .checkpoint import Checkpoint, StoredTensor, load_weights
from .config import BackboneConfig, CheckpointError, check_published_forms
from .quantized import QuantizedLinear
from .schedule import truncate_timesteps
from .skip_cache import SkipCache

PREFIX = "backbone."
# Everything an audio generator's checkpoint may hold; the last two are never used in text-to-audio.
TOP_LEVEL = (
    PREFIX,
    "content_adapter.",
    "content_encoder.",
    "instruction_",
    "dummy_ta_embed",
    "dummy_nta_embed",
    "dummy_param",
)
TIME_FEATURES = 256
ROPE_BASE = 10000.0


class Backbone(nn.Module):
    """Latent, timestep and conditioning in, velocity out.

    ``dummy_ta_embed`` is the time-aligned context of text-to-audio: one learned vector for every frame.
    """

    def __init__(self, config: BackboneConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        self.dtype = dtype or torch.get_default_dtype()
        factory = {"device": device, "dtype": dtype}
        D, half = config.embed_dim, config.depth // 2

        self.patch_embed = PatchEmbed(config, operations, factory)
        self.time_embed = TimeEmbed(D, operations, factory)
        self.time_ada_final = operations.Linear(D, 2 * D, **factory)
        self.context_embed = nn.Sequential(
            operations.Linear(config.context_dim, D, **factory), nn.SiLU(), operations.Linear(D, D, **factory)
        )
        self.in_blocks = nn.ModuleList(Block(config, operations, factory) for _ in range(half))
        self.mid_block = Block(config, operations, factory)
        self.out_blocks = nn.ModuleList(Block(config, operations, factory, skip=True) for _ in range(half))
        self.final_block = FinalBlock(config, operations, factory)
        self.dummy_ta_embed = nn.Parameter(torch.empty(config.ta_context_dim, **factory))

    def forward(
        self,
        latent: Tensor,
        timesteps: Tensor,
        context: Tensor,
        time_aligned_context: Tensor,
        context_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        cache: SkipCache | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latent: ``[B, C, T]``.
            timesteps: ``[B]`` or one number, 0 to 1000; truncated to whole numbers here.
            context: ``[B, S, X]``, the content adapter's output, or zeros for the unconditional branch.
            time_aligned_context: ``[B, 1, X]`` or ``[B, T, X]``; zeros for the unconditional branch.
            context_mask: ``[B, S]`` bool, True for real tokens; None when nothing is padded.
            frame_mask: ``[B, T]`` bool, True for real frames; None when nothing is padded.
            cache: leave the inner blocks out where it recalls them, an approximation.

        Returns:
            Velocity ``[B, C, T]``.
        """
        x = self.patch_embed(latent)
        t = self.time_embed(timesteps.expand(len(x)), dtype=x.dtype)
        context = self.context_embed(context)
        rotary = rotary_table(x.shape[1], self.config.head_dim, x.device)
        # [B, keys] -> [B, 1, 1, keys]: the same for every head and every query.
        context_mask = None if context_mask is None else context_mask[:, None, None]
        frame_mask = None if frame_mask is None else frame_mask[:, None, None]
        conditioning = (t, context, time_aligned_context, rotary, context_mask, frame_mask)

        recalled = None if cache is None else cache.recall(x.shape[:-1])
        outer = self.config.depth // 2 if recalled is None else cache.outer_blocks

        skips = []
        for block in self.in_blocks[:outer]:
            x = block(x, *conditioning)
            skips.append(x)
        if recalled is None:
            x = self.mid_block(x, *conditioning)
        for i, block in enumerate(self.out_blocks[-outer:], start=-outer):
            if cache is not None and i == -cache.outer_blocks:
                x = x if recalled is None else recalled
                cache.keep(x)
            x = block(x, *conditioning, skip=skips.pop())
        return self.final_block(x, self.time_ada_final(t))

    def preparation_layers(self) -> dict[str, nn.Module]:
        """The large layers that a sampling call reads only before its first step, by name: a third of the weights."""
        names = re.compile(
            r"(adaln\.time_ada|ta_context_projection|cross_attn\.to_[kv]|time_ada_final|context_embed\.[02])$"
        )
        return {name: layer for name, layer in self.named_modules() if names.search(name)}

    def layer_weights(self, layer: nn.Module, device, dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of one of the network's layers as it computes with them."""
        weight, bias = (None if tensor is None else tensor.to(device, dtype) for tensor in (layer.weight, layer.bias))
        return weight, bias

    def is_resident(self, layer: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether a layer computes with its weight as it stands, on that device and in that dtype, so that it can be copied."""
        weight = layer.weight
        return type(weight) is nn.Parameter and (weight.device, weight.dtype) == (device, dtype)


class Block(nn.Module):
    """Self-attention over frames, the time-aligned context, cross-attention to the text, a gated MLP."""

    def __init__(self, config: BackboneConfig, operations, factory: dict, skip: bool = False):
        super().__init__()
        D = config.embed_dim
        self.adaln = AdaLN(D, operations, factory)
        self.norm1 = operations.LayerNorm(D, **factory)
        self.attn = Attention(config, operations, factory)
        self.ta_context_norm = operations.LayerNorm(config.ta_context_dim, **factory)
        self.ta_context_projection = operations.Linear(config.ta_context_dim, D, bias=False, **factory)
        self.norm2 = operations.LayerNorm(D, **factory)
        self.norm_context = operations.LayerNorm(D, **factory)
        self.cross_attn = Attention(config, operations, factory)
        self.norm3 = operations.LayerNorm(D, **factory)
        self.mlp = MLP(config, operations, factory)
        if skip:
            self.skip_norm = operations.LayerNorm(2 * D, **factory)
            self.skip_linear = operations.Linear(2 * D, D, **factory)

    def forward(self, x, t, context, time_aligned_context, rotary, context_mask, frame_mask, skip=None):
        """``x`` and ``skip`` ``[B, T, D]``, ``t`` ``[B, D]``, ``context`` ``[B, S, D]`` -> ``[B, T, D]``."""
        if skip is not None:
            x = self.skip_linear(self.skip_norm(torch.cat([x, skip], dim=-1)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaln(t)
        x = x + torch.tanh(1 - gate_a) * self.attn(
            modulate(self.norm1(x), shift_a, scale_a), rotary=rotary, mask=frame_mask
        )
        x = x + self.ta_context_projection(self.ta_context_norm(time_aligned_context))
        x = x + self.cross_attn(self.norm2(x), context=self.norm_context(context), mask=context_mask)
        return x + (1 - gate_m) * self.mlp(modulate(self.norm3(x), shift_m, scale_m))


class Attention(nn.Module):
    """Multi-head attention with layer-normalised queries and keys; rotary positions when a table is given."""

    def __init__(self, config: BackboneConfig, operations, factory: dict):
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.to_q = operations.Linear(D, D, bias=False, **factory)
        self.to_k = operations.Linear(D, D, bias=False, **factory)
        self.to_v = operations.Linear(D, D, bias=False, **factory)
        self.norm_q = operations.LayerNorm(config.head_dim, **factory)
        self.norm_k = operations.LayerNorm(config.head_dim, **factory)
        self.proj = operations.Linear(D, D, **factory)

    def forward(self, x: Tensor, context: Tensor | None = None, rotary=None, mask: Tensor | None = None) -> Tensor:
        """``x`` ``[B, T, D]``, ``context`` ``[B, S, D]`` (None: ``x`` itself), ``mask`` ``[B, 1, 1, keys]``."""
        context = x if context is None else context
        q, k, v = (
            rearrange(tensor, "b n (h d) -> b h n d", h=self.num_heads)
            for tensor in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        q, k = self.norm_q(q), self.norm_k(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class AdaLN(nn.Module):
    """The six modulation vectors of a block, each ``[B, 1, D]``."""

    def __init__(self, D: int, operations, factory: dict):
        super().__init__()
        self.time_ada = operations.Linear(D, 6 * D, **factory)

    def forward(self, t: Tensor) -> tuple[Tensor, ...]:
        return self.time_ada(t)[:, None].chunk(6, dim=-1)


class MLP(nn.Module):
    """GEGLU feed-forward, ``[B, T, D]`` -> ``[B, T, D]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict):
        super().__init__()
        D, hidden = config.embed_dim, config.mlp_dim
        # The published names leave place 1 to a dropout without weights.
        self.net = nn.ModuleList(
            [GEGLU(D, hidden, operations, factory), nn.Identity(), operations.Linear(hidden, D, **factory)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class GEGLU(nn.Module):
    """value * GELU(gate) (arXiv 2002.05202), with the exact GELU."""

    def __init__(self, D: int, hidden: int, operations, factory: dict):
        super().__init__()
        self.proj = operations.Linear(D, 2 * hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class PatchEmbed(nn.Module):
    """One token a frame: ``[B, C, T]`` -> ``[B, T, D]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict):
        super().__init__()
        self.proj = operations.Conv1d(config.latent_dim, config.embed_dim, kernel_size=1, **factory)

    def forward(self, latent: Tensor) -> Tensor:
        return self.proj(latent).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Timestep ``[B]`` -> time token ``[B, D]``."""

    def __init__(self, D: int, operations, factory: dict):
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(TIME_FEATURES, D, **factory), nn.SiLU(), operations.Linear(D, D, **factory)
        )

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        half = TIME_FEATURES // 2
        steps = truncate_timesteps(timesteps).float()
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=steps.device, dtype=torch.float32) / half)
        angles = steps[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return F.silu(self.mlp(features.to(dtype)))


class FinalBlock(nn.Module):
    """``[B, T, D]`` and the final modulation ``[B, 2 D]`` -> velocity ``[B, C, T]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict):
        super().__init__()
        C, D = config.latent_dim, config.embed_dim
        self.norm = operations.LayerNorm(D, **factory)
        self.linear = operations.Linear(D, C, **factory)
        self.final_layer = operations.Conv1d(C, C, kernel_size=3, padding=1, **factory)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation[:, None].chunk(2, dim=-1)
        x = self.linear(modulate(self.norm(x), shift, scale))
        return self.final_layer(x.transpose(1, 2))


def place(backbone: Backbone, device: torch.device, roomy: bool = True) -> Backbone:
    """Move a backbone to ``device``; if that is not roomy, without its preparation layers, 1.4 GB in bfloat16.

    Those are then read from where they are, one at a time, when they are called.
    """
    if roomy:
        return backbone.to(device)
    layers = {layer for layer in backbone.preparation_layers().values() if isinstance(layer, nn.Linear)}
    for module in backbone.modules():
        if module in layers:
            module.forward = partial(_from_afar, module)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to(device), requires_grad=False))
    return backbone


def _from_afar(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.device), None if layer.bias is None else layer.bias.to(x.device))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def rotary_table(frames: int, head_dim: int, device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[T, d]`` of rotary position embeddings (arXiv 2104.09864), in float32."""
    inv_freq = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + d/2) of ``[B, H, T, d]`` by its frame's angle, in float32."""
    cos, sin = table
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    return (x32 * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def load_backbone(checkpoint: Checkpoint, operations=nn, dtype=torch.float32) -> Backbone:
    """Load the backbone of an audio generator; the rest of the file is not read.

    Matrices that are stored quantised stay so, in :class:`QuantizedLinear` layers; ``dtype`` is all the others'.

    Raises:
        CheckpointError: see :func:`check_audiogen`; or tensors missing or wrongly shaped.
    """
    config = check_audiogen(checkpoint)
    backbone = Backbone(config, operations, device="meta", dtype=dtype)
    twin = Backbone(config, device="meta", dtype=dtype)
    load_weights(backbone, twin, backbone_weights(checkpoint), str(checkpoint.path), QuantizedLinear)
    return backbone


def check_audiogen(checkpoint: Checkpoint) -> BackboneConfig:
    """The sizes of an audio generator's backbone.

    Raises:
        CheckpointError: not an audio generator, one with tensors of something else, or one of a form that was
            never published.
    """
    source = str(checkpoint.path)
    check_published_forms(checkpoint.config, source)
    config = BackboneConfig.from_checkpoint(checkpoint.shapes, checkpoint.config, source)
    strangers = [name for name in checkpoint.shapes if not name.startswith(TOP_LEVEL)]
    if strangers:
        raise CheckpointError(f"{source} holds tensors this model does not have: {', '.join(strangers[:6])}.")
    return config


def backbone_weights(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The backbone's tensors by their names in :class:`Backbone`."""
    weights = {name.removeprefix(PREFIX): checkpoint.tensor(name) for name in checkpoint.under(PREFIX)}
    if "dummy_ta_embed" in checkpoint.shapes:
        weights["dummy_ta_embed"] = checkpoint.tensor("dummy_ta_embed")
    return weights
