"""Short-time spectra: the inverse transform of the decoder and the two mel front ends of the encoder.

Dimensions: B batch, L samples, F frequency bins, T frames, M mel bands.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..duration import SAMPLE_RATE
from ..inputs import as_rate

# One minute.
SPECTRUM_FRAMES = 6000
# Filter weights of a resampling that are computed at once: 16 MB in float32.
MOST_TAPS = 2**22


def inverse_stft(log_magnitude: Tensor, phase: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Inverse STFT with "same" padding, as Vocos defines it (arXiv 2306.00814, section 3).

    Magnitudes are exp(log_magnitude), at most 100. Frames overlap under a periodic Hann window; the sum is
    divided by the summed squared window and loses (n_fft - hop_length) / 2 samples at either end.

    Args:
        log_magnitude: float32 ``[B, T, F]``, F = n_fft / 2 + 1.
        phase: float32 ``[B, T, F]``, radians.

    Returns:
        Waveform ``[B, hop_length * T]``.
    """
    spectrum = torch.polar(log_magnitude.exp().clamp(max=100.0), phase)
    window = torch.hann_window(n_fft, dtype=phase.dtype, device=phase.device)
    frames = torch.fft.irfft(spectrum, n=n_fft) * window
    T = frames.shape[1]
    trim = (n_fft - hop_length) // 2
    kept = slice(trim, trim + hop_length * T)
    envelope = _overlap_add(window.square().expand(1, T, -1), hop_length)
    return _overlap_add(frames, hop_length)[:, kept] / envelope[:, kept]


