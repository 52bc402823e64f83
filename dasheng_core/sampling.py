"""From noise to latent: initial noise, and the denoising loop.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .backbone import Backbone
from .condition import Condition
from .control.keep import Kept, kept
from .control.loop import loop_shifts, turned
from .control.nest import BranchVelocities, Moment, Velocity
from .control.timeline import timeline_aligned, timeline_entries
from .control.windows import window_frames, windowed
from .guidance import Guidance, guided
from .inputs import as_int, as_list
from .options import SamplingOptions
from .schedule import make_sigmas, make_timesteps
from .skip_cache import SkipCache, check_outer_blocks

MAX_SEED = 2**64
# JavaScript keeps whole numbers below this one exact.
MAX_DRAWN_SEED = 2**53


def as_seed(seed: object) -> int:
    """A seed. Raises ValueError for what is no whole number from 0 to 2^64 - 1."""
    return as_int(seed, "seed", 0, MAX_SEED - 1, "any of them makes a take of its own")


def random_seed() -> int:
    return secrets.randbelow(MAX_DRAWN_SEED)


def item_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """One seed per item: ``seed + i`` (modulo 2^64) for an int, the given ones for a list.

    Raises:
        ValueError: a seed that is no whole number from 0 to 2^64 - 1, or a list of another length.
    """
    given = as_list(seed)
    seeds = [as_seed(s) for s in given]
    if given == [seed]:
        return [(seeds[0] + i) % MAX_SEED for i in range(count)]
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts: give one int, or one seed per prompt.")
    return seeds


def draw_noise(seed: int, channels: int, frames: int, kind: str = "steady") -> Tensor:
    """Standard normal ``[C, T]`` in float32 from a CPU generator of its own: the same on every device and in any batch.

    Args:
        kind: "steady" draws frame by frame, so that a clip of another length begins with the same noise; "plain"
            channel by channel, as torch.randn does.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "plain":
        return torch.randn(channels, frames, generator=generator, dtype=torch.float32, device="cpu")
    # torch draws the last 16 numbers a second time: these are of frames that are cut off.
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
    sigmas = make_sigmas(options.num_steps, options.sway_sampling_coef, grid=options.grid)
    one = make_velocity(
        backbone, read, options, sigmas, frame_mask, loop_shifts(seeds, sigmas[:-1].tolist(), noise.shape[-1])
    )
    if known is None:
        return euler(one, noise, sigmas, callback)
    return known.put_back(euler(kept(one, known, noise), noise, sigmas, callback))


def make_velocity(
    backbone: Backbone,
    read: Branches,
    options: SamplingOptions,
    sigmas: Tensor,
    frame_mask: Tensor | None = None,
    shifts: Sequence[Sequence[int]] = (),
) -> Velocity:
    """The velocity with all mechanisms of the options around it, for one sampling call along ``sigmas``.

    Args:
        shifts: ``[steps, B]``, by how many frames a loop is turned.
    """
    guidance = Guidance.of(options, [fader.weight for fader in read.faders])
    velocity = branches(
        backbone, _conditions(backbone, read, guidance.scale > 1), sigmas, frame_mask, options.skip_cache
    )
    if options.window is not None:
        velocity = windowed(velocity, window_frames(options.window))
    if options.loop:
        velocity = turned(velocity, torch.tensor(shifts, device=read.positive.context.device))
    return guided(velocity, guidance, options.guidance_interval)


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
        read = [c.at_timestep(levels[moment.step]) for c in (conditions if moment.guided else conditions[:1])]
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
