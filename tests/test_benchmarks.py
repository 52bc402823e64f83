"""The benchmarks measure what they say: the baseline is the published model, and weights are not degenerate."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import straightforward
from benchmarks.random_weights import backbone_config, random_backbone
from benchmarks.straightforward import StraightforwardBackbone
from tools.random_checkpoint import TINY

LATENT = 5e-5


@pytest.fixture(scope="module")
def baseline(golden) -> StraightforwardBackbone:
    backbone = golden.model.backbone
    net = StraightforwardBackbone(backbone.config, device="meta")
    net.load_state_dict(backbone.state_dict(), assign=True)
    return net


@torch.inference_mode()
@pytest.mark.parametrize("timestep", ["0.0", "3.2", "731.37", "999.0"])
@pytest.mark.parametrize("branch", ["velocity", "velocity_uncond"])
def test_the_baseline_computes_the_published_velocity(golden, baseline, deviations, timestep, branch):
    latent, context = golden["dit.latent"], golden["dit.context"]
    time_aligned = baseline.dummy_ta_embed.repeat(len(latent), latent.shape[2], 1)
    if branch == "velocity_uncond":
        context, time_aligned = torch.zeros_like(context), torch.zeros_like(time_aligned)
    velocity = baseline(
        latent,
        torch.full((len(latent),), float(timestep)),
        context,
        time_aligned,
        golden["dit.context_mask"],
        golden["dit.latent_mask"],
    )
    deviations(golden, "baseline velocity", velocity, golden[f"dit.{branch}.{timestep}"], LATENT)


@pytest.mark.parametrize("case", range(8))
def test_the_baseline_samples_the_published_latent(golden, baseline, deviations, case):
    options = golden.cases[case]
    content, mask, frames = golden.model.encode_text([golden.prompts[i] for i in options["prompts"]])
    noise = golden[f"generate.{case}.noise"]
    latent = straightforward.sample(
        baseline,
        noise,
        content,
        options["num_steps"],
        options["guidance_scale"],
        options["sway_sampling_coef"],
        mask,
        torch.arange(noise.shape[2]) < frames[:, None],
    )
    deviations(golden, "baseline latent", latent, golden[f"generate.{case}.latent"], LATENT)


def test_the_baseline_costs_what_the_published_network_costs():
    """1612 GFLOP a guided evaluation of 10 s and 64 tokens at full size, counted without computing it."""
    net = StraightforwardBackbone(backbone_config(), device="meta")
    inputs = (torch.empty(1, 1280, 250), torch.tensor(500.0), torch.empty(1, 64, 1024))
    latent, timestep, context = (tensor.to("meta") for tensor in inputs)
    masks = [torch.empty(1, n, dtype=torch.bool, device="meta") for n in (64, 250)]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        straightforward.evaluate(net, latent, timestep, context, *masks, guidance_scale=5.0)
    assert counter.get_total_flops() / 1e9 == pytest.approx(1612.3, rel=0.002)


def test_random_weights_are_not_degenerate():
    net = random_backbone(backbone_config(TINY))
    for name, parameter in net.named_parameters():
        centre = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        assert (parameter.mean() - centre).abs() < 0.05, name
        assert 0.01 < parameter.std() < 0.08, name
    again = random_backbone(backbone_config(TINY))
    assert all(map(torch.equal, net.parameters(), again.parameters()))
