"""Random weights in memory: the network as a checkpoint would fill it, at any size, in seconds (measures nothing).

The published initialisation has zeros where they hide mistakes (modulation, cross-attention's projection); these have
none. The distribution is that of tools/random_checkpoint.py, which writes files.
"""

import torch
from torch import nn

from dasheng_core.backbone import Backbone
from dasheng_core.config import BackboneConfig
from tools.random_checkpoint import FULL, MATRIX_STD, NORM_STD, Sizes

# Matrices are windows of one random buffer, at most this many elements apart.
SLACK = 2**20


def backbone_config(sizes: Sizes = FULL) -> BackboneConfig:
    return BackboneConfig(
        latent_dim=sizes.latent_dim,
        embed_dim=sizes.embed_dim,
        depth=sizes.depth,
        num_heads=sizes.num_heads,
        mlp_dim=4 * sizes.embed_dim,
        context_dim=sizes.text_dim,
        ta_context_dim=sizes.text_dim,
    )


def random_backbone(config: BackboneConfig, device="cpu", dtype=torch.float32, seed: int = 0) -> Backbone:
    """``dasheng_core``'s network with random weights; without gradients, in eval mode."""
    net = Backbone(config, device="meta", dtype=dtype).to_empty(device=device)
    return fill(net, seed).requires_grad_(False).eval()


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Matrices N(0, 0.02), weights of norms 1 +- 0.05, biases and vectors N(0, 0.02); the module itself."""
    parameters = list(module.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    starts = torch.Generator().manual_seed(seed)
    largest = max(parameter.numel() for parameter in parameters)
    buffer = torch.randn(largest + SLACK, generator=generator, device=generator.device).mul_(MATRIX_STD)
    for name, parameter in module.named_parameters():
        start = int(torch.randint(SLACK, (), generator=starts))
        parameter.copy_(buffer[start : start + parameter.numel()].view(parameter.shape))
        if parameter.dim() == 1 and name.endswith(("weight", "gamma")):
            parameter.mul_(NORM_STD / MATRIX_STD).add_(1)
    return module
