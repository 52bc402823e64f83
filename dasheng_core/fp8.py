"""Matrix products of float8 numbers, which some GPUs do at twice the speed of bfloat16. An approximation.

A number is one byte: 4 bits exponent, 3 bits mantissa, largest value 448 (arXiv 2209.05433). Rows of weights and, at
every product, rows of activations are each scaled to that largest value; sums are float32.
"""

import logging
from functools import lru_cache

import torch
from torch import Tensor, nn

from .backbone import Attention
from .layers import Layers
from .quantized import QuantizedLinear, QuantizedWeight, quantize_fp8

log = logging.getLogger(__name__)
# Sizes of the products' inner and outer dimension are multiples of this.
MULTIPLE = 16


class Fp8Linear(nn.Module):
    """x W^T + b in float8, for ``x`` ``[..., in]``; the result has the dtype of ``x``."""

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None, scales_rows: bool):
        """
        Args:
            weight: of the kind F8_E4M3, ``[out, in]``.
            scales_rows: see :func:`multiply`.
        """
        super().__init__()
        self.scales_rows = scales_rows
        self.register_buffer("weight", weight.values, persistent=False)
        self.register_buffer("weight_scale", weight.scale, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = quantize_fp8(x.flatten(0, -2))
        y = multiply(rows, QuantizedWeight("F8_E4M3", self.weight, self.weight_scale), x.dtype, self.scales_rows)
        y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1])


def multiply(a: QuantizedWeight, b: QuantizedWeight, dtype: torch.dtype, scales_rows: bool) -> Tensor:
    """a b^T of float8 matrices ``[M, K]`` and ``[N, K]`` -> ``[M, N]``.

    Args:
        scales_rows: leave the rows' scales to the product. Not every GPU can: False multiplies by them afterwards.
    """
    if scales_rows:
        scales = {"scale_a": a.scale[:, None], "scale_b": b.scale[None]}
        # The kernels with a scale per row have one output dtype.
        return torch._scaled_mm(a.values, b.values.T, **scales, out_dtype=torch.bfloat16).to(dtype)
    one = torch.ones((), device=a.values.device)
    y = torch._scaled_mm(a.values, b.values.T, scale_a=one, scale_b=one, out_dtype=torch.float32)
    return (y * a.scale[:, None] * b.scale).to(dtype)


class Fp8Layers(Layers):
    """The backbone's layers in float8, except where weights are not at hand or of sizes that float8 cannot have.

    Weights that are stored in float8 are used as they are, others are rounded once a sampling call.
    """

    def linear(self, layer: nn.Module) -> nn.Module:
        return self._in_fp8(layer) or super().linear(layer)

    def joined(self, attn: Attention) -> nn.Module:
        return self._in_fp8(attn.to_q, attn.to_k, attn.to_v) or super().joined(attn)

    def _in_fp8(self, *layers: nn.Module) -> Fp8Linear | None:
        if not self.joins or any(
            size % MULTIPLE for layer in layers for size in (layer.in_features, layer.out_features)
        ):
            return None
        if all(is_stored_in_fp8(layer, self.device) for layer in layers):
            weight = joined([QuantizedWeight(layer.kind, layer.weight, layer.weight_scale) for layer in layers])
        elif self.resident(*layers):
            weight = quantize_fp8(torch.cat([self.weights(layer)[0] for layer in layers]))
        else:
            return None
        bias = layers[0].bias
        bias = None if bias is None else bias.to(self.device, self.dtype)
        return Fp8Linear(weight, bias, way_to_multiply(self.device))


def joined(weights: list[QuantizedWeight]) -> QuantizedWeight:
    """Float8 matrices one below the other; a single one as it is."""
    if len(weights) == 1:
        return weights[0]
    values = torch.cat([weight.values.view(torch.uint8) for weight in weights]).view(torch.float8_e4m3fn)
    return QuantizedWeight("F8_E4M3", values, torch.cat([weight.scale for weight in weights]))


def is_stored_in_fp8(layer: nn.Module, device: torch.device) -> bool:
    return isinstance(layer, QuantizedLinear) and layer.kind == "F8_E4M3" and layer.weight.device == device


@lru_cache
def layers_for(device: torch.device) -> type[Layers]:
    """:class:`Fp8Layers` where a device multiplies float8 fast; else the exact ones, and a word about it, once."""
    if has_fp8(device) and way_to_multiply(device) is not None:
        return Fp8Layers
    log.warning(
        "fp8 asks for an NVIDIA GPU of compute capability 8.9 or newer (RTX 40, H100 and later); %s computes without it.",
        torch.cuda.get_device_name(device) if device.type == "cuda" else device,
    )
    return Layers


@lru_cache
def has_fp8(device: torch.device) -> bool:
    """Whether the GPU is of a generation with float8 products: compute capability 8.9 or newer."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


@lru_cache
def way_to_multiply(device: torch.device) -> bool | None:
    """How products are done on a device, found by doing a small one: ``scales_rows``, or None where neither way works."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).to(device) for _ in range(2))
    for scales_rows in (True, False):
        try:
            found = multiply(quantize_fp8(a), quantize_fp8(b), torch.float32, scales_rows)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            log.debug("float8 products on %s: %s", device, error)
            continue
        expected = a @ b.T
        if ((found - expected).norm() / expected.norm()).item() < 0.1:
            return scales_rows
    return None
