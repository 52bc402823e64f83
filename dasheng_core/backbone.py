"""The backbone: a U-shaped transformer over latent frames that predicts the flow-matching velocity.

Reading order: Backbone (whole network), Block, then the parts of a block.

Dimensions: B batch, T latent frames, S text tokens, C latent channels, D model width,
H heads, d width of a head, X context width.

Module names are the published tensor names with ``backbone.`` removed, so that LoRA keys and saved
models have the checkpoint's names.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .condition import Condition
from .quoting import plain
from .schedule import truncate_timesteps
from .weights import published
from .weights.checkpoint import Checkpoint, StoredTensor
from .weights.config import BackboneConfig, check_published_forms
from .weights.loading import OfAnyLayers, load_weights
from .weights.quantized import QuantizedLinear
from .weights.reading import CheckpointError

TIME_FEATURES = 256
ROPE_BASE = 10000.0
# Attention and MLP compute longer clips in pieces of so many frames: the caller can stop between layers.
FRAMES_AT_ONCE = 1024
# Cosines and sines of rotary position embeddings, [T, 1, d] each.
Rotary: TypeAlias = tuple[Tensor, Tensor]
# Queries, keys, values [B, H, T or S, d] and what to add to the scores (or bool, or None) -> [B, H, T, d].
Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
# A prompt as one block reads it: keys and values [B, H, S, d], and which frames read which tokens.
Text: TypeAlias = tuple[Tensor, Tensor, Tensor | None]


class Frames(NamedTuple):
    """What self-attention reads of an evaluation beside its frames, the same for all blocks.

    Attributes:
        rotary: their positions.
        mask: ``[G B, 1, 1 or T, T]``, what to add to the scores, or bool; None: all frames attend to all.
        attend: how attention is computed, cross-attention too.
    """

    rotary: Rotary
    mask: Tensor | None = None
    attend: Attend = F.scaled_dot_product_attention


class Backbone(OfAnyLayers):
    """Latent, timestep and conditioning -> velocity.

    A sampling call computes :meth:`modulation` once for its schedule and :meth:`condition` once for each prompt, and
    calls :meth:`step` at each step: that needs two thirds of the weights. :meth:`forward` does the three in a row.

    ``dummy_ta_embed`` is the time-aligned context of text-to-audio: one learned vector for every frame.
    """

    def __init__(self, config: BackboneConfig, operations=nn, device=None, dtype=torch.float32):
        super().__init__()
        self.config = config
        self.dtype = dtype
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

    @property
    def blocks(self) -> list["Block"]:
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def forward(
        self,
        latent: Tensor,
        timesteps: Tensor,
        context: Tensor,
        time_aligned_context: Tensor,
        context_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latent: ``[B, C, T]``.
            timesteps: ``[B]`` or one number, 0 to 1000; truncated to whole numbers here.
            context: ``[B, S, X]``, the content adapter's output, or zeros for the unconditional branch.
            time_aligned_context: ``[B, 1, X]`` or ``[B, T, X]``; zeros for the unconditional branch.
            context_mask: ``[B, S]`` bool, True for real tokens; None when nothing is padded.
            frame_mask: ``[B, T]`` bool, True for real frames; None when nothing is padded.

        Returns:
            Velocity ``[B, C, T]``.
        """
        frames = None if context_mask is None else context_mask[:, None, None]
        condition = self.condition(context, time_aligned_context, frames)
        return self.step(latent, self.modulation(timesteps, latent.dtype), [condition], frame_mask)

    def modulation(self, timesteps: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The modulation at timesteps ``[N]`` (or one number): ``[N, 6 blocks + 2, D]``, six vectors per block, then two of the end.

        ``dtype`` is that of the computation; None: the weights' own.
        """
        t = self.time_embed(timesteps.reshape(-1), dtype=dtype or self.dtype)
        shift, scale = self.time_ada_final(t)[:, None].chunk(2, dim=-1)
        vectors = modulation_vectors(torch.stack([block.adaln(t) for block in self.blocks], dim=1))
        return torch.cat([vectors.flatten(1, 2), shift, 1 + scale], dim=1)

    def condition(self, context: Tensor | None, time_aligned: Tensor, frames: Tensor | None = None) -> Condition:
        """The keys, values and constants that depend on a prompt alone.

        Args:
            context: ``[B, S, X]``, the content adapter's output; None: zeros, as the unconditional branch has them.
                Then every query reads the same value, and cross-attention adds a constant.
            time_aligned: ``[B, 1, X]`` or ``[B, T, X]``; zeros for the unconditional branch. B may be 1 in both.
            frames: which frames read which tokens, for anything that broadcasts to ``[B, H, T, S]``: bool, or numbers
                to add to the scores (0 reads, -inf does not). None: all read all.
        """
        silent = context is None
        hidden = self.context_embed(time_aligned.new_zeros(1, 1, self.config.context_dim) if silent else context)
        parts = zip(*(block.condition(hidden, time_aligned, silent) for block in self.blocks), strict=True)
        constant, *text = (torch.stack(part) for part in parts)
        keys, values = text or (None, None)
        return Condition(constant, keys, values, frames)

    def step(
        self,
        latent: Tensor,
        modulation: Tensor,
        conditions: Sequence[Condition],
        frame_mask: Tensor | None = None,
        rotary: Rotary | None = None,
        attend: Attend = F.scaled_dot_product_attention,
    ) -> Tensor:
        """Predict the velocity of G branches of B items each.

        Args:
            latent: ``[G B, C, T]``, branch after branch.
            modulation: of one timestep for all or of one for each, ``[1 or G B, 6 blocks + 2, D]``.
            conditions: one for each branch.
            frame_mask: ``[B, T]`` bool, True for real frames; None when nothing is padded.
            rotary: :meth:`rotary` of T frames, where the caller has it.
            attend: how attention is computed.

        Returns:
            Velocity ``[G B, C, T]``.
        """
        x = self.patch_embed(latent)
        branches, items = len(conditions), len(x) // len(conditions)
        *modulations, shift, scale = modulation[:, :, None].unbind(1)
        # One constant per branch, unless one of the branches has a constant per frame.
        each = max(c.constant.shape[2] for c in conditions)
        constants = torch.cat([c.constant.expand(-1, items, each, -1) for c in conditions], dim=1)
        # [B, keys] -> [G B, 1, 1, keys]: the same for every branch, head and query.
        mask = None if frame_mask is None else frame_mask.repeat(branches, 1)[:, None, None]
        if any(c.entries is not None or c.spoken is not None for c in conditions):
            shared = torch.cat([_shared_prompts(c, items, x) for c in conditions])
            mask = shared if mask is None else shared.masked_fill(~mask, -torch.inf)
        frames = Frames(rotary or self.rotary(x.shape[1], x.device), mask, attend)
        runs = [
            (slice(run.start * items, run.stop * items), conditions[run.start : run.stop])
            for run in _with_text(conditions)
        ]

        skips: list[Tensor] = []
        blocks, half = self.blocks, self.config.depth // 2
        for i, block in enumerate(blocks):
            texts = [(rows, [c.text(i) for c in reading]) for rows, reading in runs]
            skip = skips.pop() if i > half else None
            x = block(x, modulations[6 * i : 6 * i + 6], constants[i], texts, frames, skip)
            if i < half:
                skips.append(x)
        return self.final_block(x, shift, scale)

    def rotary(self, frames: int, device) -> Rotary:
        """The table of ``frames`` positions, from 0, for :meth:`step`."""
        return rotary_table(frames, self.config.head_dim, device)


def _with_text(conditions: Sequence[Condition]) -> list[range]:
    """Neighbouring branches that have a text, as ranges: their rows are one slice."""
    runs: list[range] = []
    for branch, condition in enumerate(conditions):
        if condition.keys is None:
            continue
        if runs and runs[-1].stop == branch:
            runs[-1] = range(runs[-1].start, branch + 1)
        else:
            runs.append(range(branch, branch + 1))
    return runs


def _shared_prompts(condition: Condition, items: int, x: Tensor) -> Tensor:
    """What to add to the scores of self-attention, ``[B, 1, T, T]``: the logarithm of what two frames share of their prompts."""
    shared, spoken = x.new_zeros(1, x.shape[1], x.shape[1]), condition.spoken
    if condition.entries is not None:
        shared = (condition.entries @ condition.entries.mT).clamp(max=1).log().to(x.dtype)
    if spoken is not None:
        shared = shared.masked_fill(spoken[:, :, None] != spoken[:, None], -math.inf)
    return shared[:, None].expand(items, -1, -1, -1)


class Block(nn.Module):
    """Self-attention over frames, the time-aligned context, cross-attention to the text, a gated MLP."""

    def __init__(self, config: BackboneConfig, operations, factory: dict[str, Any], skip: bool = False):
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

    def condition(self, context: Tensor, time_aligned: Tensor, silent: bool) -> tuple[Tensor, ...]:
        """The constant ``[B, T, D]`` and, unless the context is zeros, keys and values ``[B, H, S, d]``."""
        constant = self.ta_context_projection(self.ta_context_norm(time_aligned))
        context = self.norm_context(context)
        if silent:
            return (constant + self.cross_attn.proj(self.cross_attn.to_v(context)),)
        keys, values = self.cross_attn.keys(context), self.cross_attn.values(context)
        return constant, keys.transpose(1, 2), values.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        modulation: Sequence[Tensor],
        constant: Tensor,
        texts: Sequence[tuple[slice, Sequence[Text]]],
        frames: Frames,
        skip: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            x, skip: ``[G B, T, D]``; ``skip`` is the output of the block on the other side of the U.
            modulation: six of :func:`modulation_vectors`, ``[1 or G B, 1, D]`` each.
            constant: ``[G B, 1 or T, D]``.
            texts: rows of neighbouring branches that have a text, and the text of each branch.
        """
        if skip is not None:
            x = self.skip_linear(self.skip_norm(torch.cat([x, skip], dim=-1)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        x = torch.addcmul(x, gate_a, self.attn(torch.addcmul(shift_a, self.norm1(x), scale_a), frames))
        x = x + constant
        for rows, read in texts:
            part = x[rows]
            found = self.cross_attention(part, read, frames.attend)
            if len(part) == len(x):
                x = x + found
            else:
                part += found
        return torch.addcmul(x, gate_m, self.mlp(torch.addcmul(shift_m, self.norm3(x), scale_m)))

    def cross_attention(self, x: Tensor, texts: Sequence[Text], attend: Attend) -> Tensor:
        """Attention of the frames of neighbouring branches ``[G B, T, D]`` to the text of each, ``[G B, T, D]``."""
        queries = self.cross_attn.queries(self.norm2(x)).transpose(1, 2).chunk(len(texts))
        found = [
            attend(q, k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1), mask)
            for q, (k, v, mask) in zip(queries, texts, strict=True)
        ]
        return self.cross_attn.proj(_joined(found, 0).transpose(1, 2).flatten(2))


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """``torch.cat`` that copies nothing where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class Attention(nn.Module):
    """Multi-head attention with layer-normalised queries and keys; ``forward`` is self-attention with rotary positions."""

    def __init__(self, config: BackboneConfig, operations, factory: dict[str, Any]):
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.to_q = operations.Linear(D, D, bias=False, **factory)
        self.to_k = operations.Linear(D, D, bias=False, **factory)
        self.to_v = operations.Linear(D, D, bias=False, **factory)
        self.norm_q = operations.LayerNorm(config.head_dim, **factory)
        self.norm_k = operations.LayerNorm(config.head_dim, **factory)
        self.proj = operations.Linear(D, D, **factory)

    def queries(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, H, d]``."""
        return self.norm_q(self.to_q(x).unflatten(-1, (self.num_heads, -1)))

    def keys(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, H, d]``."""
        return self.norm_k(self.to_k(x).unflatten(-1, (self.num_heads, -1)))

    def values(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, N, H, d]``."""
        return self.to_v(x).unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """``x`` ``[B, T, D]`` -> ``[B, T, D]``."""
        mask, rotated = frames.mask, rotate(self.queries(x), self.keys(x), frames.rotary)
        queries, keys, values = (heads.transpose(1, 2) for heads in (*rotated, self.values(x)))
        pieces = queries.split(FRAMES_AT_ONCE, dim=2)
        # A mask of one row is that of every query.
        masks = mask.split(FRAMES_AT_ONCE, dim=2) if mask is not None and mask.shape[2] > 1 else [mask] * len(pieces)
        found = [
            self.proj(frames.attend(piece, keys, values, part).transpose(1, 2).flatten(2))
            for piece, part in zip(pieces, masks, strict=True)
        ]
        return _joined(found, 1)


class AdaLN(nn.Module):
    """Time tokens ``[N, D]`` -> what :func:`modulation_vectors` makes six vectors of, ``[N, 6 D]``."""

    def __init__(self, D: int, operations, factory: dict[str, Any]):
        super().__init__()
        self.time_ada = operations.Linear(D, 6 * D, **factory)

    def forward(self, t: Tensor) -> Tensor:
        return self.time_ada(t)


def modulation_vectors(raw: Tensor) -> Tensor:
    """``[N, blocks, 6 D]`` -> ``[N, blocks, 6, D]``: shift, scale and gate of self-attention, then of the MLP."""
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = raw.chunk(6, dim=-1)
    return torch.stack((shift_a, 1 + scale_a, torch.tanh(1 - gate_a), shift_m, 1 + scale_m, 1 - gate_m), dim=2)


class MLP(nn.Module):
    """GEGLU feed-forward, ``[B, T, D]`` -> ``[B, T, D]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict[str, Any]):
        super().__init__()
        D, hidden = config.embed_dim, config.mlp_dim
        # In the published names, index 1 is a dropout without weights.
        self.net = nn.ModuleList(
            [GEGLU(D, hidden, operations, factory), nn.Identity(), operations.Linear(hidden, D, **factory)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return _joined([self.net[2](self.net[0](part)) for part in x.split(FRAMES_AT_ONCE, dim=1)], 1)


class GEGLU(nn.Module):
    """value * GELU(gate) (arXiv 2002.05202), with the exact GELU."""

    def __init__(self, D: int, hidden: int, operations, factory: dict[str, Any]):
        super().__init__()
        self.proj = operations.Linear(D, 2 * hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class PatchEmbed(nn.Module):
    """One token per frame: ``[B, C, T]`` -> ``[B, T, D]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict[str, Any]):
        super().__init__()
        self.proj = operations.Conv1d(config.latent_dim, config.embed_dim, kernel_size=1, **factory)

    def forward(self, latent: Tensor) -> Tensor:
        return self.proj(latent).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Timestep ``[B]`` -> time token ``[B, D]``."""

    def __init__(self, D: int, operations, factory: dict[str, Any]):
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
    """``[B, T, D]``, shift and scale ``[B, 1, D]`` -> velocity ``[B, C, T]``."""

    def __init__(self, config: BackboneConfig, operations, factory: dict[str, Any]):
        super().__init__()
        C, D = config.latent_dim, config.embed_dim
        self.norm = operations.LayerNorm(D, **factory)
        self.linear = operations.Linear(D, C, **factory)
        self.final_layer = operations.Conv1d(C, C, kernel_size=3, padding=1, **factory)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = self.linear(torch.addcmul(shift, self.norm(x), scale))
        return self.final_layer(x.transpose(1, 2))


def rotary_table(frames: int, head_dim: int, device) -> Rotary:
    """Rotary position embeddings (arXiv 2104.09864) in float32: cosines, and sines with the sign that :func:`rotate` needs."""
    inv_freq = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None, None] * inv_freq
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(queries: Tensor, keys: Tensor, table: Rotary) -> Sequence[Tensor]:
    """Rotate each pair (i, i + d/2) of ``[B, T, H, d]`` by its frame's angle, in float32."""
    cos, sin = table
    both = torch.cat([queries, keys], dim=2)
    straight, crossed = both * cos, both.roll(both.shape[-1] // 2, dims=-1)
    # Of other dtypes the sum is rounded as it is written.
    rounded = None if straight.dtype == both.dtype else torch.empty_like(both)
    return torch.addcmul(straight, crossed, sin, out=rounded).chunk(2, dim=2)


def load_backbone(checkpoint: Checkpoint, operations=nn, dtype=torch.float32) -> Backbone:
    """Load the backbone of an audio generator; the rest of the file is not read.

    Matrices that are stored quantised stay so, in :class:`QuantizedLinear` layers; ``dtype`` is that of all others.

    Raises:
        CheckpointError: see :func:`check_audiogen`; or tensors missing or wrongly shaped.
    """
    config = check_audiogen(checkpoint)
    backbone = Backbone(config, operations, device="meta", dtype=dtype)
    load_weights(backbone, backbone_weights(checkpoint), checkpoint, QuantizedLinear)
    return backbone


def check_audiogen(checkpoint: Checkpoint) -> BackboneConfig:
    """The sizes of an audio generator's backbone.

    Raises:
        CheckpointError: not an audio generator, one with tensors of something else, or one of a form that was
            never published.
    """
    check_published_forms(checkpoint)
    config = BackboneConfig.from_checkpoint(checkpoint)
    known = tuple(names.prefix for names in published.AUDIOGEN)
    unknown = [name for name in checkpoint.shapes if not name.startswith(known)]
    if unknown:
        raise CheckpointError(
            f"{plain(checkpoint.path)} holds tensors this model does not have: {', '.join(map(plain, unknown[:6]))}."
        )
    return config


def backbone_weights(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The backbone's tensors by their names in :class:`Backbone`."""
    names = checkpoint.under(*published.prefixes(published.AUDIOGEN, "backbone"))
    return {name.removeprefix(published.BACKBONE): checkpoint.tensor(name) for name in names}
