"""What a clip measures: loudness, peaks, silence, length. Nothing here changes a sound.

Dimensions: C channels, L samples. Levels are in dB relative to full scale, ``-inf`` for silence.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import as_rate

# A 16-bit file shows a clipped sample as this value or its negative.
CLIPPED_VALUE = 1 - 2**-15
# Below it is silence: 16-bit noise is near -96.
SILENCE = -60.0
# One block of BS.1770, the least that has a loudness.
LOUDNESS_SECONDS = 0.4
SHORT_TERM_SECONDS = 3.0
# The power of -70 LUFS.
ABSOLUTE_GATE = 10 ** ((0.691 - 70) / 10)
# At lower rates the filters of BS.1770 deviate, and below 3364 Hz they fail: such clips are measured at 16 kHz or more.
LEAST_RATE, FINE_RATE = 8000, 16000
# One period of the lowest audible tone, 20 Hz.
SWING_SECONDS = 0.05
# Over how many seconds a level is averaged, and how far below the highest one an onset is.
ONSET_SECONDS, ONSET_DB = 0.005, -12.0
# Values between samples that one transform makes, at most.
FINE_BLOCK = 2**17
MISSING_SCIPY = "Loudness needs scipy, which this Python lacks: pip install scipy, or 'dasheng-audiogen[finish]'."


@dataclass(frozen=True)
class Measures:
    """The measures of one clip, in the order of a table's columns."""

    seconds: float
    # Share of the windows of 10 ms that stay at or below SILENCE, 0 to 1.
    silence: float
    # dBFS, the largest sample.
    peak: float
    # dBTP, the largest value between samples too.
    true_peak: float
    # Samples at full scale or beyond.
    clipped: int
    # dB from the root mean square to the peak; 0 for silence.
    crest: float
    # LUFS, integrated; None under 0.4 s, and for more than two channels.
    loudness: float | None
    # Of the transcript; None without one.
    words_per_second: float | None
    # The largest distance of a channel's average from 0: its DC offset. Full scale is 1.
    offset: float
    # dBFS, from the lowest to the highest sample within 50 ms, where that is most; -inf where all samples are alike.
    swing: float


def measure(waveform: Tensor, sample_rate: int, words: float | None = None) -> Measures:
    """Measure one clip ``[C, L]`` or ``[L]``, float, finite, on any device.

    Args:
        words: how many words are spoken, see :func:`dasheng_core.prompt.spoken_words`.

    Raises:
        ValueError: an invalid rate. A clip that has no loudness, see :func:`loudness`, is no error here.
        ImportError: scipy is not installed.
    """
    sample_rate = as_rate(sample_rate)
    clip = waveform.detach().float().cpu().reshape(-1, waveform.shape[-1])
    seconds = clip.shape[-1] / sample_rate
    has_loudness = len(clip) <= 2 and seconds >= LOUDNESS_SECONDS
    peak = decibels(clip.abs().max().item())
    average = decibels(clip.double().square().mean().sqrt().item())
    return Measures(
        seconds=seconds,
        silence=1 - windows_above(clip, sample_rate)[0].float().mean().item(),
        peak=peak,
        true_peak=true_peak(clip, sample_rate),
        clipped=int((clip.abs() >= CLIPPED_VALUE).sum()),
        crest=peak - average if average > -math.inf else 0.0,
        loudness=loudness(clip, sample_rate) if has_loudness else None,
        words_per_second=None if words is None else words / seconds,
        offset=offset(clip),
        swing=swing(clip, sample_rate),
    )


def decibels(amplitude: float) -> float:
    """1 is 0 dB, 0 is ``-inf``."""
    return 20 * math.log10(amplitude) if amplitude else -math.inf