def _overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """``[B, T, n_fft]`` -> ``[B, at least (T - 1) hop_length + n_fft]``: as many shifted sums as frames overlap."""
    overlap = -(-frames.shape[-1] // hop_length)
    pieces = F.pad(frames, (0, overlap * hop_length - frames.shape[-1])).unflatten(-1, (overlap, hop_length))
    B, T = frames.shape[:2]
    sums = frames.new_zeros(B, T + overlap - 1, hop_length)
    for i in range(overlap):
        sums[:, i : i + T] += pieces[:, :, i]
    return sums.flatten(1)


def semantic_mel(waveform: Tensor, n_mels: int, hop_length: int) -> Tensor:
    """Power mel spectrogram in decibels, ``[B, L]`` -> ``[B, M, T]``, floored 120 dB below the batch's loudest bin."""
    power = _mel(waveform, n_fft=512, hop_length=hop_length, n_mels=n_mels, power=2.0)
    decibels = 10.0 * power.clamp(min=1e-10).log10()
    return decibels.clamp(min=decibels.max() - 120.0)


def acoustic_mel(waveform: Tensor, n_mels: int, hop_length: int) -> Tensor:
    """Natural log of a magnitude mel spectrogram, ``[B, L]`` -> ``[B, M, T]``."""
    return _mel(waveform, n_fft=1024, hop_length=hop_length, n_mels=n_mels, power=1.0).clamp(min=1e-7).log()


def picture_mel(waveform: Tensor, sample_rate: int, n_mels: int) -> Tensor:
    """Power mel spectrogram in decibels up to half of any rate, ``[B, L]`` -> ``[B, M, T]``; frames of about 50 ms."""
    n_fft = 2 ** max(2, round(math.log2(sample_rate / 20)))
    # Reflected ends are shorter than the sound.
    waveform = F.pad(waveform, (0, max(0, n_fft - waveform.shape[-1])))
    return 10.0 * _mel(waveform, n_fft, n_fft // 4, n_mels, 2.0, sample_rate).clamp(min=1e-10).log10()


def resample(waveform: Tensor, sample_rate: int, new_rate: int = SAMPLE_RATE) -> Tensor:
    """``[..., L]`` at ``sample_rate`` Hz -> ``new_rate``, ``[..., ceil(new_rate L / sample_rate)]``.

    Sinc interpolation under a Hann window of 6 zero crossings per side; the band ends at 99 % of the lower rate's half,
    and beyond the ends is silence. Takes little more memory than its result, at any rate. Raises ValueError for rates
    that are none.
    """
    sample_rate, new_rate = as_rate(sample_rate), as_rate(new_rate)
    if sample_rate == new_rate:
        return waveform
    common = math.gcd(sample_rate, new_rate)
    old, new = sample_rate // common, new_rate // common
    reach = math.ceil(6 * old / (0.99 * min(old, new)))
    # The last of the phases begins up to 16 of them before the end of the last block.
    padded = F.pad(waveform.reshape(-1, 1, waveform.shape[-1]), (reach, reach + old + 16 * old // new + 2))
    blocks = waveform.shape[-1] // old + 1

    # Outputs i, i + new, i + 2 new, ... lie at one phase between inputs and share a filter. Rates of few common factors
    # have thousands: these are computed some at a time, each only as long as its phases reach.
    dtype = waveform.dtype
    first, count, length = [0], new, old + 2 * reach
    if new * length > MOST_TAPS:
        # float32 is too coarse for so many phases.
        dtype, count = torch.float64, 16
        first, length = list(range(0, new, count)), count * old // new + 2 * reach + 2
    parts = []
    for phase in first:
        start = phase * old // new
        phases = torch.arange(phase, min(phase + count, new), dtype=dtype, device=waveform.device)
        taps = torch.arange(start - reach, start - reach + length, dtype=dtype, device=waveform.device)
        filters = _interpolation_filters(phases[:, None, None] / -new + taps / old, old, new).to(waveform.dtype)
        piece = padded[..., start : start + (blocks - 1) * old + length]
        parts.append(F.conv1d(piece, filters, stride=old))
    resampled = torch.cat(parts, dim=1).transpose(1, 2).reshape(*waveform.shape[:-1], -1)
    return resampled[..., : -(-waveform.shape[-1] * new // old)]


def _interpolation_filters(seconds: Tensor, old: int, new: int) -> Tensor:
    """Weights of inputs that lie ``seconds`` from an output, where a second has ``old`` inputs and ``new`` outputs."""
    cutoff = 0.99 * min(old, new)
    crossings = (seconds * cutoff).clamp(-6, 6)
    window = (crossings * math.pi / 12).cos().square()
    angle = crossings * math.pi
    return torch.where(angle == 0, 1.0, angle.sin() / angle) * (window * (cutoff / old))


def _mel(
    waveform: Tensor, n_fft: int, hop_length: int, n_mels: int, power: float, sample_rate: int = SAMPLE_RATE
) -> Tensor:
    filters = _mel_filters(n_fft, n_mels, sample_rate).to(waveform.device).T
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    padded = F.pad(waveform[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    mels = []
    # A spectrum is ten times as large as its bands: it is computed for some frames at a time.
    for first in range(0, 1 + waveform.shape[-1] // hop_length, SPECTRUM_FRAMES):
        part = padded[:, first * hop_length : (first + SPECTRUM_FRAMES - 1) * hop_length + n_fft]
        spectrum = torch.stft(part, n_fft, hop_length=hop_length, window=window, center=False, return_complex=True)
        mels.append(filters @ spectrum.abs().pow(power))
    return torch.cat(mels, dim=-1)


@lru_cache(maxsize=4)
def _mel_filters(n_fft: int, n_mels: int, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """HTK-scale triangular filters from 0 Hz to half the rate, not normalised, ``[F, M]``."""
    nyquist = sample_rate / 2
    highest = 2595 * math.log10(1 + nyquist / 700)
    frequencies = torch.linspace(0, nyquist, n_fft // 2 + 1, dtype=torch.float32, device="cpu")[:, None]
    mels = torch.linspace(0, highest, n_mels + 2, dtype=torch.float32, device="cpu")
    corners = 700 * (10 ** (mels / 2595) - 1)
    rise, fall = (corners.diff()[part] for part in (slice(None, -1), slice(1, None)))
    rising, falling = (frequencies - corners[:-2]) / rise, (corners[2:] - frequencies) / fall
    return rising.minimum(falling).clamp(min=0)
