"""Kept spans of a latent, as a mask in time; all else of the clip is made.

Dimensions: B batch, C latent channels, T latent frames.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..duration import FRAME_RATE, MAX_SECONDS
from ..inputs import as_float, as_list, shown
from ..tensors import as_latent
from .nest import Moment, Velocity
from .timeline import as_span, check_spans


def time_mask(start: float, end: float, frames: int, feather: float = 0.0) -> Tensor:
    """``[T]``: 1 from ``start`` to ``end``, in seconds, and 0 elsewhere; between them it falls within ``feather`` seconds.

    Frames of the feather are kept in part.
    """
    check_spans([as_span(start, end)], frames)
    # In float32 the smallest feathers are 0, and 0 / 0 is NaN.
    seconds = (torch.arange(frames, dtype=torch.float64, device="cpu") + 0.5) / FRAME_RATE
    outside = torch.maximum(start - seconds, seconds - end).clamp(min=0)
    return ((1 - outside / feather).clamp(min=0) if feather else outside <= 0).float()


class Kept(NamedTuple):
    """A latent ``[B, C, T]`` and how much of each frame stays: float ``[T]``, from 0, made again, to 1, as it is.

    Before an evaluation the known sound is mixed into the latent, and after it into the result.
    """

    latent: Tensor
    share: Tensor

    def to(self, device: torch.device) -> "Kept":
        return Kept(self.latent.to(device), self.share.to(device))

    def of(self, items: Sequence[int], frames: int) -> "Kept":
        """Some of the items, for a clip of so many frames."""
        more = (0, frames - len(self.share))
        return Kept(F.pad(self.latent[items], more), F.pad(self.share, more))

    def seen(self, latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """What the network reads in place of the latent."""
        return torch.lerp(latent, torch.lerp(self.latent, noise, sigma), self.share)

    def velocity(self, velocity: Tensor, latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The velocity of a latent towards that mixture of what the network makes and what is known."""
        # How far the latent is from the known sound with its noise; wholly kept frames are never off it.
        off = (latent - torch.lerp(self.latent, noise, sigma)) / sigma
        return torch.lerp(velocity, noise - self.latent, self.share) + self.share * (2 - self.share) * off

    def put_back(self, latent: Tensor) -> Tensor:
        return torch.where(self.share == 1, self.latent, latent)


def kept_of(
    latent: Tensor | None, keep: Iterable[tuple[float, float]] | None, feather: float, items: int, channels: int
) -> Kept | None:
    """Spans in seconds of a latent ``[items or 1, channels, T]``, see :func:`time_mask`; None without them.

    Raises ValueError for a latent without spans, or the reverse, an invalid span or feather, or a span outside this latent.
    """
    if latent is None and keep is None:
        if feather:
            raise ValueError(f"feather is {shown(feather)} and nothing is kept: give latent and keep too.")
        return None
    if latent is None or keep is None:
        raise ValueError("latent and keep belong together: give the latent, and the spans of it that stay.")
    latent = as_latent(latent, channels)
    if len(latent) not in (1, items):
        raise ValueError(f"latent has {len(latent)} items, expected 1 or {items}, one for each prompt.")
    feather = as_float(feather, "feather", 0, MAX_SECONDS, "it is in seconds, and 0 is none")
    share = latent.new_zeros(latent.shape[-1])
    for span in keep:
        ends = as_list(span)
        if len(ends) != 2:
            raise ValueError(f"keep has {shown(span)}, expected pairs of seconds: [(0.0, 2.0)].")
        share = torch.maximum(share, time_mask(ends[0], ends[1], len(share), feather).to(share.device))
    return Kept(latent.expand(items, -1, -1), share)


def extend(latent: Tensor, before: float = 0.0, after: float = 0.0) -> tuple[Tensor, Tensor]:
    """``[B, C, T]`` -> a latent that is longer by so many seconds at either end, and its mask, see :func:`time_mask`."""
    ends = [round(s * FRAME_RATE) for s in (before, after)]
    mask = F.pad(latent.new_zeros(latent.shape[-1]), ends, value=1.0)
    return F.pad(latent, ends), mask


def kept(velocity: Velocity, known: Kept, noise: Tensor) -> Velocity:
    """``velocity`` of a clip of which ``known`` stays; ``noise`` ``[B, C, T]`` is what the clip began as."""

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        seen = known.seen(latent, noise, moment.sigma)
        return known.velocity(velocity(seen, moment), latent, noise, moment.sigma)

    return evaluate
