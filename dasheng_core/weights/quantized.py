"""Linear layers whose weight stays quantised in memory and is expanded where it is used, one layer at a time.

How a matrix ``[out, in]`` is stored, each row on its own:

- ``F8_E4M3``: a float8 (4 bits exponent, 3 bits mantissa, largest value 448) per value and a float32 scale per row.
- ``Q8_0`` of GGUF: blocks of 32 values; a float16 d, then 32 signed bytes q: d q. 34 bytes.
- ``Q4_0`` of GGUF: blocks of 32 values; a float16 d, then 16 bytes: low halves q are the first 16 values, high halves
  the last 16: d (q - 8). 18 bytes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP8_LARGEST = 448.0
BLOCK = 32
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}
# What follows the name of a float8 matrix in a file.
SCALE_SUFFIX = "_scale"


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix as it is stored.

    ``kind`` is one of the three above; ``values`` is float8 ``[out, in]``, or the blocks' bytes ``[out, bytes]``;
    ``scale`` is float32 ``[out]`` for float8, else None.
    """

    kind: str
    values: Tensor
    scale: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        rows, stored = self.values.shape
        return torch.Size((rows, stored if self.kind == "F8_E4M3" else stored // BLOCK_BYTES[self.kind] * BLOCK))

    @property
    def dtype(self) -> torch.dtype:
        """The stored values' own; :meth:`to` gives the matrix in any other."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, dtype: torch.dtype) -> Tensor:
        """The matrix ``[out, in]``: computed in float32, then rounded to ``dtype``."""
        if self.scale is not None:
            return (self.values.float() * self.scale[:, None]).to(dtype)
        blocks = self.values.unflatten(1, (-1, BLOCK_BYTES[self.kind]))
        d = blocks[..., :2].contiguous().view(torch.float16).float()
        q = blocks[..., 2:]
        if self.kind == "Q8_0":
            q = q.view(torch.int8)
        else:
            q = torch.cat([q & 15, q >> 4], dim=-1).view(torch.int8) - 8
        return (d * q).flatten(1).to(dtype)


def quantize_fp8(matrix: Tensor) -> QuantizedWeight:
    """The nearest float8 values of ``[out, in]``, each row scaled so that its largest is the largest float8."""
    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1) / FP8_LARGEST
    # A row of zeros is zeros at any scale.
    scale = torch.where(scale > 0, scale, 1.0)
    values = (matrix / scale[:, None]).clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
    return QuantizedWeight("F8_E4M3", values, scale)


class QuantizedLinear(nn.Module):
    """``nn.Linear`` on a quantised weight. ``weight`` (and ``weight_scale``) are as stored, ``bias`` is plain."""

    weight: nn.Parameter
    weight_scale: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, stored: QuantizedWeight, bias: Tensor | None):
        super().__init__()
        self.kind = stored.kind
        self.out_features, self.in_features = stored.shape
        self.weight = nn.Parameter(stored.values, requires_grad=False)
        scale = None if stored.scale is None else nn.Parameter(stored.scale, requires_grad=False)
        self.register_parameter("weight" + SCALE_SUFFIX, scale)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def expanded_weight(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        """The plain matrix ``[out, in]``, a new tensor on every call; expanded on ``device``."""
        scale = None if self.weight_scale is None else self.weight_scale.to(device)
        return QuantizedWeight(self.kind, self.weight.to(device), scale).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.expanded_weight(x.dtype, x.device), self.bias)
