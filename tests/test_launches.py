"""A guided step is bound by its launches on a server's GPU: their number is a budget."""

from dataclasses import replace

import pytest
import torch

from benchmarks.random_weights import backbone_config, fill
from dasheng_core.backbone import Backbone
from dasheng_core.sampling import Branch, Branches, SamplingOptions, denoise
from launches import launches_per_step

# Of the published depth; width does not count.
MOST = 990


def network(dtype: torch.dtype) -> Backbone:
    narrow = dict(embed_dim=128, num_heads=2, mlp_dim=512, latent_dim=32, context_dim=64, ta_context_dim=64)
    return fill(Backbone(replace(backbone_config(), **narrow), device="meta", dtype=dtype), "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_guided_step_launches_few_kernels(dtype):
    backbone = network(dtype)
    noise, context = torch.zeros(1, 32, 25), torch.zeros(1, 6, 64)
    read = Branches(Branch(context))
    assert launches_per_step(lambda steps: denoise(backbone, noise, read, SamplingOptions(steps))) <= MOST
