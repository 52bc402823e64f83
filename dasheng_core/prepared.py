"""The backbone prepared for one sampling call.

Much of what the network computes depends on the schedule alone, or on the prompt alone. Prepared once, a call's
evaluations need two thirds of the weights and 88 % of the arithmetic, and give what ``Backbone.forward`` gives, up to
rounding:

- the six modulation vectors of every block and step, folded into the weights of the layer norms before them, so that
  an evaluation neither computes nor applies them: norm(x) (1 + scale) + shift is a norm with other weights;
- keys and values of the text, per block; text of any length then costs next to nothing;
- what the time-aligned context adds, and all that cross-attention adds in the unconditional branch: its tokens are
  all alike, so every query finds the same value. Both are one vector per block and branch;
- queries, keys and values of self-attention as one product; rotary tables once for all steps;
- the first block's self-attention once for all branches, which differ only after it; guidance before the last two
  linear layers, which then have one branch to do.

A prepared state belongs to the weights, schedule and prompts that it was made from. Make one for a sampling call and
drop it afterwards: nothing in it notices when any of them changes.

Dimensions: as in ``backbone``; G branches (conditional, unconditional, or any prompts) of B items each.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone, Block, rotary_table
from .layers import Layers, packs_weights
from .skip_cache import SkipCache


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


@dataclass(frozen=True, eq=False)
class Conditioning:
    """A list of branches, prepared.

    Attributes:
        order: the branches' places in the given list; those with a text come first.
        blocks: per block, the branches' constants ``[G, 1, 1, D]`` and their texts.
    """

    order: tuple[int, ...]
    blocks: list[tuple[Tensor, list[Text]]]

    @property
    def signature(self) -> tuple:
        """What two that differ in numbers alone have in common."""
        constant, texts = self.blocks[0]
        return self.order, constant.shape, tuple((text.rows.start, text.rows.stop, text.key.shape) for text in texts)

    def tensors(self) -> list[Tensor]:
        return [t for constant, texts in self.blocks for t in (constant, *(x for s in texts for x in (s.key, s.value)))]

    def duplicate(self) -> "Conditioning":
        blocks = [
            (constant.clone(), [Text(text.rows, text.key.clone(), text.value.clone()) for text in texts])
            for constant, texts in self.blocks
        ]
        return Conditioning(self.order, blocks)


class PreparedBackbone(nn.Module):
    """A backbone, with all that the timesteps of a schedule decide computed beforehand."""

    def __init__(
        self,
        backbone: Backbone,
        timesteps: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        joins: bool = True,
        packs: bool = True,
        inner_layers: type[Layers] = Layers,
    ):
        """
        Args:
            backbone: its layers are called as they are, where they lie, but for what the next ones are about.
            timesteps: whole numbers, 0 to 1000, of the evaluations to come; others are prepared when they come.
            device, dtype: of the evaluations.
            joins: copy the weights of self-attention's queries, keys and values side by side: 0.5 GB in bfloat16 at the
                published size.
            packs: on a CPU, copy all weights of a step in the layout that its products read: 3 GB in bfloat16; in
                float32, for 20 evaluations or more, 7 GB.
            inner_layers: the layers of all blocks but the first and the last.
        """
        super().__init__()
        self.config = backbone.config
        self.device, self.dtype = torch.device(device), dtype
        nbytes = sum(parameter.nbytes for parameter in backbone.parameters())
        packs = packs and packs_weights(self.device, dtype, len(timesteps), nbytes)
        self._layers = Layers(backbone, self.device, dtype, joins, packs)
        # In a tuple: not a submodule, whose parameters would be this one's.
        self._backbone = (backbone,)
        inner = inner_layers(backbone, self.device, dtype, joins, packs)
        first, *middle, last = _blocks(backbone)
        layers = [(first, self._layers), *((block, inner) for block in middle), (last, self._layers)]
        self.blocks = nn.ModuleList(PreparedBlock(*pair) for pair in layers)
        self.final_linear = self._layers.linear(backbone.final_block.linear)
        self.final_layer = self._layers.convolution(backbone.final_block.final_layer)
        self.patch_embed = self._layers.convolution(backbone.patch_embed.proj)
        self.streams = self._layers.streams or inner.streams
        self.foreseen = len(timesteps)
        # How a block, and how an evaluation, is run: see ``optimize``.
        self.block: Callable = PreparedBlock.__call__
        self.evaluator: Callable | None = None
        # An approximation: where it recalls what the inner blocks said, they are left out.
        self.cache: SkipCache | None = None
        self._steps: dict[int, Tensor] = {}
        self._rotary: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._prepare_steps(sorted(set(timesteps)))

    def step(self, timestep: int) -> Tensor:
        """Modulation of one timestep, ``[6 blocks + 2, D]``: weight, bias and gate of self-attention, then of the MLP,
        for each block; weight and bias of the last norm."""
        if timestep not in self._steps:
            self._prepare_steps([timestep])
        return self._steps[timestep]

    def rotary(self, frames: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Tables of every block: see :class:`~dasheng_core.layers.NormRotate`."""
        if frames not in self._rotary:
            table = rotary_table(frames, self.config.head_dim, self.device)
            self._rotary[frames] = [block.norm_qk.tables(*table) for block in self.blocks]
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
        velocity = self._evaluate(latent, timestep, conditioning, None, lengths)
        return _reordered(velocity, sorted(range(len(velocity)), key=conditioning.order.__getitem__))

    def guided_velocity(self, latent, timestep: int, conditioning: Conditioning, scale: float, lengths=()) -> Tensor:
        """Classifier-free guidance, v_u + scale (v_c - v_u), of two branches, the conditional one given first.

        Mixed before the last two linear layers: the weights of the sum add up to 1, so that even biases agree.

        Returns:
            ``[B, T, C]``.
        """
        if conditioning.order == (1, 0):
            scale = 1 - scale
        return self._evaluate(latent, timestep, conditioning, scale, lengths)

    def forward(
        self,
        latent: Tensor,
        step: Tensor,
        conditioning: Conditioning,
        guidance_scale: float | None = None,
        lengths: Sequence[tuple[slice, int]] = (),
        outer: int = 0,
        deep: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One evaluation, of tensors alone: no branch in it looks at a value.

        Args:
            latent: ``[B, T, C]`` or ``[G, B, T, C]``, branches with a text first.
            step: see :meth:`step`.
            guidance_scale: mix two branches; None keeps them apart.
            lengths: for items shorter than T, runs of items and their frames; later frames are hidden from attention.
            outer: also give what the inner blocks, all but so many at either end, said: ``[G, B, T, D]``.
            deep: what they said before; they are left out.

        Returns:
            ``[B, T, C]`` mixed, or ``[G, B, T, C]``.
        """
        rotary = self.rotary(latent.shape[-2])
        x = self.patch_embed(latent)
        x = x if x.ndim == 4 else x[None]
        steps = step[:-2].unflatten(0, (-1, 6)).unbind()
        half = len(self.blocks) // 2
        inner = range(outer, len(self.blocks) - outer)
        skips = []
        for i, (block, modulation) in enumerate(zip(self.blocks, steps, strict=True)):
            if deep is not None and i in inner:
                continue
            if outer and i == inner.stop:
                deep = x = x if deep is None else deep
            skip = skips.pop() if i > half else None
            x = self.block(block, x, modulation, *conditioning.blocks[i], rotary[i], lengths, skip)
            if i < half:
                skips.append(x)
        x = F.layer_norm(x, x.shape[-1:], *step[-2:].unbind())
        if guidance_scale is not None:
            x = torch.lerp(x[1], x[0], guidance_scale)
        velocity = self.final_layer(self.final_linear(x))
        return (velocity, deep) if outer else velocity

    def copies(self) -> list[Tensor]:
        """The copies of weights in it, in a fixed order."""
        return list(self.buffers())

    def duplicate(self) -> "PreparedBackbone":
        """The same with copies of its own; what belongs to the backbone is shared."""
        shared = {id(module): module for module in self._backbone[0].modules()}
        shared |= {id(self._steps): {}, id(self.cache): None}
        evaluator, self.evaluator = self.evaluator, None
        try:
            return deepcopy(self, shared)
        finally:
            self.evaluator = evaluator

    def _evaluate(self, latent: Tensor, timestep: int, conditioning: Conditioning, *options) -> Tensor:
        run = self if self.evaluator is None else partial(self.evaluator, self)
        arguments = (latent, self.step(timestep), conditioning, *options)
        if self.cache is None:
            return run(*arguments)
        rows = torch.Size((len(conditioning.order), *latent.shape[-3:-1]))
        velocity, deep = run(*arguments, outer=self.cache.outer_blocks, deep=self.cache.recall(rows))
        self.cache.keep(deep)
        return velocity

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

    def __init__(self, block: Block, layers: "Layers"):
        super().__init__()
        attn, cross = block.attn, block.cross_attn
        self.num_heads = attn.num_heads
        self.qkv = layers.joined(attn)
        self.norm_qk = layers.stacked_norms(attn)
        self.proj = layers.linear(attn.proj)
        self.norm2 = block.norm2
        self.cross_q, self.cross_norm_q = layers.linear(cross.to_q), cross.norm_q
        self.cross_proj = layers.linear(cross.proj)
        self.up, self.down = layers.geglu(block.mlp.net[0].proj), layers.linear(block.mlp.net[2])
        if hasattr(block, "skip_linear"):
            self.skip_norm, self.skip_linear = block.skip_norm, layers.sensitive_linear(block.skip_linear)

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
        y = self.down(self.up(F.layer_norm(x, width, weight_m, bias_m)))
        return torch.addcmul(x, y, gate_m)

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
