"""Takes of an effect laid into a bed, so that each begins to sound at a sample. Nothing else of the bed changes.

Dimensions: C channels, L samples. Sounds are float32, full scale is 1.
"""

from collections.abc import Sequence

from torch import Tensor

from .finishing import fade, to_mono, trim_silence
from .measures import SILENCE

# A take begins to sound where it first reaches this share of its peak, -8 dB.
ONSET_SHARE = 0.4
# Seconds of a take that are kept before its onset; over which it rises, and over which it falls at its end.
LEAD, RISE, FALL = 0.01, 0.002, 0.05


def onset_of(clip: Tensor) -> int | None:
    """The sample of ``[C, L]`` at which it begins to sound: the first within 8 dB of its peak; None of digital silence."""
    size = clip.abs().amax(dim=0)
    peak = size.max()
    return int((size >= ONSET_SHARE * peak).nonzero()[0]) if peak > 0 else None


def place_takes(bed: Tensor, takes: Sequence[Tensor], sample_rate: int, hits: Sequence[tuple[int, float]]) -> Tensor:
    """A bed ``[C, L]`` with takes ``[C', L']`` whose onsets fall on samples of it: the first take on the first hit, and so on in turn.

    A take is cut LEAD before its onset and rises within RISE. Silence behind it is left out; what would run on over the bed's end
    is cut. Either end falls to 0 within FALL. A take of other channels than the bed is averaged into each of the bed's.

    Args:
        hits: a sample of the bed, and a level in dB, for each.
    """
    mixed = bed.clone()
    for number, (at, gain) in enumerate(hits):
        take = takes[number % len(takes)]
        if (onset := onset_of(take)) is None:
            continue
        if len(take) != len(bed):
            take = to_mono(take)
        lead = min(round(LEAD * sample_rate), onset, at)
        piece, _ = trim_silence(take[:, onset - lead :], sample_rate, SILENCE, FALL)
        piece = fade(piece[:, : bed.shape[-1] - at + lead], sample_rate, RISE, FALL)
        mixed[:, at - lead : at - lead + piece.shape[-1]] += piece * 10 ** (gain / 20)
    return mixed
