"""Layers of the prepared backbone: the network's own, or copies of their weights in a form that evaluates faster.

Dimensions: as in ``backbone``; R rows, N outputs and K inputs of a matrix.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Attention, Backbone

# Fewer evaluations do not pay for laying the weights out anew: 7 GB of memory never touched before take long in float32.
MIN_STEPS_TO_PACK = {torch.bfloat16: 4, torch.float32: 20}


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


class GEGLU(nn.Module):
    """value * GELU(gate) (arXiv 2002.05202), both from one product."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class PackedGEGLU(nn.Module):
    """The same as two products, packed as in :class:`PackedLinear`, that do the rest before they write their results."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.value, self.gate = (PackedLinear(*half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        product, x = torch.ops.mkldnn._linear_pointwise, x.contiguous()
        gate = product(x, self.gate.weight, self.gate.bias, "gelu", [], "none")
        return product.binary(x, gate, self.value.weight, self.value.bias, "mul")


class RowsPackedLinear(nn.Module):
    """x W^T + b in float32, with a copy of W in the layout that products of so many rows read.

    How many is known at the first product. Others are computed with W as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.rows: int | None = None
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is None:
            self.rows = x.shape[:-1].numel()
            self.packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight, self.rows)
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)


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


class NormRotate(nn.Module):
    """Layer norm of queries and keys, then rotary positions, in float32: ``[R, T, 2, H, d]`` -> the same.

    The norm's weight w and bias b are in the tables. With n the normalised vector and s its halves swapped, what is
    wanted is (n w + b) cos + s(n w + b) sin, with sin negative in the first half: n (w cos) + s(n) (s(w) sin) and a
    constant.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        """``weight`` and ``bias`` ``[2, 1, d]``, of queries and keys."""
        super().__init__()
        self.register_buffer("weight", weight.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)

    def tables(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[T, d]`` each, both halves alike -> factors of n and of s(n), and the constant: ``[T, 2, 1, d]`` each."""
        cos, sin = cos[:, None, None], sin[:, None, None].clone()
        half = cos.shape[-1] // 2
        sin[..., :half].neg_()
        swapped_weight, swapped_bias = (torch.roll(tensor, half, -1) for tensor in (self.weight, self.bias))
        return self.weight * cos, swapped_weight * sin, self.bias * cos + swapped_bias * sin

    def forward(self, qk: Tensor, tables: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        factor, swapped_factor, constant = tables
        normed = F.layer_norm(qk.float(), qk.shape[-1:])
        turned = torch.addcmul(constant, normed, factor)
        # Half by half: a copy with its halves swapped takes longer than both additions.
        halves = (tensor.chunk(2, dim=-1) for tensor in (turned, normed, swapped_factor))
        (low, high), (first, second), (for_low, for_high) = halves
        low.addcmul_(second, for_low)
        high.addcmul_(first, for_high)
        return turned.to(qk.dtype)


class Layers:
    """The backbone's layers, themselves or in a form that evaluates faster.

    A layer that is called as it is may be moved, streamed or patched by whoever owns it while a call goes on.

    Attributes:
        streams: whether any of them does not compute with its weight where it lies.
    """

    def __init__(self, backbone: Backbone, device: torch.device, dtype: torch.dtype, joins: bool, packs: bool):
        self.backbone, self.device, self.dtype, self.joins, self.packs = backbone, device, dtype, joins, packs
        self.streams = False

    def weights(self, layer: nn.Module) -> tuple[Tensor, Tensor | None]:
        return self.backbone.layer_weights(layer, self.device, self.dtype)

    def resident(self, *layers: nn.Module) -> bool:
        """Whether the layers' weights can be copied as they stand. Others are read by the layer itself, each time."""
        resident = all(self.backbone.is_resident(layer, self.device, self.dtype) for layer in layers)
        self.streams |= not resident
        return resident

    def linear(self, layer: nn.Module) -> nn.Module:
        return self.packed(*self.weights(layer)) if self.resident(layer) and self.packs else layer

    def sensitive_linear(self, layer: nn.Module) -> nn.Module:
        """One that no approximation touches."""
        return Layers.linear(self, layer)

    def joined(self, attn: Attention) -> nn.Module:
        layers = (attn.to_q, attn.to_k, attn.to_v)
        if not self.resident(*layers) or not self.joins:
            return Joined(layers)
        weight = torch.cat([self.weights(layer)[0] for layer in layers])
        return self.packed(weight, None) if self.packs else Linear(weight, None)

    def geglu(self, layer: nn.Module) -> nn.Module:
        if self.packs and self.dtype == torch.bfloat16 and self.resident(layer):
            return PackedGEGLU(*self.weights(layer))
        return GEGLU(self.linear(layer))

    def convolution(self, layer: nn.Module) -> nn.Module:
        weight, bias = (tensor.clone() for tensor in self.weights(layer))
        weight, kernel = weight.transpose(1, 2).flatten(1), weight.shape[-1]
        return FrameConvolution(self.packed(weight, bias) if self.packs else Linear(weight, bias), kernel)

    def packed(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return (PackedLinear if self.dtype == torch.bfloat16 else RowsPackedLinear)(weight, bias)

    def stacked_norms(self, attn: Attention) -> NormRotate:
        weights, biases = zip(*(self.weights(norm) for norm in (attn.norm_q, attn.norm_k)), strict=True)
        return NormRotate(torch.stack(weights)[:, None], torch.stack(biases)[:, None])

    def folded(self, norm: nn.Module, shift: Tensor, scale: Tensor) -> list[Tensor]:
        weight, bias = (tensor.float() for tensor in self.weights(norm))
        return [weight * (1 + scale), bias * (1 + scale) + shift]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones: GPUs do, some CPUs do."""
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )


def packs_weights(device: torch.device, dtype: torch.dtype, steps: int, nbytes: int) -> bool:
    """Whether copies of weights of ``nbytes`` in another layout make the evaluations to come faster, and have room."""
    if device.type != "cpu" or steps < MIN_STEPS_TO_PACK.get(dtype, math.inf):
        return False
    if dtype == torch.bfloat16:
        return has_fast_bfloat16(device) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return hasattr(torch.ops.mkl, "_mkl_linear") and spare_memory() > nbytes


def spare_memory() -> int:
    """Bytes of the system's memory that can be had without swapping; 0 where psutil is not installed to tell."""
    try:
        import psutil
    except ImportError:
        return 0
    return psutil.virtual_memory().available
