"""The baseline that speed is measured against: the backbone and its sampling loop, written for clarity, not for speed.

The same mathematics as ``dasheng_core``, with none of its savings: every mask is built whether anything is padded or
not, each block computes its modulation, keys and values of the text at each step, the time-aligned context is projected
for every frame, guidance doubles the batch, every layer has rotary tables of its own, and the loop ends with an
evaluation whose step is zero. It takes ``Backbone.state_dict()`` as it is (module names are the published tensor
names), and its mathematics are held against the golden data by tests/test_benchmarks.py.

Dimensions: B batch, T latent frames, S text tokens, C latent channels, D model width, H heads, d width of a head,
X context width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dasheng_core.config import BackboneConfig


class StraightforwardBackbone(nn.Module):
    """``[B, C, T]`` latent in, ``[B, C, T]`` velocity out."""

    def __init__(self, config: BackboneConfig, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        C, D, half = config.latent_dim, config.embed_dim, config.depth // 2
        self.config = config
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv1d(C, D, 1, **factory)})
        self.time_embed = nn.ModuleDict({"mlp": perceptron(256, D, factory)})
        self.time_ada_final = nn.Linear(D, 2 * D, **factory)
        self.context_embed = perceptron(config.context_dim, D, factory)
        self.in_blocks = nn.ModuleList(Block(config, factory) for _ in range(half))
        self.mid_block = Block(config, factory)
        self.out_blocks = nn.ModuleList(Block(config, factory, skip=True) for _ in range(half))
        self.final_block = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(D, **factory),
                "linear": nn.Linear(D, C, **factory),
                "final_layer": nn.Conv1d(C, C, 3, padding=1, **factory),
            }
        )
        self.dummy_ta_embed = nn.Parameter(torch.empty(config.ta_context_dim, **factory))

    def forward(self, latent, timestep, context, time_aligned_context, context_mask, frame_mask) -> Tensor:
        """Predict the velocity.

        Args:
            latent: ``[B, C, T]``.
            timestep: ``[B]``, 0 to 1000; truncated to whole numbers here.
            context: ``[B, S, X]``.
            time_aligned_context: ``[B, T, X]``.
            context_mask: ``[B, S]`` bool, True for real tokens.
            frame_mask: ``[B, T]`` bool, True for real frames.
        """
        x = self.patch_embed["proj"](latent).transpose(1, 2)
        t = F.silu(self.time_embed["mlp"](time_features(timestep).to(x.dtype)))
        context = self.context_embed(context)

        skips = []
        for block in self.in_blocks:
            x = block(x, t, context, time_aligned_context, context_mask, frame_mask)
            skips.append(x)
        x = self.mid_block(x, t, context, time_aligned_context, context_mask, frame_mask)
        for block in self.out_blocks:
            x = torch.cat([x, skips.pop()], dim=-1)
            x = block(x, t, context, time_aligned_context, context_mask, frame_mask)

        shift, scale = self.time_ada_final(t)[:, None].chunk(2, dim=-1)
        x = self.final_block["norm"](x) * (1 + scale) + shift
        x = self.final_block["linear"](x)
        return self.final_block["final_layer"](x.transpose(1, 2))


class Block(nn.Module):
    """One layer. With ``skip``, ``x`` is twice as wide: the layer's input beside the output of its mirror image."""

    def __init__(self, config: BackboneConfig, factory: dict, skip: bool = False):
        super().__init__()
        D, X = config.embed_dim, config.ta_context_dim
        self.adaln = nn.ModuleDict({"time_ada": nn.Linear(D, 6 * D, **factory)})
        self.norm1 = nn.LayerNorm(D, **factory)
        self.attn = Attention(config, factory, rotary=True)
        self.ta_context_norm = nn.LayerNorm(X, **factory)
        self.ta_context_projection = nn.Linear(X, D, bias=False, **factory)
        self.norm2 = nn.LayerNorm(D, **factory)
        self.norm_context = nn.LayerNorm(D, **factory)
        self.cross_attn = Attention(config, factory, rotary=False)
        self.norm3 = nn.LayerNorm(D, **factory)
        self.mlp = FeedForward(D, config.mlp_dim, factory)
        self.skip = skip
        if skip:
            self.skip_norm = nn.LayerNorm(2 * D, **factory)
            self.skip_linear = nn.Linear(2 * D, D, **factory)

    def forward(self, x, t, context, time_aligned_context, context_mask, frame_mask) -> Tensor:
        if self.skip:
            x = self.skip_linear(self.skip_norm(x))
        modulation = self.adaln["time_ada"](t)[:, None]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)

        y = self.norm1(x) * (1 + scale_a) + shift_a
        x = x + torch.tanh(1 - gate_a) * self.attn(y, y, frame_mask)
        x = x + self.ta_context_projection(self.ta_context_norm(time_aligned_context))
        x = x + self.cross_attn(self.norm2(x), self.norm_context(context), context_mask)
        y = self.norm3(x) * (1 + scale_m) + shift_m
        return x + (1 - gate_m) * self.mlp(y)


