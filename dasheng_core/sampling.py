"""From noise to latent: initial noise, and the denoising loop.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .backbone import Backbone, Rotary
from .condition import Condition
from .control.keep import Kept, kept
from .control.loop import loop_shifts, turned
from .control.nest import BranchVelocities, Moment, Velocity
from .control.timeline import timeline_aligned, timeline_entries
from .control.windows import windowed
from .duration import frames_from_seconds
from .guidance import Guidance, guided
from .inputs import as_int, as_list
from .options import SamplingOptions
from .schedule import make_sigmas, make_timesteps
from .step_graph import GraphedStep
from .tensors import UNSTABLE, as_latent, check_finite

log = logging.getLogger(__name__)

MAX_SEED = 2**64
# JavaScript keeps whole numbers below this one exact.
MAX_DRAWN_SEED = 2**53


def as_seed(seed: object) -> int:
    """A seed. Raises ValueError for what is no whole number from 0 to 2^64 - 1."""
    return as_int(seed, "seed", 0, MAX_SEED - 1, "any of them makes a take of its own")


def random_seed() -> int:
    return secrets.randbelow(MAX_DRAWN_SEED)


def item_seeds(seed: int | Sequence[int], count: int, takes: int = 1) -> list[int]:
    """One seed per item and take: ``seed + i`` (modulo 2^64) for an int; of a list, s + t for take t of the item with s.

    Raises ValueError for a seed that is no whole number from 0 to 2^64 - 1, or a list of another length.
    """
    given = as_list(seed)
    seeds = [as_seed(s) for s in given]
    if given == [seed]:
        count, takes = 1, count * takes
    if len(seeds) != count:
        raise ValueError(f"{len(seeds)} seeds for {count} prompts: give one int, or one seed per prompt.")
    return [(s + take) % MAX_SEED for s in seeds for take in range(takes)]


def choose_seeds(seed: int | Sequence[int] | None, noise: Tensor | None, count: int, takes: int = 1) -> list[int]:
    """One seed per item and take, drawn and logged where none is given; none where the noise is given."""
    if noise is not None:
        if seed is not None:
            raise ValueError(
                f"seed is {seed} and noise is given too, expected one of them: noise leaves nothing to draw."
            )
        return []
    if seed is None:
        seed = random_seed()
        log.info("seed %d", seed)
    return item_seeds(seed, count, takes)


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


def draw_noises(seeds: Sequence[int], channels: int, lengths: Sequence[int], kind: str = "steady") -> Tensor:
    """Noise ``[B, C, T]`` of one length for each seed, zeros after shorter ones."""
    drawn = [draw_noise(seed, channels, length, kind).T for seed, length in zip(seeds, lengths, strict=True)]
    return pad_sequence(drawn, batch_first=True).mT


def as_noise(noise: Tensor, items: int, channels: int, frames: int) -> Tensor:
    """Initial latents ``[items, channels, T]``, of ``frames`` or more. Raises ValueError for others."""
    noise = as_latent(noise, channels, "noise")
    if len(noise) != items or noise.shape[-1] < frames:
        raise ValueError(
            f"noise has shape {list(noise.shape)}, expected {[items, channels, frames]} "
            "(items, latent channels, frames; more frames are fine)."
        )
    return noise


class Branch(NamedTuple):
    """What one branch of an evaluation reads.

    Attributes:
        context: ``[B, S, X]``, the content adapter's output.
        mask: ``[B, S]`` bool; or of timelines ``[B, T, S]``, to add to scores; None when nothing is padded.
        weight: of a fader, a number or one per frame ``[T]``, see :func:`dasheng_core.guidance.add_faders`.
        spoken: ``[B, T]``, see :class:`dasheng_core.condition.Condition`; that of the positive branch is the unconditional one's too.
    """

    context: Tensor
    mask: Tensor | None = None
    weight: float | Tensor = 1.0
    spoken: Tensor | None = None


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
    """Integrate the flow from noise (sigma 1) to data (sigma 0), one evaluation of the network per step, on the network's device.

    The order of the mechanisms is that of :mod:`dasheng_core.control.nest`.

    Args:
        noise: float32 ``[B, C, T]``, the initial latent.
        frame_mask: ``[B, T]`` bool, True up to each item's length; None when nothing is padded.
        known: what is known of the result, and stays.
        seeds: of each item, for a loop's shifts; none: they are 0, 1, 2 and so on.
        callback: called with (steps done, steps in all) after each step.

    Returns:
        Latent ``[B, C, T]``, float32.

    Raises ValueError where it came out with values that are not numbers.
    """
    sigmas = make_sigmas(options.num_steps, options.sway_sampling_coef, grid=options.grid)
    noise = noise.to(backbone.dummy_ta_embed.device)
    shifts = None
    if options.loop:
        shifts = loop_shifts(seeds or range(len(noise)), sigmas[:-1].tolist(), noise.shape[-1])
    one = make_velocity(backbone, read, options, sigmas, frame_mask, shifts)
    if known is not None:
        known = known.to(noise.device)
        one = kept(one, known, noise)
    latent = euler(one, noise, sigmas, callback)
    return check_finite(latent if known is None else known.put_back(latent), "The sampled latent", UNSTABLE)


def make_velocity(
    backbone: Backbone,
    read: Branches,
    options: SamplingOptions,
    sigmas: Tensor,
    frame_mask: Tensor | None = None,
    shifts: Sequence[Sequence[int]] | None = None,
) -> Velocity:
    """The velocity with all mechanisms of the options around it, for one sampling call along ``sigmas``.

    Args:
        shifts: ``[steps, B]``, by how many frames the clip is turned at each step; None: it is no loop.
    """
    guidance = Guidance(options, [fader.weight for fader in read.faders])
    conditions = _conditions(backbone, read, options.guidance_scale > 1)
    graphs = options.graphs and options.window is None
    velocity = branches(backbone, conditions, sigmas, frame_mask, graphs)
    if options.window is not None:
        velocity = windowed(velocity, frames_from_seconds(options.window))
    if shifts is not None:
        velocity = turned(velocity, torch.tensor(shifts, device=backbone.dummy_ta_embed.device))
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
    graphs: bool = False,
) -> BranchVelocities:
    """One evaluation of the network: ``[B, C, N]`` -> the velocities of all conditions ``[G, B, C, N]``, as one batch."""
    step = GraphedStep(backbone) if graphs else backbone.step
    timesteps = make_timesteps(sigmas[:-1])
    # What the schedule decides is computed once, and goes with this call.
    modulations = backbone.modulation(timesteps.to(backbone.dummy_ta_embed.device)).split(1)
    levels = timesteps.tolist()
    rotaries: dict[int, Rotary] = {}
    frame_mask = None if frame_mask is None else frame_mask.to(backbone.dummy_ta_embed.device)

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        read = [c.at_timestep(levels[moment.step]) for c in (conditions if moment.guided else conditions[:1])]
        if moment.frames is not None:
            read = [c.at_frames(moment.frames) for c in read]
        x = torch.cat([latent.to(backbone.dtype)] * len(read))
        if x.shape[-1] not in rotaries:
            rotaries[x.shape[-1]] = backbone.rotary(x.shape[-1], x.device)
        velocity = step(x, modulations[moment.step], read, frame_mask, rotaries[x.shape[-1]])
        return velocity.float().unflatten(0, (len(read), -1))

    return evaluate


def _conditions(backbone: Backbone, read: Branches, guides: bool) -> list[Condition]:
    """One for each branch: the prompt, what guidance compares with, and the faders."""
    conditions = [_condition(backbone, read.positive)]
    if guides and read.negative is None:
        silence = torch.zeros_like(backbone.dummy_ta_embed, dtype=backbone.dtype)
        conditions.append(backbone.condition(None, silence[None, None])._replace(spoken=conditions[0].spoken))
    elif guides and read.negative is not None:
        conditions.append(_condition(backbone, read.negative))
    return conditions + [_condition(backbone, fader) for fader in read.faders]


def _condition(backbone: Backbone, branch: Branch) -> Condition:
    time_aligned = backbone.dummy_ta_embed.to(backbone.dtype)
    context = branch.context.to(time_aligned)
    mask = branch.mask
    if mask is None or mask.dtype == torch.bool:
        # Asked where the mask lies: nothing waits for a device.
        padded = None if mask is None or bool(mask.all()) else mask[:, None, None].to(context.device)
        return backbone.condition(context, time_aligned[None, None], padded)
    mask = mask.to(context.device)
    condition = backbone.condition(context, timeline_aligned(time_aligned, mask), mask[:, None].to(backbone.dtype))
    spoken = None if branch.spoken is None else branch.spoken.to(context.device)
    return condition._replace(entries=timeline_entries(mask), spoken=spoken)
