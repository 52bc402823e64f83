"""What is compared: one guided evaluation by the whole network, and one step with what its sampling call computed once.

The baseline is ``Backbone.forward`` on both branches as one batch: modulation, keys and values at every evaluation.

Shared by run.py and gpu.py. What is off by more than TOLERANCE is not timed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dasheng_core.backbone import Backbone, Rotary
from dasheng_core.condition import Condition
from dasheng_core.guidance import guide
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise
from dasheng_core.schedule import TIMESTEPS, make_sigmas, make_timesteps
from dasheng_core.step_graph import GraphedStep
from dasheng_core.weights.config import BackboneConfig

# Relative error of one guided evaluation through the whole network, against the baseline in float32.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}
GUIDANCE = 5.0

Evaluation = Callable[[], Tensor]


@dataclass(frozen=True)
class Job:
    """The typical one: 10 s of sound, 64 tokens, the published defaults."""

    frames: int = 250
    tokens: int = 64
    batch: int = 1
    steps: int = 25

    def inputs(self, config: BackboneConfig, device="cpu") -> tuple[Tensor, Tensor]:
        """Noise ``[B, C, T]`` and the text's content ``[B, S, X]``, float32, the same on every device."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.batch, config.latent_dim, self.frames, generator=generator)
        content = torch.randn(self.batch, self.tokens, config.context_dim, generator=generator)
        return noise.to(device), content.to(device)


def both(x: Tensor, *others: Tensor) -> list[Tensor]:
    """Each tensor for the conditional and the unconditional branch, for which all but the first are zeros."""
    return [torch.cat([x, x]), *(torch.cat([other, torch.zeros_like(other)]) for other in others)]


def mixed(velocity: Tensor) -> Tensor:
    return guide(*velocity.float().chunk(2), GUIDANCE)


def baseline_evaluation(backbone: Backbone, job: Job, device="cpu", compile: dict | None = None) -> Evaluation:
    """``compile``: options of torch.compile, None for without it."""
    latent, content = (tensor.to(backbone.dtype) for tensor in job.inputs(backbone.config, device))
    time_aligned = backbone.dummy_ta_embed.expand(job.batch, job.frames, -1)
    timestep = make_sigmas(job.steps)[job.steps // 2].to(device) * TIMESTEPS
    forward = backbone.forward if compile is None else torch.compile(backbone.forward, **compile)

    @torch.inference_mode()
    def evaluate() -> Tensor:
        x, context, aligned = both(latent, content, time_aligned)
        return mixed(forward(x, timestep, context, aligned))

    return evaluate


@dataclass(frozen=True)
class Held:
    """What is computed once, before the first step."""

    backbone: Backbone
    modulations: Tensor
    conditions: list[Condition]
    rotary: Rotary


@torch.inference_mode()
def hold(backbone: Backbone, job: Job, device="cpu") -> Held:
    content = job.inputs(backbone.config, device)[1].to(backbone.dtype)
    modulations = backbone.modulation(make_timesteps(make_sigmas(job.steps)[:-1]).to(device))
    time_aligned = backbone.dummy_ta_embed[None, None]
    conditions = [backbone.condition(content, time_aligned), backbone.condition(None, torch.zeros_like(time_aligned))]
    return Held(backbone, modulations, conditions, backbone.rotary(job.frames, device))


def our_evaluation(held: Held, job: Job, device="cpu", compile: dict | None = None, graphs: bool = False) -> Evaluation:
    """What is done at every step, between latents as the loop keeps them."""
    backbone = held.backbone
    latent = job.inputs(backbone.config, device)[0]
    modulation = held.modulations[job.steps // 2 :][:1]
    step = GraphedStep(backbone) if graphs else backbone.step
    if compile is not None:
        step = torch.compile(step, **compile)

    @torch.inference_mode()
    def evaluate() -> Tensor:
        x = torch.cat([latent.to(backbone.dtype)] * 2)
        return mixed(step(x, modulation, held.conditions, rotary=held.rotary))

    return evaluate


@torch.inference_mode()
def sample_baseline(backbone: Backbone, job: Job, noise: Tensor, content: Tensor) -> Tensor:
    """A whole latent by the whole network at every step."""
    sigmas, dtype = make_sigmas(job.steps), backbone.dtype
    time_aligned = backbone.dummy_ta_embed.expand(job.batch, job.frames, -1)
    for timestep, size in zip((sigmas * TIMESTEPS).to(noise.device), sigmas.diff().tolist(), strict=False):
        x, context, aligned = both(noise.to(dtype), content.to(dtype), time_aligned)
        noise = noise + size * mixed(backbone(x, timestep, context, aligned))
    return noise


@torch.inference_mode()
def sample_ours(backbone: Backbone, job: Job, device="cpu", inputs=None, graphs: bool = False) -> Tensor:
    """A whole latent, what it holds and all steps, of the job's own inputs or of given ones."""
    noise, content = inputs or job.inputs(backbone.config, device)
    options = SamplingOptions(job.steps, GUIDANCE, graphs=graphs)
    return denoise(backbone, noise, Branches(Branch(content)), options)


def in_dtype(backbone: Backbone, dtype: torch.dtype, device=None) -> Backbone:
    """The same network with weights of its own in another number format, or on another device."""
    net = Backbone(backbone.config, device="meta", dtype=dtype)
    weights = {name: tensor.to(device, dtype) for name, tensor in backbone.state_dict().items()}
    net.load_state_dict(weights, assign=True)
    return net.requires_grad_(False).eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()
