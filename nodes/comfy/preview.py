"""What previews show while a sampler runs: one strip of colours per take, from left to right in time."""

from functools import lru_cache

import torch
from torch import Tensor

ROW_PIXELS = 32


def make_strip(latent: Tensor) -> Tensor:
    """Latent ``[B, C, T]`` -> picture ``[1, 3, 32 B, T]`` within -1 to 1: frames that sound alike have like colours.

    Three fixed directions keep how far frames are from each other (Johnson and Lindenstrauss, 1984), for any width.
    """
    colours = torch.einsum("dc,bct->bdt", _directions(latent.shape[1]).to(latent), latent)
    spread = (colours - colours.mean(-1, keepdim=True)) / colours.std(-1, keepdim=True).clamp(min=1e-6)
    # Twice the standard deviation is full colour.
    rows = (spread / 2).clamp(-1, 1).repeat_interleave(ROW_PIXELS, dim=0)
    return rows.movedim(1, 0)[None]


@lru_cache
def _directions(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, channels, generator=generator, dtype=torch.float32, device="cpu")
