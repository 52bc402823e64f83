"""From noise to latent: initial noise, classifier-free guidance, and the denoising loop.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from .backbone import Backbone
from .inputs import as_choice, as_float, as_int, as_list
from .schedule import check_schedule, make_sigmas, make_timesteps
from .skip_cache import SkipCache, check_outer_blocks

MAX_SEED = 2**64
# A browser, which shows seeds in a graph, keeps whole numbers below this one exact.
MAX_DRAWN_SEED = 2**53
MAX_GUIDANCE = 1000.0
# How noise is drawn: frame by frame, so that the first frames do not depend on the clip's length, or as ComfyUI's RandomNoise.
NOISES = ("steady", "ksampler")


@dataclass(frozen=True)
class SamplingOptions:
    """The published defaults. A guidance scale of 1 or less samples the conditional branch alone.

    The others trade the published result for time, and are off: ``grid`` "epss" takes fewer steps
    (:data:`dasheng_core.schedule.EPSS`); ``guidance_interval``, the lowest and highest sigma with guidance
    (arXiv 2404.07724), leaves steps outside it to the conditional branch alone, at about half their cost;
    ``skip_cache`` k runs only the k outer blocks at either end of the network in every second late step
    (:mod:`dasheng_core.skip_cache`).

    ``noise_kind`` says how noise is drawn, see :func:`draw_noise`.
    """

    num_steps: int = 25
    guidance_scale: float = 5.0
    sway_sampling_coef: float = -1.0
    _: KW_ONLY
    grid: str = "full"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    skip_cache: int = 0
    noise_kind: str = "steady"

    def __post_init__(self) -> None:
        steps = check_schedule(self.num_steps, self.sway_sampling_coef, self.grid)
        remedy = "it is two sigmas, the lower one first; 0 and 1 guide every step"
        interval = tuple(as_float(s, "A bound of the guidance interval", 0, 1, remedy) for s in self.guidance_interval)
        if len(interval) != 2 or interval[0] > interval[1]:
            raise ValueError(f"The guidance interval is {interval}, expected another: {remedy}.")
        as_choice(self.noise_kind, "noise_kind", NOISES)
        made = {
            "num_steps": steps,
            "guidance_scale": as_guidance(self.guidance_scale),
            "guidance_interval": interval,
            "skip_cache": as_int(self.skip_cache, "skip_cache", 0, 1000, "0 is off, and 2 is a good start"),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def sigmas(self) -> Tensor:
        """The schedule, float32 ``[num_steps + 1]`` on the CPU."""
        return make_sigmas(self.num_steps, self.sway_sampling_coef, grid=self.grid)

    def guidance_scales(self) -> list[float]:
        """The guidance scale of each step, 1 outside the interval: known before the loop, which waits for no device."""
        low, high = self.guidance_interval
        # A sigma's last bit must not decide whether it lies on a bound.
        guided = [low - 1e-6 <= sigma <= high + 1e-6 for sigma in self.sigmas()[:-1].tolist()]
        return [self.guidance_scale if inside else 1.0 for inside in guided]


def as_guidance(scale: object) -> float:
    """A guidance scale. Raises ValueError for what is none."""
    return as_float(scale, "The guidance scale", 0, MAX_GUIDANCE, "the published model uses 5.0, and 1 is no guidance")


def as_seed(seed: object) -> int:
    """A seed. Raises ValueError for what is no whole number from 0 to 2^64 - 1."""
    return as_int(seed, "seed", 0, MAX_SEED - 1, "any of them makes a take of its own")


def random_seed() -> int:
    return secrets.randbelow(MAX_DRAWN_SEED)


def item_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed an item: ``seed + i`` (modulo 2^64) for an int, the given ones for a list.

    Raises:
        ValueError: a seed that is no whole number from 0 to 2^64 - 1, or a list of another length.
    """
    given = as_list(seed)
    seeds = [as_seed(s) for s in given]
    if given == [seed]:
        return [(seeds[0] + i) % MAX_SEED for i in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts: give one int, or one seed a prompt.")
    return seeds


def draw_noise(seed: int, channels: int, frames: int, kind: str = "steady") -> Tensor:
    """Standard normal ``[C, T]`` in float32 from a CPU generator of its own: the same on every device and in any batch.

    Args:
        kind: "steady" draws frame by frame, so that a clip of another length begins with the same noise; "ksampler"
            channel by channel, as ComfyUI's RandomNoise and KSampler do.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "ksampler":
        return torch.randn(channels, frames, generator=generator)
    # torch draws the last 16 numbers anew, so these are of frames that are cut off.
    return torch.randn(frames + 16, channels, generator=generator)[:frames].T.contiguous()


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): v_u + scale (v_c - v_u)."""
    return unconditional + scale * (conditional - unconditional)


def denoise(
    backbone: Backbone,
    noise: Tensor,
    context: Tensor,
    options: SamplingOptions,
    context_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Integrate the flow from noise (sigma 1) to data (sigma 0) with Euler steps, one evaluation a step.

    A guided step evaluates both branches as one batch. The unconditional branch sees zeros after the adapter, not an
    encoded empty prompt.

    Args:
        noise: float32 ``[B, C, T]``, the initial latent.
        context: ``[B, S, X]``, the content adapter's output.
        context_mask: ``[B, S]`` bool; None when nothing is padded.
        frame_mask: ``[B, T]`` bool, True up to each item's length; None when nothing is padded.
        callback: called with (steps done, steps in all) after each step.

    Returns:
        Latent ``[B, C, T]``, float32.
    """
    if options.skip_cache:
        check_outer_blocks(options.skip_cache, backbone.config.depth)
    dtype, sigmas = backbone.dtype, options.sigmas()
    cache = SkipCache(options.skip_cache, sigmas.tolist()) if options.skip_cache else None
    # What the schedule and the prompt decide is computed once, and goes with this call.
    modulations = backbone.modulation(make_timesteps(sigmas[:-1]).to(noise.device)).split(1)
    time_aligned = backbone.dummy_ta_embed.to(dtype)[None, None]
    tokens = None if context_mask is None else context_mask[:, None, None]
    text = backbone.condition(context.to(dtype), time_aligned, tokens)
    silence = backbone.condition(None, torch.zeros_like(time_aligned))

    # The host knows every number of the schedule: nothing in the loop waits for the device.
    latent, sizes, scales = noise, sigmas.diff().tolist(), options.guidance_scales()
    for step, (modulation, size, scale) in enumerate(zip(modulations, sizes, scales, strict=True), start=1):
        conditions = [text, silence] if scale > 1 else [text]
        x = torch.cat([latent.to(dtype)] * len(conditions))
        inner = None
        if cache is not None:
            shape = (len(x), x.shape[-1], backbone.config.embed_dim)
            inner = cache.at(sigmas[step - 1].item(), len(conditions), shape, x)
        velocity = backbone.step(x, modulation, conditions, frame_mask, inner).float()
        if scale > 1:
            conditional, unconditional = velocity.chunk(2)
            velocity = guide(conditional, unconditional, scale)
        latent = torch.add(latent, velocity, alpha=size)
        if callback is not None:
            callback(step, options.num_steps)
    return latent
