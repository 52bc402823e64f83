"""Random weights in memory: the modules as a checkpoint would fill them, at any size, in seconds (measures nothing).

The published initialisation has zeros where they hide mistakes (modulation, cross-attention's projection); these have
none. tools/random_checkpoint.py writes files of the same.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dasheng_core.adapter import ContentAdapter
from dasheng_core.audio_tokenizer.decoder import Decoder
from dasheng_core.backbone import Backbone
from dasheng_core.text_encoder import TextEncoder
from dasheng_core.weights.config import BackboneConfig
from tools import random_checkpoint
from tools.random_checkpoint import FULL, MATRIX_STD, SLACK, Sizes, make_configs, random_tensor


@dataclass(frozen=True)
class TextSide:
    """From token ids to the context of the backbone."""

    encoder: TextEncoder
    adapter: ContentAdapter

    def __call__(self, input_ids, mask):
        return self.adapter(self.encoder(input_ids, mask)[1], mask)[0]


def backbone_config(sizes: Sizes = FULL) -> BackboneConfig:
    return random_checkpoint.make_backbone(make_configs(sizes, False)).config


def random_backbone(config: BackboneConfig, device="cpu", dtype=torch.float32, seed: int = 0) -> Backbone:
    return fill(Backbone(config, device="meta", dtype=dtype), device, seed)


def random_text_side(sizes: Sizes = FULL, device="cpu", dtype=torch.float32) -> TextSide:
    makers = random_checkpoint.make_text_encoder, random_checkpoint.make_adapter
    return TextSide(*(fill(make(make_configs(sizes, False), dtype), device) for make in makers))


def random_decoder(sizes: Sizes = FULL, device="cpu", dtype=torch.float32) -> Decoder:
    return fill(random_checkpoint.make_decoder(make_configs(sizes, False), dtype), device)


@torch.no_grad()
def fill(module: nn.Module, device, seed: int = 0) -> nn.Module:
    """Give a module of the meta device a place and values, no gradients, and eval mode; returns it."""
    module.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(seed)
    largest = max(tensor.numel() for tensor in module.state_dict().values())
    made = torch.Generator(device).manual_seed(seed)
    noise = torch.randn(largest + SLACK, generator=made, device=device).mul_(MATRIX_STD)
    for name, tensor in module.state_dict().items():
        window = lambda start, count: noise[start : start + count]  # noqa: E731
        tensor.copy_(random_tensor(name, tuple(tensor.shape), tensor.dtype, window, generator))
    return module