def windows_above(clip: Tensor, sample_rate: int, threshold: float = SILENCE) -> tuple[Tensor, int]:
    """Which windows of 10 ms of ``[C, L]`` have a sample above ``threshold`` dBFS in any channel, and their length."""
    length = max(1, sample_rate // 100)
    loudest = F.pad(clip.abs().amax(dim=0), (0, -clip.shape[-1] % length)).view(-1, length)
    return loudest.amax(dim=1) > 10 ** (threshold / 20), length


def onset_seconds(clip: Tensor, sample_rate: int) -> float | None:
    """When ``[C, L]`` begins to sound: the second at which its level first comes within 12 dB of its highest; None of silence.

    The level is the mean square over 5 ms of all channels. A sound that is steady from its first sample on begins at 0.
    """
    length = min(max(1, round(ONSET_SECONDS * sample_rate)), clip.shape[-1])
    power = F.pad(clip.double().square().mean(dim=0).cumsum(dim=0), (1, 0))
    power = power[length:] - power[:-length]
    if not power.max() > 0:
        return None
    first = int((power >= power.max() * 10 ** (ONSET_DB / 10)).nonzero()[0])
    return (first + length - 1) / sample_rate if first else 0.0


def offset(clip: Tensor) -> float:
    """The largest distance of a channel's average from 0, of ``[C, L]``: its DC offset."""
    return clip.double().mean(dim=1).abs().max().item()


def swing(clip: Tensor, sample_rate: int) -> float:
    """From the lowest to the highest sample within 50 ms of ``[C, L]``, in dBFS, where that is most.

    A tone of amplitude 0.5 has 0 dBFS; a constant, and a drift below 20 Hz, little or none.
    """
    length = max(1, round(SWING_SECONDS * sample_rate))
    # The step to the next window's first sample counts too.
    windows = F.pad(clip[None], (0, -(clip.shape[-1] - 1) % length or length), mode="replicate")[0]
    windows = windows.unfold(-1, length + 1, length)
    return decibels((windows.amax(dim=-1).double() - windows.amin(dim=-1)).max().item())


def true_peak(clip: Tensor, sample_rate: int) -> float:
    """The largest value of ``[C, L]``, also between its samples, in dBTP; beyond its ends is silence.

    BS.1770-4, annex 2, with a longer filter than it asks for, and a parabola through each peak of the 4 times oversampled
    sound: within 0.1 dB of a Fourier interpolation 32 times as fine.
    """
    peak = clip.abs().max().item()
    if not peak:
        return -math.inf
    highest = 1.0
    for fine in _interpolated(clip.float() / peak, 4, more=1):
        fine = fine.abs()
        # Where a peak between two of four values can be higher than all of them.
        rows, columns = (fine[:, 1:-1] >= math.cos(math.pi / 8) * fine.max()).nonzero(as_tuple=True)
        left, middle, right = (fine[rows, columns + i] for i in range(3))
        bend = 2 * middle - left - right
        is_top = (left <= middle) & (right <= middle) & (bend > 0)
        rise = torch.where(is_top, (right - left).square() / (8 * bend), 0)
        highest = max(highest, (middle + rise).max().item())
    return decibels(peak) + decibels(highest)


def _interpolated(clip: Tensor, factor: int, more: int = 0) -> Iterator[Tensor]:
    """``[C, L]`` with ``factor`` values for each sample, in order, and silence beyond its ends.

    Yields:
        ``[C N, K]``: N blocks one behind the other, each with ``more`` values of the next at either end.
    """
    # A transform takes its block for one period: the eighth at either end, which depends on the other end, is left out.
    width = max(64, min(8192, FINE_BLOCK // factor) // 8 * 8)
    edge, step = width // 8, width // 8 * 6
    padded = F.pad(clip, (edge, edge + -clip.shape[-1] % step))
    for blocks in padded.unfold(-1, width, step).split(16, dim=1):
        spectrum = torch.fft.rfft(blocks)
        # At half the rate the spectrum and its mirror image meet.
        spectrum[..., -1] /= 2
        fine = torch.fft.irfft(spectrum, n=width * factor) * factor
        yield fine[..., edge * factor - more : (width - edge) * factor + more].flatten(0, 1)


def loudness(clip: Tensor, sample_rate: int) -> float:
    """Integrated loudness of ``[C, L]`` in LUFS (BS.1770-4); ``-inf`` where all is below -70 LUFS.

    Two equal channels are 3 LU louder than one of them alone.

    Raises:
        ValueError: a clip under 0.4 s, or of more than two channels; an invalid rate.
        ImportError: scipy is not installed.
    """
    return _gated(_block_powers(clip, sample_rate, LOUDNESS_SECONDS))


def loudness_levels(clip: Tensor, sample_rate: int) -> tuple[float, float, float, float]:
    """Of ``[C, L]`` the integrated loudness, the loudness range, and the largest momentary and short-term loudness.

    In LUFS, the range in LU, by EBU Tech 3341 and 3342; a clip under 3 s has no range and no short-term loudness, which are
    ``-inf`` then. Raises as :func:`loudness` does.
    """
    powers = _block_powers(clip, sample_rate, LOUDNESS_SECONDS)
    whole, momentary = _gated(powers), _lufs(powers.max(initial=0))
    if clip.shape[-1] < SHORT_TERM_SECONDS * sample_rate:
        return whole, -math.inf, momentary, -math.inf
    long = _block_powers(clip, sample_rate, SHORT_TERM_SECONDS)
    sounding = long[long > ABSOLUTE_GATE]
    spread = -math.inf
    if len(sounding):
        low, high = np.percentile(sounding[sounding > sounding.mean() / 100], (10, 95))
        spread = _lufs(high) - _lufs(low)
    return whole, spread, momentary, _lufs(long.max(initial=0))


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power) if power else -math.inf


def _gated(powers: np.ndarray) -> float:
    """The mean loudness of blocks, first of those above -70 LUFS, then of those that are less than 10 LU below it."""
    powers = powers[powers > ABSOLUTE_GATE]
    return _lufs(powers[powers > powers.mean() / 10].mean()) if len(powers) else -math.inf


def _block_powers(clip: Tensor, sample_rate: int, seconds: float) -> np.ndarray:
    """The mean square of ``[C, L]``, weighted by BS.1770-4, in blocks of so many seconds, one every 100 ms."""
    sample_rate = as_rate(sample_rate)
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
    clip = clip.double().cpu()
    if sample_rate < LEAST_RATE:
        factor = -(-FINE_RATE // sample_rate)
        samples, sample_rate = samples * factor, sample_rate * factor
        fine = [blocks.reshape(channels, -1) for blocks in _interpolated(clip, factor)]
        clip = torch.cat(fine, dim=1)[:, :samples]
    weighted = clip.numpy()
    for numerator, denominator in k_weighting(sample_rate):
        weighted = lfilter(numerator, denominator, weighted)
    # What is left at the end is not measured.
    steps = np.arange(int(samples * 10 // sample_rate) + 1) * sample_rate // 10
    energy = np.concatenate([[0.0], np.cumsum(np.square(weighted).sum(axis=0))])[steps]
    block = round(seconds * 10)
    return (energy[block:] - energy[:-block]) / (steps[block:] - steps[:-block])


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
