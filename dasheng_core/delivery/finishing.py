"""From a take to a delivered sound: trim, fade, level, channels, mix. Nothing is limited or clipped.

Dimensions: B takes, C channels, L samples. Sounds are float32, full scale is 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..audio_tokenizer.spectral import resample
from ..control.loop import loop_wrap
from .measures import LOUDNESS_SECONDS, loudness, offset, true_peak, windows_above

LEVELS = ("as it is", "loudness", "true peak")
# A lower peak is silence to every player: amplified, it would be rounding errors.
FAINTEST = -144.0
# A note reports a DC offset from this on.
MUCH_OFFSET = 0.1


def trim_silence(clip: Tensor, sample_rate: int, threshold: float, padding: float) -> tuple[Tensor, int]:
    """``[C, L]`` without its beginning and end below ``threshold`` dBFS, but ``padding`` seconds; whole if all is below.

    Returns:
        the clip, and how many samples its beginning had.
    """
    sounding, length = windows_above(clip, sample_rate, threshold)
    places = sounding.nonzero()
    if not len(places):
        return clip, 0
    more = round(padding * sample_rate)
    first = max(0, int(places[0]) * length - more)
    return clip[:, first : (int(places[-1]) + 1) * length + more], first


def fade(clip: Tensor, sample_rate: int, rise: float, fall: float) -> Tensor:
    """``[C, L]`` that rises from 0 and falls to 0 by a squared sine of so many seconds, or as many as there are."""
    rising, falling = (_ramp(clip.shape[-1], round(seconds * sample_rate)) for seconds in (rise, fall))
    return clip * rising * falling.flip(0)


def set_level(clip: Tensor, sample_rate: int, level: str, target: float) -> tuple[Tensor, list[str]]:
    """``[C, L]`` at a loudness (LUFS) or true peak (dBTP), or as it is; and notes about it.

    Args:
        level: one of :data:`LEVELS`. What is silent, or too short for a loudness, stays as it is.
    """
    notes = []
    if level == "loudness" and clip.shape[-1] < LOUDNESS_SECONDS * sample_rate:
        notes.append(f"too short for a loudness (under {LOUDNESS_SECONDS} s), level left")
    elif level != "as it is":
        measured = (loudness if level == "loudness" else true_peak)(clip, sample_rate)
        if measured < FAINTEST:
            return clip, ["silent, level left"]
        change, unit = target - measured, "LUFS" if level == "loudness" else "dBTP"
        clip = clip * 10 ** (change / 20)
        notes.append(f"{target:.1f} {unit} ({change:+.1f} dB)")
    return clip, notes + peak_notes(clip, sample_rate)


def peak_notes(clip: Tensor, sample_rate: int) -> list[str]:
    """The true peak of ``[C, L]`` in words, and whether it passes full scale or has a DC offset."""
    peak = true_peak(clip, sample_rate)
    notes = [f"true peak {peak:.1f} dBTP"]
    # A level that was set to 0 is off by rounding.
    if peak > 0.001:
        notes.append(f"WOULD CLIP: turn it down by {math.ceil(peak * 10) / 10:.1f} dB, or save 32-bit float")
    if (off := offset(clip)) > MUCH_OFFSET:
        notes.append(
            f"DC OFFSET {off:.2g}: the sound stands off from 0, which clicks and takes room; make another take"
        )
    return notes


def resample_loop(clip: Tensor, sample_rate: int, new_rate: int) -> Tensor:
    """``[..., L]`` that loops, at another rate, where it loops too.

    That holds to the sample for a length that is a whole number of samples at both rates, as every number of frames is.
    """
    # A second is a whole number of samples at any rate.
    return resample(loop_wrap(clip, sample_rate), sample_rate, new_rate)[..., new_rate:-new_rate]


def mix(bed: Tensor, layer: Tensor, at: int) -> Tensor:
    """``[B, C, L]`` and another whose sample 0 comes at the bed's sample ``at``; mono joins stereo in both channels."""
    if bed.shape[1] != layer.shape[1]:
        bed, layer = to_stereo(bed), to_stereo(layer)
    bed, layer = _as_long(bed, F.pad(layer, (at, 0)))
    return bed + layer


def extend_silence(clip: Tensor, samples: int) -> Tensor:
    """``[C, L]`` with silence behind it, where it is shorter than ``samples``."""
    return F.pad(clip, (0, max(0, samples - clip.shape[-1])))


def left_and_right(left: Tensor, right: Tensor) -> Tensor:
    """Two mono sounds ``[1, L]`` as the channels of one; the shorter is silent at its end."""
    return torch.cat(_as_long(left, right))


def to_mono(clip: Tensor) -> Tensor:
    """The average of the channels, ``[..., C, L]`` -> ``[..., 1, L]``."""
    return clip.mean(dim=-2, keepdim=True)


def to_stereo(clip: Tensor) -> Tensor:
    """``[..., C, L]`` -> ``[..., 2, L]``, mono in both channels. Raises ValueError for more than two."""
    channels = clip.shape[-2]
    if channels > 2:
        raise ValueError(f"The audio has {channels} channels, expected 1 or 2: make it mono first.")
    return clip.expand(*clip.shape[:-2], 2, -1)


def _ramp(samples: int, count: int) -> Tensor:
    """``[samples]`` that reach 1 after ``count`` of them."""
    place = torch.arange(samples, dtype=torch.float32, device="cpu")
    share = (place / count).clamp(max=1) if count else torch.ones_like(place)
    return (share * math.pi / 2).sin().square()


def _as_long(*sounds: Tensor) -> list[Tensor]:
    """Each with silence behind it, as long as the longest."""
    length = max(sound.shape[-1] for sound in sounds)
    return [F.pad(sound, (0, length - sound.shape[-1])) for sound in sounds]
