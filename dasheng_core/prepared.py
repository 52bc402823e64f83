"""The backbone prepared for one sampling call.

Much of what the network computes depends on the schedule alone, or on the prompt alone. Prepared once, a call's
evaluations need two thirds of the weights and 88 % of the arithmetic, and give what ``Backbone.forward`` gives, up to
rounding:

- the six modulation vectors of every block and step, folded into the weights of the layer norms before them, so that
  an evaluation neither computes nor applies them: norm(x) (1 + scale) + shift is a norm with other weights;
- keys and values of the text, per block; text of any length then costs next to nothing;
- what the time-aligned context adds, and all that cross-attention adds in the unconditional branch: its tokens are
  all alike, so every query finds the same value. Both are one vector per block and branch;
- queries, keys and values of self-attention as one product; rotary tables once for all blocks;
- the first block's self-attention once for all branches, which differ only after it; guidance before the last two
  linear layers, which then have one branch to do.

A prepared state belongs to the weights, schedule and prompts that it was made from. Make one for a sampling call and
drop it afterwards: nothing in it notices when any of them changes.

Dimensions: as in ``backbone``; G branches (conditional, unconditional, or any prompts) of B items each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Attention, Backbone, Block, rotary_table

# Fewer evaluations do not pay for laying the weights out anew.
MIN_STEPS_TO_PACK = 4


@dataclass(frozen=True)
class Branch:
    """What one branch is conditioned on.

    Attributes:
        contexts: ``[n, S, X]`` each, for the items in order; the n add up to B, or are a single 1 for all items.
            None at all: nothing but zeros, as the unconditional branch has it.
        time_aligned: ``[X]``, the same vector at every frame.
    """

    contexts: Sequence[Tensor]
    time_aligned: Tensor


@dataclass(frozen=True)
class Text:
    """Keys and values ``[n, H, S, d]`` of one block for a run of rows."""

    rows: slice
    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Conditioning:
    """A list of branches, prepared.

    Attributes:
        order: the branches' places in the given list; those with a text come first.
        blocks: per block, the branches' constants ``[G, 1, 1, D]`` and their texts.
    """

    order: tuple[int, ...]
    blocks: list[tuple[Tensor, list[Text]]]


class PreparedBackbone(nn.Module):
    """A backbone, with all that the timesteps of a schedule decide computed beforehand."""

    def __init__(self, backbone: Backbone, timesteps: Sequence[int], device: torch.device, dtype: torch.dtype):
        """
        Args:
            backbone: its weights are used where they lie, except those of self-attention's queries, keys and values,
                which are joined, and on a CPU in bfloat16 all, which are copied in the layout of its matrix units.
            timesteps: whole numbers, 0 to 1000, of the evaluations to come; others are prepared when they come.
            device, dtype: of the evaluations.
        """
        super().__init__()
        self.config = backbone.config
        self.device, self.dtype = torch.device(device), dtype
        # Not a submodule: its parameters are not this one's.
        self._layers = _Layers(backbone, self.device, dtype, packs_weights(self.device, dtype, len(timesteps)))
        self._backbone = (backbone,)
        self.blocks = nn.ModuleList(PreparedBlock(block, self._layers) for block in _blocks(backbone))
        self.final_linear = self._layers.linear(backbone.final_block.linear)
        self.final_layer = self._layers.convolution(backbone.final_block.final_layer)
        self.patch_embed = self._layers.convolution(backbone.patch_embed.proj)
        self._steps: dict[int, Tensor] = {}
        self._rotary: dict[int, tuple[Tensor, Tensor]] = {}
        self._prepare_steps(sorted(set(timesteps)))

    def step(self, timestep: int) -> Tensor:
        """Modulation of one timestep, ``[6 blocks + 2, D]``: weight, bias and gate of self-attention, then of the MLP,
        for each block; weight and bias of the last norm."""
        if timestep not in self._steps:
            self._prepare_steps([timestep])
        return self._steps[timestep]

    def rotary(self, frames: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines ``[T, 1, 1, d]``, float32."""
        if frames not in self._rotary:
            cos, sin = rotary_table(frames, self.config.head_dim, self.device)
            first, second = sin.chunk(2, dim=-1)
            self._rotary[frames] = (cos[:, None, None], torch.cat([-first, second], dim=-1)[:, None, None])
        return self._rotary[frames]

    def condition(self, branches: Sequence[Branch], items: int) -> Conditioning:
        """Prepare what the branches are conditioned on, for batches of so many items."""
        backbone = self._backbone[0]
        order = sorted(range(len(branches)), key=lambda i: not branches[i].contexts)
        texts = sum(bool(branch.contexts) for branch in branches)
        runs: list[tuple[slice, int, Tensor]] = []
        for place, branch in enumerate(branches[i] for i in order[:texts]):
            start = place * items
            for context in branch.contexts:
                count = items if len(branch.contexts) == 1 and len(context) == 1 else len(context)
                runs.append((slice(start, start + count), count, backbone.context_embed(self._on(context))))
                start += count
        nothing = backbone.context_embed(self._on(torch.zeros(1, 1, self.config.context_dim)))
        time_aligned = torch.stack([self._on(branches[i].time_aligned) for i in order])[:, None, None]
        blocks = []
        for block in _blocks(backbone):
            constant = block.ta_context_projection(block.ta_context_norm(time_aligned))
            if texts < len(order):
                # One token, or several alike: attention is sure to find its value.
                attn = block.cross_attn
                constant[texts:] += attn.proj(attn.to_v(block.norm_context(nothing)))
            heard = [Text(rows, *_keys_and_values(block, context, count)) for rows, count, context in runs]
            blocks.append((constant, heard))
        return Conditioning(tuple(order), blocks)

    def velocity(self, latent: Tensor, timestep: int, conditioning: Conditioning, lengths=()) -> Tensor:
        """Predict every branch's velocity.

        Args:
            latent: ``[B, T, C]``, one for all branches, or ``[G, B, T, C]``.
            timestep: a whole number, 0 to 1000.
            lengths: see :meth:`forward`.

        Returns:
            ``[G, B, T, C]``, in the order that the branches were given in.
        """
        if latent.ndim == 4:
            latent = _reordered(latent, conditioning.order)
        velocity = self(latent, self.step(timestep), conditioning, None, lengths)
        return _reordered(velocity, sorted(range(len(velocity)), key=conditioning.order.__getitem__))

    def guided_velocity(self, latent, timestep: int, conditioning: Conditioning, scale: float, lengths=()) -> Tensor:
        """Classifier-free guidance, v_u + scale (v_c - v_u), of two branches, the conditional one given first.

        Mixed before the last two linear layers: the weights of the sum add up to 1, so that even biases agree.

        Returns:
            ``[B, T, C]``.
        """
        if conditioning.order == (1, 0):
            scale = 1 - scale
        return self(latent, self.step(timestep), conditioning, scale, lengths)

    def forward(
        self,
        latent: Tensor,
        step: Tensor,
        conditioning: Conditioning,
        guidance_scale: float | None = None,
        lengths: Sequence[tuple[slice, int]] = (),
    ) -> Tensor:
        """One evaluation, of tensors alone: no branch in it looks at a value.

        Args:
            latent: ``[B, T, C]`` or ``[G, B, T, C]``, branches with a text first.
            step: see :meth:`step`.
            guidance_scale: mix two branches; None keeps them apart.
            lengths: for items shorter than T, runs of items and their frames; later frames are hidden from attention.

        Returns:
            ``[B, T, C]`` mixed, or ``[G, B, T, C]``.
        """
        rotary = self.rotary(latent.shape[-2])
        x = self.patch_embed(latent)
        x = x if x.ndim == 4 else x[None]
        steps = step[:-2].unflatten(0, (-1, 6)).unbind()
        half = len(self.blocks) // 2
        skips = []
        for i, (block, modulation) in enumerate(zip(self.blocks, steps, strict=True)):
            skip = skips.pop() if i > half else None
            x = block(x, modulation, *conditioning.blocks[i], rotary, lengths, skip)
            if i < half:
                skips.append(x)
        x = F.layer_norm(x, x.shape[-1:], *step[-2:].unbind())
        if guidance_scale is not None:
            x = torch.lerp(x[1], x[0], guidance_scale)
        return self.final_layer(self.final_linear(x))

    def _prepare_steps(self, timesteps: list[int]) -> None:
        backbone = self._backbone[0]
        t = backbone.time_embed(torch.tensor(timesteps, device=self.device), dtype=self.dtype)
        rows = []
        for block in _blocks(backbone):
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part[:, 0].float() for part in block.adaln(t))
            rows += self._layers.folded(block.norm1, shift_a, scale_a) + [torch.tanh(1 - gate_a)]
            rows += self._layers.folded(block.norm3, shift_m, scale_m) + [1 - gate_m]
        shift, scale = backbone.time_ada_final(t).float().chunk(2, dim=-1)
        rows += self._layers.folded(backbone.final_block.norm, shift, scale)
        table = torch.stack([row.to(self.dtype) for row in rows], dim=1)
        self._steps.update(zip(timesteps, table.unbind(), strict=True))

    def _on(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)


