"""What is compared: one guided evaluation of the straightforward baseline, and of this project, on the same inputs.

Shared by run.py and gpu.py. Nothing may be timed before :func:`check_equal` has passed.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import straightforward
from benchmarks.straightforward import StraightforwardBackbone
from dasheng_core.backbone import Backbone
from dasheng_core.config import BackboneConfig
from dasheng_core.layers import Layers
from dasheng_core.optimize import Optimizer
from dasheng_core.prepared import Branch, Conditioning, PreparedBackbone
from dasheng_core.sampling import SamplingOptions, denoise
from dasheng_core.schedule import TIMESTEPS, make_sigmas, make_timesteps

# Relative error of one guided evaluation through the whole network, against the baseline in float32.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2e-2}

Evaluation = Callable[[], Tensor]


@dataclass(frozen=True)
class Job:
    """The typical one: 10 s of sound, 64 tokens, the published defaults."""

    frames: int = 250
    tokens: int = 64
    batch: int = 1
    steps: int = 25
    guidance: float = 5.0

    def with_(self, **changes) -> "Job":
        return replace(self, **changes)

    @property
    def guided(self) -> bool:
        return self.guidance > 1

    def inputs(self, config: BackboneConfig, device="cpu") -> tuple[Tensor, Tensor]:
        """Noise ``[B, C, T]`` and the text's content ``[B, S, X]``, float32, the same on every device."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self.batch, config.latent_dim, self.frames, generator=generator)
        content = torch.randn(self.batch, self.tokens, config.context_dim, generator=generator)
        return noise.to(device), content.to(device)


def baseline_of(backbone: Backbone) -> StraightforwardBackbone:
    """The straightforward network with the same weights, which both share."""
    net = StraightforwardBackbone(backbone.config, device="meta")
    net.load_state_dict(backbone.state_dict(), assign=True)
    return net.requires_grad_(False).eval()


def baseline_evaluation(net: StraightforwardBackbone, job: Job, device="cpu") -> Evaluation:
    latent, content = job.inputs(net.config, device)
    timestep = middle_sigma(job).to(device) * TIMESTEPS
    masks = [torch.ones(job.batch, count, dtype=torch.bool, device=device) for count in (job.tokens, job.frames)]
    return torch.inference_mode()(
        lambda: straightforward.evaluate(net, latent, timestep, content, *masks, guidance_scale=job.guidance)
    )


@dataclass(frozen=True)
class Prepared:
    """What is done once, before the first step."""

    net: PreparedBackbone
    conditioning: Conditioning


@torch.inference_mode()
def prepare(backbone: Backbone, job: Job, device="cpu", mode: str = "off", inner_layers=Layers) -> Prepared:
    """``mode`` is one of :data:`dasheng_core.optimize.MODES`; for ``inner_layers`` see :class:`PreparedBackbone`."""
    _, content = job.inputs(backbone.config, device)
    timesteps = make_timesteps(make_sigmas(job.steps)[:-1]).tolist()
    optimizer = Optimizer(mode)
    options = {"packs": not optimizer.compiles, "inner_layers": inner_layers}
    net = PreparedBackbone(backbone, timesteps, content.device, backbone.dtype, **options)
    optimizer.attach(net)
    branches = [Branch([content], backbone.dummy_ta_embed), Branch([], torch.zeros_like(backbone.dummy_ta_embed))]
    return Prepared(net, net.condition(branches if job.guided else branches[:1], job.batch))


def our_evaluation(prepared: Prepared, job: Job, device="cpu") -> Evaluation:
    """What is done at every step, between latents as the loop keeps them."""
    net = prepared.net
    latent = job.inputs(net.config, device)[0].mT.contiguous()
    timestep = int(make_timesteps(middle_sigma(job)))

    @torch.inference_mode()
    def evaluate() -> Tensor:
        x = latent.to(net.dtype)
        if job.guided:
            velocity = net.guided_velocity(x, timestep, prepared.conditioning, job.guidance)
        else:
            velocity = net.velocity(x, timestep, prepared.conditioning)[0]
        return velocity.float().mT

    return evaluate


@torch.inference_mode()
def sample_ours(backbone: Backbone, job: Job, device="cpu", inputs=None, optimizer: Optimizer | None = None) -> Tensor:
    """A whole latent, preparation and all steps, of the job's own inputs or of given ones."""
    noise, content = inputs or job.inputs(backbone.config, device)
    return denoise(backbone, noise, content, SamplingOptions(job.steps, job.guidance), optimizer=optimizer)


def in_dtype(backbone: Backbone, dtype: torch.dtype, device=None) -> Backbone:
    """The same network with weights of its own in another number format, or on another device."""
    net = Backbone(backbone.config, device="meta", dtype=dtype)
    weights = {name: tensor.to(device, dtype) for name, tensor in backbone.state_dict().items()}
    net.load_state_dict(weights, assign=True)
    return net.requires_grad_(False).eval()


def middle_sigma(job: Job) -> Tensor:
    return make_sigmas(job.steps)[job.steps // 2]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return ((actual - expected).norm() / expected.norm()).item()


def check_equal(name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The relative error of a velocity; ends the program where it is too large, so that no time of it is shown."""
    error = relative_error(actual, expected)
    if not error <= TOLERANCE[dtype]:
        sys.exit(f"{name}: relative error {error:.2e} against the baseline, at most {TOLERANCE[dtype]:.0e} is allowed.")
    return error
