"""Random weights in memory: the modules as a checkpoint would fill them, at any size, in seconds (measures nothing).

The published initialisation has zeros where they hide mistakes (modulation, cross-attention's projection); these have
none. Shapes and distribution are those of tools/random_checkpoint.py, which writes files.
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
from tools.random_checkpoint import FULL, INSTRUCTION_LENGTH, MATRIX_STD, NORM_STD, Sizes

# Matrices are windows of one random buffer, at most this many elements apart.
SLACK = 2**20


@dataclass(frozen=True)
class TextSide:
    """From token ids to the context of the backbone."""

    encoder: TextEncoder
    adapter: ContentAdapter

    def __call__(self, input_ids, mask):
        return self.adapter(self.encoder(input_ids, mask)[1], mask)[0]


def backbone_config(sizes: Sizes = FULL) -> BackboneConfig:
    return random_checkpoint.make_backbone(_configs(sizes)).config


def random_backbone(config: BackboneConfig, device="cpu", dtype=torch.float32, seed: int = 0) -> Backbone:
    return fill(Backbone(config, device="meta", dtype=dtype), device, seed)


def random_text_side(sizes: Sizes = FULL, device="cpu", dtype=torch.float32, seed: int = 0) -> TextSide:
    adapter = fill(random_checkpoint.make_adapter(_configs(sizes), dtype), device, seed)
    adapter.instruction_lengths.fill_(INSTRUCTION_LENGTH)
    return TextSide(fill(random_checkpoint.make_text_encoder(_configs(sizes), dtype), device, seed), adapter)


def random_decoder(sizes: Sizes = FULL, device="cpu", dtype=torch.float32, seed: int = 0) -> Decoder:
    return fill(random_checkpoint.make_decoder(_configs(sizes), dtype), device, seed)


def _configs(sizes: Sizes) -> dict[str, dict]:
    return random_checkpoint.make_configs(sizes, multilingual=False)


@torch.no_grad()
def fill(module: nn.Module, device, seed: int = 0) -> nn.Module:
    """Give a module of the meta device a place, and matrices N(0, 0.02), weights of norms 1 +- 0.05, biases N(0, 0.02).

    Returns:
        The module itself, without gradients and in eval mode.
    """
    module.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(seed)
    starts = torch.Generator().manual_seed(seed)
    largest = max(parameter.numel() for parameter in module.parameters())
    buffer = torch.randn(largest + SLACK, generator=generator, device=device).mul_(MATRIX_STD)
    for name, parameter in module.named_parameters():
        start = int(torch.randint(SLACK, (), generator=starts))
        parameter.copy_(buffer[start : start + parameter.numel()].view(parameter.shape))
        if parameter.dim() == 1 and name.endswith(("weight", "gamma")):
            parameter.mul_(NORM_STD / MATRIX_STD).add_(1)
    return module
