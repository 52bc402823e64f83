"""Mono sounds placed between two loudspeakers. Nothing is limited or clipped.

Dimensions: B takes, L samples, F frequencies. Sounds are float32, full scale is 1.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import as_float

MOST_DELAY = 1.0
# At distance 1: how much quieter, in dB; and the frequency in Hz that is 3 dB lower then, at distance 0 none is.
FAR_DB, FAR_CUTOFF = -12.0, 2000.0
# Seconds of silence behind a sound, into which what is delayed or filtered runs on.
TAIL = 0.05


@dataclass(frozen=True)
class Place:
    """Where a sound stands, and how loud it is.

    Attributes:
        pan: -1 is left, 0 the middle, 1 right.
        distance: 0 is as it is; 1 is 12 dB quieter, and what lies above 2 kHz is duller.
        gain: dB.

    Raises:
        ValueError: a number out of its range.
    """

    pan: float = 0.0
    distance: float = 0.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        as_float(self.pan, "pan", -1, 1, "-1 is left, 0 the middle and 1 right")
        as_float(self.distance, "distance", 0, 1, "0 is as it is, and 1 is far")
        as_float(self.gain, "gain", -60, 24, "it is a change of level in dB")


def place_in_stereo(sound: Tensor, sample_rate: int, place: Place, delay: float = 0.0) -> Tensor:
    """``[B, L]`` -> ``[B, 2, L]``, left and right.

    Left is (1 - pan) / 2 of the sound and right (1 + pan) / 2, so that both together are the sound.

    Args:
        delay: milliseconds by which a sound at one side comes later to the other, in proportion to its pan: 0 to 1; ears are 0.65
            apart.
    """
    delay = as_float(delay, "delay", 0, MOST_DELAY, "it is in milliseconds, and ears are 0.65 apart")
    sides = torch.tensor([(1 - place.pan) / 2, (1 + place.pan) / 2], dtype=sound.dtype, device=sound.device)
    late = [max(0.0, side * place.pan) * delay / 1000 for side in (1, -1)]
    sound = sound * 10 ** ((place.gain + FAR_DB * place.distance) / 20)
    if not place.distance and not any(late):
        return sound[:, None] * sides[:, None]
    samples = sound.shape[-1]
    padded = F.pad(sound, (0, math.ceil(TAIL * sample_rate)))
    spectrum = torch.fft.rfft(padded)
    hertz = torch.fft.rfftfreq(padded.shape[-1], 1 / sample_rate, dtype=sound.dtype, device=sound.device)
    if place.distance:
        # One octave of air more for each octave that the cutoff falls: squared, and proportional to the distance.
        spectrum = spectrum / (1 + place.distance * (hertz / FAR_CUTOFF) ** 2).sqrt()
    turns = torch.stack([torch.polar(torch.ones_like(hertz), -2 * math.pi * seconds * hertz) for seconds in late])
    placed = torch.fft.irfft(spectrum[:, None] * turns * sides[:, None], n=padded.shape[-1])
    return placed[..., :samples]
