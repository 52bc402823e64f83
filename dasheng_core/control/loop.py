"""Loops: each evaluation reads the clip turned by some frames, so that no place is its end.

Dimensions: B batch, T latent frames.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .nest import BranchVelocities, Moment


def loop_shift(seed: int, sigma: float, frames: int) -> int:
    """By how many frames a looping clip is turned for an evaluation: deterministic for seed and sigma, below ``frames``."""
    digest = hashlib.sha256(f"{seed} {round(sigma * 1e6)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % frames


def loop_shifts(seeds: Sequence[int], sigmas: Sequence[float], frames: int) -> list[list[int]]:
    """The shifts ``[steps, B]`` of a whole schedule."""
    return [[loop_shift(seed, sigma, frames) for seed in seeds] for sigma in sigmas]


def turn(latent: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, C, T]`` with item i turned by ``shifts[i]`` frames, and which frames of the clip now stand where, ``[B, T]``."""
    frames = (torch.arange(latent.shape[-1], device=latent.device) + shifts[:, None]) % latent.shape[-1]
    return torch.take_along_dim(latent, frames[:, None], dim=2), frames


def turn_back(velocity: Tensor, frames: Tensor) -> Tensor:
    """``[..., B, C, T]`` of a turned clip, as the clip stands; ``frames`` is from :func:`turn`."""
    return torch.empty_like(velocity).scatter_(-1, frames[:, None].expand_as(velocity), velocity)


def turned(velocity: BranchVelocities, shifts: Tensor) -> BranchVelocities:
    """``velocity`` of the turned clip; ``shifts`` ``[steps, B]``."""

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        seen, frames = turn(latent, shifts[moment.step])
        return turn_back(velocity(seen, moment._replace(frames=frames)), frames)

    return evaluate


def loop_wrap(latent: Tensor, reach: int) -> Tensor:
    """``[..., T]`` -> ``[..., T + 2 reach]``: before the first frame stand the last ones, and after the last the first ones."""
    return latent[..., torch.arange(-reach, latent.shape[-1] + reach, device=latent.device) % latent.shape[-1]]
