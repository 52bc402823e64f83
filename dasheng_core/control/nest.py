"""The nest: what a velocity function is, and in which order mechanisms stand around it.

::

    velocity = branches(backbone, conditions, ...)                 # one evaluation of the network, all branches of it
    velocity = turned(windowed(velocity, window), shifts)          # loop.py, windows.py
    velocity = guided(velocity, Guidance(...), interval)           # ../guidance.py; faders are branches with weights
    velocity = kept(velocity, known, noise)                        # keep.py
    latent   = euler(velocity, noise, sigmas, callback)            # ../sampling.py

The clip is turned first and windows are cut from the turned clip; both stand inside guidance, whose memory then is of the clip
as it stands. What is kept stands outside of guidance.

Dimensions: B batch, C latent channels, N frames that are evaluated, G branches.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Moment(NamedTuple):
    """Where an evaluation stands.

    Attributes:
        step: of the schedule, from 0.
        sigma: of that step, as a number: nothing waits for a device.
        guided: all branches are evaluated; else the first one alone.
        frames: which frames of the clip are evaluated, ``[B or 1, N]``; None: all, as they stand.
    """

    step: int
    sigma: float
    guided: bool = True
    frames: Tensor | None = None


# Latent [B, C, N] -> velocities of all branches [G, B, C, N]; guidance makes one of them.
BranchVelocities: TypeAlias = Callable[[Tensor, Moment], Tensor]
# Latent [B, C, T] -> velocity [B, C, T].
Velocity: TypeAlias = Callable[[Tensor, Moment], Tensor]
