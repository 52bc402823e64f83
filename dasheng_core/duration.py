"""Seconds, latent frames and samples: the one place where one becomes the other."""

import torch
from torch import Tensor

SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 640
FRAME_RATE = SAMPLE_RATE / SAMPLES_PER_FRAME
# Attention over frames grows with the square of the length, and training clips were 10 s long.
MAX_SECONDS = 600.0


def frames_from_seconds(seconds: float) -> int:
    """Latent frames of 40 ms of a clip, at least one. User input goes through ``inputs.as_seconds`` first."""
    return max(1, round(seconds * FRAME_RATE))


def frames_from_duration(global_duration: Tensor, offset: float, frame_rate: float) -> Tensor:
    """Clip length in latent frames, ``[B]`` int64, from the adapter's g ``[B]``: exp(g) - offset seconds.

    Rounds half to even in float32 as the published model does, and keeps at least one frame.
    """
    seconds = torch.exp(global_duration.float()) - offset
    return torch.round(seconds * frame_rate).clamp(min=1).to(torch.int64)
