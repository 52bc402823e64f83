"""From noise to latent: initial noise, and the denoising loop.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .backbone import Backbone, Condition
from .direction import (
    Kept,
    apart,
    evaluate_places,
    loop_shift,
    places,
    timeline_aligned,
    timeline_entries,
    window_frames,
)
from .guidance import Guidance
from .inputs import as_choice, as_float, as_int, as_list
from .schedule import check_schedule, make_sigmas, make_timesteps
from .skip_cache import SkipCache, check_outer_blocks

MAX_SEED = 2**64
# A browser, which shows seeds in a graph, keeps whole numbers below this one exact.
MAX_DRAWN_SEED = 2**53
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

    ``noise_kind`` says how noise is drawn, see :func:`draw_noise`. ``guidance_rescale``, ``apg`` and ``zero_star`` change the
    formula of guidance, see :class:`Guidance`. ``loop`` makes the end of a clip join its beginning. ``window``, in seconds,
    evaluates a longer clip in windows that overlap by half: twice the evaluations for each second.
    """

    num_steps: int = 25
    guidance_scale: float = 5.0
    sway_sampling_coef: float = -1.0
    _: KW_ONLY
    grid: str = "full"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    skip_cache: int = 0
    noise_kind: str = "steady"
    guidance_rescale: float = 0.0
    apg: tuple[float, float, float] | None = None
    zero_star: bool = False
    loop: bool = False
    window: float | None = None

    def __post_init__(self) -> None:
        steps = check_schedule(self.num_steps, self.sway_sampling_coef, self.grid)
        remedy = "it is two sigmas, the lower one first; 0 and 1 guide every step"
        interval = tuple(as_float(s, "A bound of the guidance interval", 0, 1, remedy) for s in self.guidance_interval)
        if len(interval) != 2 or interval[0] > interval[1]:
            raise ValueError(f"The guidance interval is {interval}, expected another: {remedy}.")
        as_choice(self.noise_kind, "noise_kind", NOISES)
        guidance = self.guidance()
        if self.window is not None:
            window_frames(self.window)
        if self.skip_cache and (self.loop or self.window is not None):
            raise ValueError(
                f"skip_cache is {self.skip_cache} together with a {'loop' if self.loop else 'window'}, expected one of them: what it "
                "keeps of one step belongs to other frames in the next."
            )
        made = {
            "num_steps": steps,
            "guidance_scale": guidance.scale,
            "guidance_rescale": guidance.rescale,
            "apg": guidance.apg,
            "guidance_interval": interval,
            "skip_cache": as_int(self.skip_cache, "skip_cache", 0, 1000, "0 is off, and 2 is a good start"),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def sigmas(self) -> Tensor:
        """The schedule, float32 ``[num_steps + 1]`` on the CPU."""
        return make_sigmas(self.num_steps, self.sway_sampling_coef, grid=self.grid)

    def guidance(self, faders: Sequence[float] = ()) -> Guidance:
        """A guidance of these options; one for each sampling call."""
        return Guidance(self.guidance_scale, self.guidance_rescale, self.apg, self.zero_star, faders)

    def guided_steps(self) -> list[bool]:
        """Which steps lie in the guidance interval: known before the loop, which waits for no device."""
        low, high = self.guidance_interval
        # A sigma's last bit must not decide whether it lies on a bound.
        return [low - 1e-6 <= sigma <= high + 1e-6 for sigma in self.sigmas()[:-1].tolist()]


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
        return torch.randn(channels, frames, generator=generator, dtype=torch.float32, device="cpu")
    # torch draws the last 16 numbers anew, so these are of frames that are cut off.
    drawn = torch.randn(frames + 16, channels, generator=generator, dtype=torch.float32, device="cpu")
    return drawn[:frames].T.contiguous()


class Fader(NamedTuple):
    """A branch of a weight that reads the prompts without an aspect, see ``context`` and ``context_mask`` of :func:`denoise`."""

    weight: float
    context: Tensor
    context_mask: Tensor | None


def denoise(
    backbone: Backbone,
    noise: Tensor,
    context: Tensor,
    options: SamplingOptions,
    context_mask: Tensor | None = None,
    frame_mask: Tensor | None = None,
    callback: Callable[[int, int], None] | None = None,
    *,
    faders: Sequence[Fader] = (),
    kept: Kept | None = None,
    seeds: Sequence[int] = (),
) -> Tensor:
    """Integrate the flow from noise (sigma 1) to data (sigma 0) with Euler steps, one evaluation a step.

    A guided step evaluates all branches as one batch. The unconditional branch sees zeros after the adapter, not an
    encoded empty prompt.

    Args:
        noise: float32 ``[B, C, T]``, the initial latent.
        context: ``[B, S, X]``, the content adapter's output.
        context_mask: ``[B, S]`` bool; or of timelines ``[B, T, S]``, to add to scores; None when nothing is padded.
        frame_mask: ``[B, T]`` bool, True up to each item's length; None when nothing is padded.
        callback: called with (steps done, steps in all) after each step.
        faders: further branches of guided steps.
        kept: what is known of the result, and stays.
        seeds: of each item, for a loop's shifts.

    Returns:
        Latent ``[B, C, T]``, float32.
    """
    if options.skip_cache:
        check_outer_blocks(options.skip_cache, backbone.config.depth)
    dtype, sigmas = backbone.dtype, options.sigmas()
    levels, sizes = sigmas.tolist(), sigmas.diff().tolist()
    cache = SkipCache(options.skip_cache, levels) if options.skip_cache else None
    # What the schedule and the prompt decide is computed once, and goes with this call.
    timesteps = make_timesteps(sigmas[:-1])
    modulations = backbone.modulation(timesteps.to(noise.device)).split(1)
    text = _condition(backbone, context, context_mask)
    silence = backbone.condition(None, torch.zeros_like(backbone.dummy_ta_embed, dtype=dtype)[None, None])
    others = [_condition(backbone, fader.context, fader.context_mask) for fader in faders]
    guidance, where = options.guidance([fader.weight for fader in faders]), _places(options, noise, levels[:-1], seeds)

    def evaluate(x: Tensor, conditions: Sequence[Condition], step: int) -> Tensor:
        """``[B, C, N]`` -> the velocities of all branches ``[G, B, C, N]``."""
        x, inner = torch.cat([x.to(dtype)] * len(conditions)), None
        if cache is not None:
            shape = (len(x), x.shape[-1], backbone.config.embed_dim)
            inner = cache.at(levels[step], len(conditions), shape, x)
        velocity = backbone.step(x, modulations[step], conditions, frame_mask, inner)
        return velocity.float().unflatten(0, (len(conditions), -1))

    # Every number of the schedule is on the host: nothing in the loop waits for the device.
    latent, guides = noise, options.guidance_scale > 1
    for step, (size, t, inside) in enumerate(zip(sizes, timesteps.tolist(), options.guided_steps(), strict=True)):
        seen = latent if kept is None else kept.seen(latent, noise, levels[step])
        conditions = [apart(c, t) for c in (text, *([silence] * guides + others if inside else ()))]
        if where is None:
            velocity, *rest = evaluate(seen, conditions, step)
        else:
            velocity, *rest = evaluate_places(partial(evaluate, step=step), seen, conditions, where[step])
        if rest:
            velocity = guidance(seen, levels[step], velocity, rest.pop(0) if guides else None, rest)
        if kept is not None:
            velocity = kept.velocity(velocity, latent, noise, levels[step])
        latent = torch.add(latent, velocity, alpha=size)
        if callback is not None:
            callback(step + 1, options.num_steps)
    return latent if kept is None else kept.put_back(latent)


def _condition(backbone: Backbone, context: Tensor, mask: Tensor | None) -> Condition:
    context, time_aligned = context.to(backbone.dtype), backbone.dummy_ta_embed.to(backbone.dtype)
    if mask is None or mask.dtype == torch.bool:
        return backbone.condition(context, time_aligned[None, None], None if mask is None else mask[:, None, None])
    condition = backbone.condition(context, timeline_aligned(time_aligned, mask), mask[:, None].to(backbone.dtype))
    return condition._replace(entries=timeline_entries(mask))


def _places(
    options: SamplingOptions, noise: Tensor, sigmas: Sequence[float], seeds: Sequence[int]
) -> list[list[Tensor]] | None:
    """Of each step, which frames its evaluations see; None where one sees all as they stand."""
    T, window = noise.shape[-1], None if options.window is None else window_frames(options.window)
    if not options.loop and (window is None or window >= T):
        return None
    shifts = [[loop_shift(seed, sigma, T) if options.loop else 0 for seed in seeds] for sigma in sigmas]
    return [places(T, window, of_step) for of_step in torch.tensor(shifts, device=noise.device)]
