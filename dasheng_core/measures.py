"""What a clip measures: loudness, peaks, silence, length. Nothing here changes a sound.

Dimensions: C channels, L samples. Levels are in dB relative to full scale, ``-inf`` for silence.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .audio_tokenizer.spectral import resample

# A 16-bit file shows a clipped sample as this value or its negative.
FULL_SCALE = 1 - 2**-15
# Below it is silence: 16-bit noise is near -96.
SILENCE = -60.0
# One block of BS.1770, the least that has a loudness.
LOUDNESS_SECONDS = 0.4
MISSING_SCIPY = (
    "Loudness needs scipy, which ComfyUI has and this Python lacks: pip install scipy, or 'dasheng-audiogen[finish]'."
)


@dataclass(frozen=True)
class Measures:
    """The measures of one clip, in the order of a table's columns."""

    seconds: float
    # Share of the clip below SILENCE, 0 to 1.
    silence: float
    # dBFS, the largest sample.
    peak: float
    # dBTP, the largest value between samples too.
    true_peak: float
    # Samples at full scale or beyond.
    clipped: int
    # dB from the root mean square to the peak; 0 for silence.
    crest: float
    # LUFS, integrated; None under 0.4 s.
    loudness: float | None
    # Of the transcript; None without one.
    words_per_second: float | None


def measure(waveform: Tensor, sample_rate: int, words: float | None = None) -> Measures:
    """Measure one clip ``[C, L]`` or ``[L]``, float, finite, on any device.

    Args:
        words: how many words are spoken, see :func:`dasheng_core.prompt.spoken_words`.

    Raises:
        ValueError: see :func:`loudness`; a clip under 0.4 s is no error here.
        ImportError: scipy is not installed.
    """
    clip = waveform.detach().float().cpu().reshape(-1, waveform.shape[-1])
    seconds = clip.shape[-1] / sample_rate
    peak = decibels(clip.abs().max().item())
    average = decibels(clip.double().square().mean().sqrt().item())
    return Measures(
        seconds=seconds,
        silence=silent_share(clip, sample_rate),
        peak=peak,
        true_peak=true_peak(clip, sample_rate),
        clipped=int((clip.abs() >= FULL_SCALE).sum()),
        crest=peak - average if average > -math.inf else 0.0,
        loudness=loudness(clip, sample_rate) if seconds >= LOUDNESS_SECONDS else None,
        words_per_second=None if words is None else words / seconds,
    )


def decibels(amplitude: float) -> float:
    """1 is 0 dB, 0 is ``-inf``."""
    return 20 * math.log10(amplitude) if amplitude else -math.inf


def windows_above(clip: Tensor, sample_rate: int, threshold: float = SILENCE) -> tuple[Tensor, int]:
    """Which windows of 10 ms of ``[C, L]`` have a sample above ``threshold`` dBFS in any channel, and their length."""
    length = max(1, sample_rate // 100)
    loudest = F.pad(clip.abs().amax(dim=0), (0, -clip.shape[-1] % length)).view(-1, length)
    return loudest.amax(dim=1) > 10 ** (threshold / 20), length


def silent_share(clip: Tensor, sample_rate: int, threshold: float = SILENCE) -> float:
    """Share of the windows of 10 ms of ``[C, L]`` that stay at or below ``threshold`` dBFS."""
    return 1 - windows_above(clip, sample_rate, threshold)[0].float().mean().item()


def true_peak(clip: Tensor, sample_rate: int) -> float:
    """The largest value of ``[C, L]``, also between its samples, in dBTP: 4 times oversampled (BS.1770-4, annex 2)."""
    between = resample(clip, sample_rate, 4 * sample_rate).abs().max().item()
    return decibels(max(between, clip.abs().max().item()))


def loudness(clip: Tensor, sample_rate: int) -> float:
    """Integrated loudness of ``[C, L]`` in LUFS (BS.1770-4); ``-inf`` where all is below -70 LUFS.

    Two equal channels are 3 LU louder than one of them alone.

    Raises:
        ValueError: a clip under 0.4 s, or of more than two channels.
        ImportError: scipy is not installed.
    """
    try:
        from scipy.signal import lfilter
    except ImportError as error:
        raise ImportError(MISSING_SCIPY) from error
    channels, samples = clip.shape
    if channels > 2:
        raise ValueError(
            f"The audio has {channels} channels, expected 1 or 2: mix it down before its loudness is measured."
        )
    if samples < LOUDNESS_SECONDS * sample_rate:
        raise ValueError(
            f"The audio is {samples / sample_rate:.2f} s long, too short for a loudness: expected at least "
            f"{LOUDNESS_SECONDS} s; set its peak instead, or use a longer clip."
        )
    weighted = clip.double().cpu().numpy()
    for numerator, denominator in k_weighting(sample_rate):
        weighted = lfilter(numerator, denominator, weighted)
    # Blocks of 400 ms, one every 100 ms; what is left at the end is not measured.
    steps = np.arange(int(samples * 10 // sample_rate) + 1) * sample_rate // 10
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted).sum(axis=0))])[steps]
    powers = (energy[4:] - energy[:-4]) / (steps[4:] - steps[:-4])
    powers = powers[powers > 10 ** ((0.691 - 70) / 10)]
    if not len(powers):
        return -math.inf
    return -0.691 + 10 * math.log10(powers[powers > powers.mean() / 10].mean())


def k_weighting(sample_rate: int) -> list[tuple[list[float], list[float]]]:
    """Numerator and denominator of the two filters of BS.1770-4, a high shelf and a high pass, for any rate.

    The standard tabulates them at 48 kHz; these are the second-order filters whose bilinear transform that table is.
    """
    k, q = math.tan(math.pi * 1681.974450955533 / sample_rate), 0.7071752369554196
    high = 10 ** (3.999843853973347 / 20)
    middle = high**0.4996667741545416
    shelf = [high + middle * k / q + k * k, 2 * (k * k - high), high - middle * k / q + k * k]
    k_pass, q_pass = math.tan(math.pi * 38.13547087602444 / sample_rate), 0.5003270373238773
    scale = 1 + k / q + k * k
    return [([value / scale for value in shelf], _poles(k, q)), ([1.0, -2.0, 1.0], _poles(k_pass, q_pass))]


def _poles(k: float, q: float) -> list[float]:
    scale = 1 + k / q + k * k
    return [1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale]
