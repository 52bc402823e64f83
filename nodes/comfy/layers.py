"""The network's layers and attention as ComfyUI has them, where a step spends the host's time."""

import comfy.ldm.modules.attention
import torch.nn.functional as F
from comfy.cli_args import args
from torch import nn

from ...dasheng_core.backbone import Attend

# By which a user asks for another attention than PyTorch's. What ComfyUI falls back to unasked is no such.
ASKED = ("use_sage_attention", "use_flash_attention", "use_ck_attention")
# Where a node such as one of KJNodes puts its attention.
OVERRIDE = "optimized_attention_override"
# What ComfyUI fetches a layer's weights with, or applies to them as it does.
AT_USE = ("_v", "weight_function", "bias_function", "weight_lowvram_function", "bias_lowvram_function")


def chosen_attention(transformer_options: dict) -> Attend:
    """ComfyUI's attention where the user asked for it by a flag or a node, else PyTorch's.

    Attention with a mask is always PyTorch's: others ignore masks, or round them.
    """
    if OVERRIDE not in transformer_options and not any(getattr(args, flag, False) for flag in ASKED):
        return F.scaled_dot_product_attention

    def attend(queries, keys, values, mask):
        if mask is not None:
            return F.scaled_dot_product_attention(queries, keys, values, mask)
        return comfy.ldm.modules.attention.optimized_attention(
            queries,
            keys,
            values,
            queries.shape[1],
            skip_reshape=True,
            skip_output_reshape=True,
            transformer_options=transformer_options,
        )

    return attend


def with_quick_norms(operations):
    """ComfyUI's layers, whose LayerNorm takes the short way where its weights are as they are needed.

    Of the calls of a step two in five are LayerNorms; ComfyUI's way of fetching weights takes longer than the norm.
    """
    if operations is nn:
        return nn

    class LayerNorm(operations.LayerNorm):
        def forward(self, x):
            fetched = any(getattr(self, name, None) for name in AT_USE)
            if fetched or not all(p.dtype == x.dtype and p.device == x.device for p in (self.weight, self.bias)):
                return super().forward(x)
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    return type("QuickNorms", (operations,), {"LayerNorm": LayerNorm})
