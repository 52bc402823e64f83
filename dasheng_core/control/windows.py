"""Windows: a clip longer than the model was trained on, evaluated in parts that overlap by half.

Dimensions: B batch, C latent channels, T latent frames, N frames of a window, G branches.
"""

import torch
from torch import Tensor

from .nest import BranchVelocities, Moment


def window_starts(frames: int, size: int) -> list[int]:
    """Where the windows of a clip start: every half window, and the last one at the clip's end."""
    return [*range(0, frames - size, max(1, size // 2)), frames - size]


def windowed(velocity: BranchVelocities, size: int) -> BranchVelocities:
    """``velocity`` in windows of ``size`` frames, blended with weights that fall linearly from the middle of each."""

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        T = latent.shape[-1]
        if T <= size:
            return velocity(latent, moment)
        frames = torch.arange(T, device=latent.device)[None] if moment.frames is None else moment.frames
        ramp = torch.arange(1, size + 1, device=latent.device, dtype=latent.dtype)
        weight = torch.minimum(ramp, ramp.flip(0))
        parts = [slice(start, start + size) for start in window_starts(T, size)]
        made = [velocity(latent[..., part], moment._replace(frames=frames[:, part])) for part in parts]
        total, share = made[0].new_zeros(*made[0].shape[:-1], T), latent.new_zeros(T)
        for part, velocities in zip(parts, made, strict=True):
            total[..., part] += velocities * weight
            share[part] += weight
        return total / share

    return evaluate
