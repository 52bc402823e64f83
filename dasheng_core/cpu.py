"""What a CPU needs to be fast in bfloat16: matrix units, and weights in the layout that they read.

The operations are those that torch.compile emits for a CPU: ``torch.nn`` does not offer them.
"""

import torch
from torch import Tensor, nn

from .backbone import GEGLU, Backbone


class PackedLinear(nn.Module):
    """x W^T + b, with W in the layout that the matrix units read; else they rewrite it at each product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()), bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")


class PackedGEGLU(nn.Module):
    """GEGLU as two packed products that do the rest before they write their results."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.value, self.gate = (PackedLinear(*half) for half in zip(weight.chunk(2), bias.chunk(2), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        product, x = torch.ops.mkldnn._linear_pointwise, x.contiguous()
        gate = product(x, self.gate.weight, self.gate.bias, "gelu", [], "none")
        return product.binary(x, gate, self.value.weight, self.value.bias, "mul")


@torch.no_grad()
def pack_weights(backbone: Backbone) -> None:
    """Swap the layers of a bfloat16 backbone on a CPU for packed ones; the plain weights go.

    Raises:
        ValueError: another device or dtype, or a processor or PyTorch that has no such layout.
    """
    device = backbone.dummy_ta_embed.device
    if device.type != "cpu" or backbone.dtype != torch.bfloat16 or not has_fast_bfloat16(device):
        raise ValueError(
            "Packed weights are for bfloat16 on a CPU with AMX or AVX512-BF16: leave --pack-weights out, or give "
            "--dtype bf16 --device cpu on such a processor."
        )
    for module in list(backbone.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, GEGLU) and type(layer.proj) is nn.Linear:
                setattr(module, name, PackedGEGLU(layer.proj.weight, layer.proj.bias))
            elif type(layer) is nn.Linear:
                setattr(module, name, PackedLinear(layer.weight, layer.bias))


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones: GPUs do, some CPUs do."""
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    names = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