class PreparedBlock(nn.Module):
    """A block whose modulation, text and constants are given."""

    def __init__(self, block: Block, layers: "_Layers"):
        super().__init__()
        attn, cross = block.attn, block.cross_attn
        self.num_heads = attn.num_heads
        self.qkv = layers.joined(attn)
        self.norm_qk = layers.stacked_norms(attn)
        self.proj = layers.linear(attn.proj)
        self.norm2 = block.norm2
        self.cross_q, self.cross_norm_q = layers.linear(cross.to_q), cross.norm_q
        self.cross_proj = layers.linear(cross.proj)
        self.up, self.down = layers.linear(block.mlp.net[0].proj), layers.linear(block.mlp.net[2])
        if hasattr(block, "skip_linear"):
            self.skip_norm, self.skip_linear = block.skip_norm, layers.linear(block.skip_linear)

    def forward(self, x, modulation, constant, texts, rotary, lengths, skip=None):
        """``x`` ``[G, B, T, D]``, in the first block ``[1, B, T, D]``; ``modulation`` ``[6, D]`` -> ``[G, B, T, D]``."""
        if skip is not None:
            x = self.skip_linear(self.skip_norm(torch.cat([x, skip], dim=-1)))
        weight_a, bias_a, gate_a, weight_m, bias_m, gate_m = modulation.unbind()
        width = x.shape[-1:]
        y = self.self_attention(F.layer_norm(x, width, weight_a, bias_a), rotary, lengths)
        x = torch.addcmul(x, y, gate_a) + constant
        if texts:
            rows = x.view(-1, *x.shape[-2:])[: texts[-1].rows.stop]
            rows += self.cross_attention(self.norm2(rows), texts)
        value, gate = self.up(F.layer_norm(x, width, weight_m, bias_m)).chunk(2, dim=-1)
        return torch.addcmul(x, self.down(value * F.gelu(gate)), gate_m)

    def self_attention(self, x: Tensor, rotary, lengths) -> Tensor:
        qkv = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        q, k = (part.transpose(1, 2) for part in self.norm_qk(qkv[:, :, :2], rotary).unbind(2))
        v = qkv[:, :, 2].transpose(1, 2)
        if not lengths:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            B, runs = x.shape[1], []
            for start in range(0, len(q), B):
                for rows, frames in lengths:
                    r = slice(start + rows.start, start + rows.stop)
                    runs.append(F.scaled_dot_product_attention(q[r], k[r, :, :frames], v[r, :, :frames]))
            y = torch.cat(runs)
        return self.proj(y.transpose(1, 2).flatten(2)).view(x.shape)

    def cross_attention(self, x: Tensor, texts: list[Text]) -> Tensor:
        """``x`` ``[rows, T, D]``."""
        q = self.cross_norm_q(self.cross_q(x).unflatten(-1, (self.num_heads, -1))).transpose(1, 2)
        found = [F.scaled_dot_product_attention(q[t.rows], t.key, t.value) for t in texts]
        y = found[0] if len(found) == 1 else torch.cat(found)
        return self.cross_proj(y.transpose(1, 2).flatten(2))


