"""Seconds, latent frames and samples: the one place where one becomes the other."""

SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 640
FRAME_RATE = SAMPLE_RATE / SAMPLES_PER_FRAME
# Attention over frames grows with the square of the length, and training clips were 10 s long.
MAX_SECONDS = 600.0


def frames_from_seconds(seconds: float) -> int:
    """Latent frames of 40 ms of a clip, at least one. User input goes through ``inputs.as_seconds`` first."""
    return max(1, round(seconds * FRAME_RATE))
