"""Noise schedules: the sigmas from noise (1) to data (0), and the timesteps that the network reads.

Everything here is torch float32 in one order of operations. The network truncates its timestep to an
integer, so a last-bit difference in a sigma can change a timestep by 1.
"""

import torch
from torch import Tensor

from .inputs import as_float
from .options import EPSS, MAX_STEPS, check_schedule

TIMESTEPS = 1000
MIN_DENOISE = 0.001


def make_sigmas(num_steps: int, sway_sampling_coef: float = -1.0, denoise: float = 1.0, grid: str = "full") -> Tensor:
    """Sigmas of a sway or, for coefficient 0, linear schedule.

    Sway sampling (F5-TTS, arXiv 2410.06885, eq. 7) warps a uniform grid: u + s (cos(pi u / 2) - 1 + u).

    Args:
        denoise: below 1, only the last ``num_steps`` of ``num_steps / denoise`` steps, for a latent that is
            kept in part; of one step more where that quotient, rounded down,
            leaves none out.
        grid: "full", or "epss" for the few points of the 32-step grid in :data:`dasheng_core.options.EPSS`: an approximation.

    Returns:
        Float32 ``[num_steps + 1]`` on the CPU, falling to exactly 0; from 1 when ``denoise`` is 1.

    Raises:
        ValueError: see :func:`dasheng_core.options.check_schedule`; or ``denoise`` not from 0.001 to 1.
    """
    num_steps = check_schedule(num_steps, sway_sampling_coef)
    denoise = as_float(denoise, "denoise", MIN_DENOISE, 1, "near 0 keeps the latent, and 1 starts from noise")
    # Any value below 1 keeps some of the latent.
    total = max(int(num_steps / denoise), num_steps + (denoise < 1))
    check_schedule(total, sway_sampling_coef, grid, most=int(MAX_STEPS / MIN_DENOISE))
    if grid == "epss":
        return make_sigmas(32, sway_sampling_coef)[list(EPSS[total])][-(num_steps + 1) :]
    if sway_sampling_coef == 0:
        sigmas = _uniform(1, 1 / total, total)
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    else:
        u = _uniform(0, 1, total + 1)
        u = u + sway_sampling_coef * (torch.cos(torch.pi / 2 * u) - 1 + u)
        sigmas = 1 - u
        sigmas[-1] = 0
    return sigmas[-(num_steps + 1) :]


def _uniform(first: float, last: float, count: int) -> Tensor:
    """``torch.linspace`` in float32 as processors with fused multiply-add round it; timesteps depend on its last bit."""
    start, end = (torch.tensor(value, dtype=torch.float32, device="cpu") for value in (first, last))
    # In float64 the products are exact: only the sums are rounded, on every processor.
    step = ((end - start) / max(count - 1, 1)).double()
    i = torch.arange(count, dtype=torch.float64, device="cpu")
    return torch.where(i < max(count // 2, 1), start + step * i, end - step * (count - 1 - i)).float()


def truncate_timesteps(timesteps: Tensor) -> Tensor:
    """Timesteps as the network was trained on them: whole numbers, truncated toward zero."""
    return timesteps.to(torch.int64)


def make_timesteps(sigmas: Tensor) -> Tensor:
    """The integer timesteps of float32 ``sigmas`` (any shape), 0 to 1000."""
    return truncate_timesteps(sigmas * TIMESTEPS)