class Linear(nn.Module):
    """x W^T + b, with a weight ``[N, K]`` of any layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class PackedLinear(nn.Module):
    """x W^T + b, with a copy of W in the layout that a CPU's matrix units read; else they rewrite it at each product.

    The operations are those that torch.compile emits for a CPU: ``torch.nn`` has no way to ask for them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")


class FrameConvolution(nn.Module):
    """A convolution along ``[..., T, C]`` with zeros beyond the ends, as one product of neighbouring frames."""

    def __init__(self, linear: nn.Module, kernel: int):
        super().__init__()
        self.linear, self.kernel = linear, kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel > 1:
            x = F.pad(x, (0, 0, self.kernel // 2, self.kernel // 2))
            x = x.unfold(-2, self.kernel, 1).transpose(-1, -2).flatten(-2)
        return self.linear(x)


class Joined(nn.Module):
    """Layers of the same input whose weights cannot be joined, side by side."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


class ConvolutionLayer(nn.Module):
    """A convolution of the backbone, called with ``[..., T, C]``."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3).transpose(1, 2)
        return self.layer(rows).transpose(1, 2).unflatten(0, x.shape[:-2])


class NormRotate(nn.Module):
    """Layer norm of queries and keys, then rotary positions, in float32: ``[R, T, 2, H, d]`` -> the same."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("weight", weight.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)

    def forward(self, qk: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        cos, signed_sin = rotary
        x = torch.addcmul(self.bias, F.layer_norm(qk.float(), qk.shape[-1:]), self.weight)
        first, second = x.chunk(2, dim=-1)
        return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), signed_sin).to(qk.dtype)


class _Layers:
    """The backbone's layers, in the form that evaluates fastest."""

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype, packs: bool):
        self.backbone, self.device, self.dtype, self.packs = backbone, device, dtype, packs

    def weights(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        return self.backbone.layer_weights(layer, self.device, self.dtype)

    def resident(self, *layers: nn.Module) -> bool:
        """Whether the layers' weights can be used where they lie. Others are read by the layer itself, each time."""
        return all(self.backbone.is_resident(layer, self.device, self.dtype) for layer in layers)

    def linear(self, layer: nn.Module) -> nn.Module:
        return self._linear(*self.weights(layer)) if self.resident(layer) else layer

    def joined(self, attn: Attention) -> nn.Module:
        layers = (attn.to_q, attn.to_k, attn.to_v)
        if not self.resident(*layers):
            return Joined(layers)
        return self._linear(torch.cat([self.weights(layer)[0] for layer in layers]), None)

    def convolution(self, layer: nn.Module) -> nn.Module:
        if not self.resident(layer):
            return ConvolutionLayer(layer)
        weight, bias = self.weights(layer)
        return FrameConvolution(self._linear(weight.transpose(1, 2).flatten(1), bias), weight.shape[-1])

    def stacked_norms(self, attn: Attention) -> NormRotate:
        weights, biases = zip(*(self.weights(norm) for norm in (attn.norm_q, attn.norm_k)), strict=True)
        return NormRotate(torch.stack(weights)[:, None], torch.stack(biases)[:, None])

    def folded(self, norm: nn.Module, shift: Tensor, scale: Tensor) -> list[Tensor]:
        weight, bias = (tensor.float() for tensor in self.weights(norm))
        return [weight * (1 + scale), bias * (1 + scale) + shift]

    def _linear(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return (PackedLinear if self.packs else Linear)(weight, bias)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones: GPUs do, some CPUs do."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


def packs_weights(device: torch.device, dtype: torch.dtype, steps: int) -> bool:
    fast = device.type == "cpu" and dtype == torch.bfloat16 and has_fast_bfloat16(device)
    return fast and steps >= MIN_STEPS_TO_PACK and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def split_padded(context: Tensor, mask: Tensor | None) -> list[Tensor]:
    """``[B, S, X]`` and its mask ``[B, S]`` -> the real tokens, ``[n, S', X]`` for each run of items of one length."""
    if mask is None:
        return [context]
    runs: list[list[Tensor]] = []
    for tokens, real in zip(context, mask, strict=True):
        tokens = tokens[real]
        if runs and runs[-1][0].shape == tokens.shape:
            runs[-1].append(tokens)
        else:
            runs.append([tokens])
    return [torch.stack(run) for run in runs]


def split_frames(frame_mask: Tensor | None) -> list[tuple[slice, int]]:
    """A frame mask ``[B, T]``, True up to each item's length -> runs of items and their length."""
    if frame_mask is None or bool(frame_mask.all()):
        return []
    runs: list[tuple[slice, int]] = []
    for item, frames in enumerate(frame_mask.sum(dim=1).tolist()):
        start = item
        if runs and runs[-1][1] == frames:
            start = runs.pop()[0].start
        runs.append((slice(start, item + 1), frames))
    return runs


def _blocks(backbone: Backbone) -> list[Block]:
    return [*backbone.in_blocks, backbone.mid_block, *backbone.out_blocks]


def _keys_and_values(block: Block, context: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``context`` ``[n, S, D]`` -> keys and values ``[count, H, S, d]``; n may be 1 for all rows."""
    attn, context = block.cross_attn, block.norm_context(context)
    key, value = (layer(context).unflatten(-1, (attn.num_heads, -1)) for layer in (attn.to_k, attn.to_v))
    return tuple(tensor.transpose(1, 2).expand(count, -1, -1, -1) for tensor in (attn.norm_k(key), value))


def _reordered(tensor: Tensor, order: Sequence[int]) -> Tensor:
    return tensor if list(order) == sorted(order) else torch.stack([tensor[i] for i in order])
