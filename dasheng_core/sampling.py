"""From noise to latent: initial noise, and the denoising loop.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from .backbone import Backbone, Condition
from .control.keep import Kept, kept
from .control.loop import loop_shifts, turned
from .control.nest import BranchVelocities, Moment, Velocity
from .control.timeline import at_timestep, timeline_aligned, timeline_entries
from .control.windows import window_frames, windowed
from .guidance import Guidance, guided
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
        interval = tuple(
            as_float(s, "A bound of the guidance interval", 0, 1, remedy) for s in as_list(self.guidance_interval)
        )
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

    def guidance(self, faders: Sequence[float | Tensor] = ()) -> Guidance:
        """A guidance of these options; one for each sampling call."""
        return Guidance(self.guidance_scale, self.guidance_rescale, self.apg, self.zero_star, faders)


class FurtherOptions(TypedDict, total=False):
    """The fields of :class:`SamplingOptions` that ``generate`` and ``sample`` take by name."""

    grid: str
    guidance_interval: tuple[float, float]
    skip_cache: int
    noise_kind: str
    guidance_rescale: float
    apg: tuple[float, float, float] | None
    zero_star: bool
    loop: bool
    window: float | None


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


class Branch(NamedTuple):
    """What one branch of an evaluation reads.

    Attributes:
        context: ``[B, S, X]``, the content adapter's output.
        mask: ``[B, S]`` bool; or of timelines ``[B, T, S]``, to add to scores; None when nothing is padded.
        weight: of a fader, a number or one per frame ``[T]``, see :func:`dasheng_core.guidance.add_faders`.
    """

    context: Tensor
    mask: Tensor | None = None
    weight: float | Tensor = 1.0


class Branches(NamedTuple):
    """What the branches of a guided step read.

    Attributes:
        negative: of classifier-free guidance; None: the unconditional branch, which reads zeros after the adapter, not an
            encoded empty prompt.
        faders: the prompt without an aspect, each with its weight.
    """

    positive: Branch
    negative: Branch | None = None
    faders: Sequence[Branch] = ()


def denoise(
    backbone: Backbone,
    noise: Tensor,
    read: Branches,
    options: SamplingOptions,
    *,
    frame_mask: Tensor | None = None,
    known: Kept | None = None,
    seeds: Sequence[int] = (),
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Integrate the flow from noise (sigma 1) to data (sigma 0), one evaluation of the network per step.

    The order of the mechanisms is that of :mod:`dasheng_core.control.nest`.

    Args:
        noise: float32 ``[B, C, T]``, the initial latent.
        frame_mask: ``[B, T]`` bool, True up to each item's length; None when nothing is padded.
        known: what is known of the result, and stays.
        seeds: of each item, for a loop's shifts.
        callback: called with (steps done, steps in all) after each step.

    Returns:
        Latent ``[B, C, T]``, float32.
    """
    sigmas = options.sigmas()
    guidance = options.guidance([fader.weight for fader in read.faders])
    velocity = branches(
        backbone, _conditions(backbone, read, guidance.scale > 1), sigmas, frame_mask, options.skip_cache
    )
    if options.window is not None:
        velocity = windowed(velocity, window_frames(options.window))
    if options.loop:
        shifts = loop_shifts(seeds, sigmas[:-1].tolist(), noise.shape[-1])
        velocity = turned(velocity, torch.tensor(shifts, device=noise.device))
    one = guided(velocity, guidance, options.guidance_interval)
    if known is None:
        return euler(one, noise, sigmas, callback)
    return known.put_back(euler(kept(one, known, noise), noise, sigmas, callback))


def euler(
    velocity: Velocity, noise: Tensor, sigmas: Tensor, callback: Callable[[int, int], None] | None = None
) -> Tensor:
    """Euler steps from ``noise`` ``[B, C, T]`` along the schedule; ``sigmas`` ``[steps + 1]`` are on the CPU."""
    latent, steps = noise, len(sigmas) - 1
    # Every number of the schedule is on the host: nothing in the loop waits for the device.
    for step, (sigma, size) in enumerate(zip(sigmas[:-1].tolist(), sigmas.diff().tolist(), strict=True)):
        latent = torch.add(latent, velocity(latent, Moment(step, sigma)), alpha=size)
        if callback is not None:
            callback(step + 1, steps)
    return latent


def branches(
    backbone: Backbone,
    conditions: Sequence[Condition],
    sigmas: Tensor,
    frame_mask: Tensor | None = None,
    skip_cache: int = 0,
) -> BranchVelocities:
    """One evaluation of the network: ``[B, C, N]`` -> the velocities of all conditions ``[G, B, C, N]``, as one batch."""
    timesteps = make_timesteps(sigmas[:-1])
    # What the schedule decides is computed once, and goes with this call.
    modulations = backbone.modulation(timesteps.to(backbone.dummy_ta_embed.device)).split(1)
    levels, cache = timesteps.tolist(), None
    if skip_cache:
        check_outer_blocks(skip_cache, backbone.config.depth)
        cache = SkipCache(skip_cache, sigmas.tolist())

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        read = [at_timestep(c, levels[moment.step]) for c in (conditions if moment.guided else conditions[:1])]
        if moment.frames is not None:
            read = [c.at_frames(moment.frames) for c in read]
        x, inner = torch.cat([latent.to(backbone.dtype)] * len(read)), None
        if cache is not None:
            shape = (len(x), x.shape[-1], backbone.config.embed_dim)
            inner = cache.at(moment.sigma, len(read), shape, x)
        velocity = backbone.step(x, modulations[moment.step], read, frame_mask, inner)
        return velocity.float().unflatten(0, (len(read), -1))

    return evaluate


def _conditions(backbone: Backbone, read: Branches, guides: bool) -> list[Condition]:
    """One for each branch: the prompt, what guidance compares with, and the faders."""
    conditions = [_condition(backbone, read.positive)]
    if guides and read.negative is None:
        silence = torch.zeros_like(backbone.dummy_ta_embed, dtype=backbone.dtype)
        conditions.append(backbone.condition(None, silence[None, None]))
    elif guides and read.negative is not None:
        conditions.append(_condition(backbone, read.negative))
    return conditions + [_condition(backbone, fader) for fader in read.faders]


def _condition(backbone: Backbone, branch: Branch) -> Condition:
    context, mask = branch.context.to(backbone.dtype), branch.mask
    time_aligned = backbone.dummy_ta_embed.to(backbone.dtype)
    if mask is None or mask.dtype == torch.bool:
        return backbone.condition(context, time_aligned[None, None], None if mask is None else mask[:, None, None])
    condition = backbone.condition(context, timeline_aligned(time_aligned, mask), mask[:, None].to(backbone.dtype))
    return condition._replace(entries=timeline_entries(mask))