class Attention(nn.Module):
    def __init__(self, config: BackboneConfig, factory: dict, rotary: bool):
        super().__init__()
        D = config.embed_dim
        self.num_heads = config.num_heads
        self.to_q = nn.Linear(D, D, bias=False, **factory)
        self.to_k = nn.Linear(D, D, bias=False, **factory)
        self.to_v = nn.Linear(D, D, bias=False, **factory)
        self.norm_q = nn.LayerNorm(config.head_dim, **factory)
        self.norm_k = nn.LayerNorm(config.head_dim, **factory)
        self.proj = nn.Linear(D, D, **factory)
        self.rotary = Rotary(config.head_dim) if rotary else None

    def forward(self, x: Tensor, context: Tensor, key_mask: Tensor) -> Tensor:
        """``x`` ``[B, T, D]`` asks ``context`` ``[B, K, D]``, of which ``key_mask`` ``[B, K]`` may be seen."""
        q = self.norm_q(self.split_heads(self.to_q(x)))
        k = self.norm_k(self.split_heads(self.to_k(context)))
        v = self.split_heads(self.to_v(context))
        if self.rotary is not None:
            q, k = self.rotary(q), self.rotary(k)
        mask = key_mask[:, None, None, :].expand(-1, 1, x.shape[1], -1).contiguous()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).flatten(2))

    def split_heads(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` -> ``[B, H, N, d]``."""
        B, N, _ = x.shape
        return x.view(B, N, self.num_heads, -1).transpose(1, 2)


class Rotary(nn.Module):
    """Rotary position embedding, half-split form, in float32; the layer keeps its own table."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.table: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, T, d]`` -> the same, turned by position."""
        frames = x.shape[2]
        if self.table is None or self.table[0].shape[0] != frames or self.table[0].device != x.device:
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
            angles = torch.outer(torch.arange(frames, dtype=torch.float32, device=x.device), 10000.0**-exponents)
            angles = torch.cat([angles, angles], dim=-1)
            self.table = angles.cos(), angles.sin()
        cos, sin = self.table
        y = x.float()
        left, right = y.chunk(2, dim=-1)
        return (y * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


class FeedForward(nn.Module):
    def __init__(self, D: int, hidden: int, factory: dict):
        super().__init__()
        up = nn.ModuleDict({"proj": nn.Linear(D, 2 * hidden, **factory)})
        self.net = nn.ModuleList([up, nn.Dropout(0.0), nn.Linear(hidden, D, **factory)])

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.net[0]["proj"](x).chunk(2, dim=-1)
        return self.net[2](self.net[1](value * F.gelu(gate)))


def perceptron(inside: int, outside: int, factory: dict) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inside, outside, **factory), nn.SiLU(), nn.Linear(outside, outside, **factory))


def time_features(timestep: Tensor) -> Tensor:
    """``[B]`` -> sinusoids ``[B, 256]`` of the truncated timestep."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=timestep.device) / 128)
    angles = timestep.long().float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sigmas(num_steps: int, sway: float = -1.0) -> Tensor:
    """``[num_steps + 1]`` float32 on the CPU, from 1 to 0."""
    if sway == 0:
        return torch.cat([torch.linspace(1, 1 / num_steps, num_steps), torch.zeros(1)])
    u = torch.linspace(0, 1, num_steps + 1)
    return 1 - (u + sway * (torch.cos(torch.pi / 2 * u) - 1 + u))


def evaluate(net, latent, timestep, context, context_mask, frame_mask, guidance_scale: float) -> Tensor:
    """One guided evaluation: float32 ``[B, C, T]``.

    Args:
        latent: float32 ``[B, C, T]``.
        timestep: a number tensor, 0 to 1000.
        context: ``[B, S, X]``.
        context_mask: ``[B, S]`` bool.
        frame_mask: ``[B, T]`` bool.
    """
    B, _, T = latent.shape
    latent = latent.to(net.dummy_ta_embed.dtype)
    context = context.to(latent.dtype)
    time_aligned = net.dummy_ta_embed.repeat(B, T, 1)
    if guidance_scale > 1:
        latent = torch.cat([latent, latent])
        context = torch.cat([context, torch.zeros_like(context)])
        time_aligned = torch.cat([time_aligned, torch.zeros_like(time_aligned)])
        context_mask = torch.cat([context_mask, context_mask])
        frame_mask = torch.cat([frame_mask, frame_mask])
    velocity = net(latent, timestep.repeat(len(latent)), context, time_aligned, context_mask, frame_mask).float()
    if guidance_scale > 1:
        conditional, unconditional = velocity.chunk(2)
        velocity = unconditional + guidance_scale * (conditional - unconditional)
    return velocity


@torch.inference_mode()
def sample(
    net: StraightforwardBackbone,
    noise: Tensor,
    context: Tensor,
    num_steps: int = 25,
    guidance_scale: float = 5.0,
    sway: float = -1.0,
    context_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
) -> Tensor:
    """Noise ``[B, C, T]`` -> latent ``[B, C, T]``, in ``num_steps + 1`` evaluations. Masks of ones where none is given."""
    B, _, T = noise.shape
    if context_mask is None:
        context_mask = torch.ones(B, context.shape[1], dtype=torch.bool, device=noise.device)
    if frame_mask is None:
        frame_mask = torch.ones(B, T, dtype=torch.bool, device=noise.device)
    grid = sigmas(num_steps, sway).to(noise.device)
    latent = noise
    for i, sigma in enumerate(grid):
        velocity = evaluate(net, latent, sigma * 1000, context, context_mask, frame_mask, guidance_scale)
        next_sigma = grid[min(i + 1, num_steps)]
        latent = latent + (next_sigma - sigma) * velocity
    return latent
