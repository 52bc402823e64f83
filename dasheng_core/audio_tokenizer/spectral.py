"""Short-time spectra: the inverse transform of the decoder and the two mel front ends of the encoder.

Dimensions: B batch, L samples, F frequency bins, T frames, M mel bands.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import SAMPLE_RATE

# One minute.
SPECTRUM_FRAMES = 6000


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
    window = torch.hann_window(n_fft, device=phase.device)
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
    import torchaudio.functional as AF

    return AF.amplitude_to_DB(
        _mel(waveform, n_fft=512, hop_length=hop_length, n_mels=n_mels, power=2.0),
        multiplier=10.0,
        amin=1e-10,
        db_multiplier=0.0,
        top_db=120.0,
    )


def acoustic_mel(waveform: Tensor, n_mels: int, hop_length: int) -> Tensor:
    """Natural log of a magnitude mel spectrogram, ``[B, L]`` -> ``[B, M, T]``."""
    return _mel(waveform, n_fft=1024, hop_length=hop_length, n_mels=n_mels, power=1.0).clamp(min=1e-7).log()


def resample(waveform: Tensor, sample_rate: int) -> Tensor:
    """``[..., L]`` at ``sample_rate`` Hz -> 16 kHz, band-limited (torchaudio's windowed sinc)."""
    if sample_rate == SAMPLE_RATE:
        return waveform
    import torchaudio.functional as AF

    return AF.resample(waveform, sample_rate, SAMPLE_RATE)


def _mel(waveform: Tensor, n_fft: int, hop_length: int, n_mels: int, power: float) -> Tensor:
    filters = _mel_filters(n_fft, n_mels).to(waveform.device).T
    window = torch.hann_window(n_fft, device=waveform.device)
    padded = F.pad(waveform[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    mels = []
    # A spectrum is ten times as large as its bands: it is made for some frames at a time.
    for first in range(0, 1 + waveform.shape[-1] // hop_length, SPECTRUM_FRAMES):
        part = padded[:, first * hop_length : (first + SPECTRUM_FRAMES - 1) * hop_length + n_fft]
        spectrum = torch.stft(part, n_fft, hop_length=hop_length, window=window, center=False, return_complex=True)
        mels.append(filters @ spectrum.abs().pow(power))
    return torch.cat(mels, dim=-1)


@lru_cache(maxsize=4)
def _mel_filters(n_fft: int, n_mels: int) -> Tensor:
    """HTK-scale triangular filters 0 to 8000 Hz, not normalised, ``[F, M]``."""
    import torchaudio.functional as AF

    return AF.melscale_fbanks(n_fft // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE, norm=None, mel_scale="htk")
