"""From the velocities of several branches to one: classifier-free guidance, its variants, and faders.

Dimensions: B batch, C latent channels, T latent frames. Sums and deviations are over one item, ``[C, T]``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .control.nest import BranchVelocities, Moment, Velocity
from .options import APG, SamplingOptions


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): v_u + scale (v_c - v_u)."""
    return unconditional + scale * (conditional - unconditional)


def fitted(unconditional: Tensor, conditional: Tensor) -> Tensor:
    """CFG-Zero* (arXiv 2503.18886, algorithm 1): s v_u, with s = <v_c, v_u> / <v_u, v_u>, which brings it nearest to v_c."""
    return unconditional * (_dot(conditional, unconditional) / _dot(unconditional, unconditional).clamp(min=1e-12))


def rescaled(velocity: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Guidance rescale (arXiv 2305.08891, equations 15 and 16): ``share`` of the way to the deviation of v_c."""
    deviation, wanted = (v.std(dim=(1, 2), keepdim=True) for v in (velocity, conditional))
    return velocity * (share * wanted / deviation.clamp(min=1e-12) + 1 - share)


def is_guided(sigma: float, interval: tuple[float, float]) -> bool:
    """Whether a sigma lies in the guidance interval (arXiv 2404.07724)."""
    low, high = interval
    # A sigma's last bit must not decide whether it lies on a bound.
    return low - 1e-6 <= sigma <= high + 1e-6


def add_faders(
    velocity: Tensor, conditional: Tensor, others: Sequence[Tensor], weights: Sequence[float | Tensor]
) -> Tensor:
    """v + the sum of w (v_c - v_without) (composable diffusion, arXiv 2206.01714); a weight is a number, or one per frame ``[T]``."""
    for weight, other in zip(weights, others, strict=True):
        velocity = velocity + weight * (conditional - other)
    return velocity


def guided(velocity: BranchVelocities, guidance: "Guidance", interval: tuple[float, float] = (0.0, 1.0)) -> Velocity:
    """One velocity of those of the branches: by ``guidance`` in the interval of sigmas, elsewhere the conditional one."""

    def evaluate(latent: Tensor, moment: Moment) -> Tensor:
        conditional, *others = velocity(latent, moment._replace(guided=is_guided(moment.sigma, interval)))
        if not others:
            return conditional
        unconditional = others.pop(0) if guidance.options.guidance_scale > 1 else None
        return guidance(latent, moment.sigma, conditional, unconditional, others)

    return evaluate


class Guidance:
    """How the branches of an evaluation become one velocity. One object for each sampling call: APG has a memory.

    Args:
        options: of APG (arXiv 2410.02416), which takes the place of plain guidance, parallel, limit and momentum are the paper's
            eta, r and beta; the limit is of the update's root mean square, so that it means the same for every length.
        faders: a weight for each branch without an aspect, see :func:`add_faders`.
    """

    def __init__(self, options: SamplingOptions, faders: Sequence[float | Tensor] = ()):
        self.options, self.faders = options, faders
        self._running: Tensor | None = None

    def __call__(
        self,
        latent: Tensor,
        sigma: float,
        conditional: Tensor,
        unconditional: Tensor | None = None,
        without: Sequence[Tensor] = (),
    ) -> Tensor:
        """Velocity ``[B, C, T]``.

        Args:
            latent: ``[B, C, T]``, what the branches evaluated, at ``sigma``.
            unconditional: None: no guidance, the faders alone.
            without: a velocity for each fader.
        """
        velocity, options = conditional, self.options
        if unconditional is not None:
            unconditional = fitted(unconditional, conditional) if options.zero_star else unconditional
            if options.apg is None:
                velocity = guide(conditional, unconditional, options.guidance_scale)
            else:
                update = self._update(latent, sigma, conditional, unconditional, options.apg)
                velocity = conditional + (options.guidance_scale - 1) * update
        velocity = add_faders(velocity, conditional, without, self.faders)
        return rescaled(velocity, conditional, options.guidance_rescale) if options.guidance_rescale else velocity

    def _update(self, latent: Tensor, sigma: float, conditional: Tensor, unconditional: Tensor, apg: APG) -> Tensor:
        """APG's in place of v_c - v_u. The paper's is a difference of sounds, x - sigma v, and so are its projections."""
        parallel, limit, momentum = apg
        sound, update = latent - sigma * conditional, sigma * (unconditional - conditional)
        if momentum and self._running is not None:
            update = update + momentum * self._running
        self._running = update
        if limit:
            update = update * (limit / update.square().mean(dim=(1, 2), keepdim=True).sqrt()).clamp(max=1)
        along = sound * (_dot(update, sound) / _dot(sound, sound).clamp(min=1e-12))
        return (along * (1 - parallel) - update) / sigma


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """``[B, 1, 1]``."""
    return torch.sum(a * b, dim=(1, 2), keepdim=True)
