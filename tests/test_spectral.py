"""Filters, decibels and changes of rate, against torchaudio where it loads and by hand."""

import math

import pytest
import torch

from dasheng_core.audio_tokenizer import spectral

ORDINARY = (8000, 16000, 22050, 44100, 48000, 384000)
ODD = (1000, 15999, 44099, 400_000)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def torchaudio():
    return pytest.importorskip("torchaudio.functional", reason="torchaudio does not load", exc_type=Exception)


@pytest.mark.parametrize("rate", ORDINARY)
def test_ordinary_rates_are_changed_as_torchaudio_does(torchaudio, rate):
    waveform = noise(2, 3, rate // 3)
    assert torch.equal(spectral.resample(waveform, rate), torchaudio.resample(waveform, rate, 16000))


@pytest.mark.parametrize("rate", [8005, 44110])
def test_odd_rates_are_changed_as_torchaudio_does_in_float64(torchaudio, rate):
    """In float32 it is off by 1e-3 there: thousands of phases lie too close for it."""
    waveform = noise(2, 2000)
    expected = torchaudio.resample(waveform.double(), rate, 16000).float()
    torch.testing.assert_close(spectral.resample(waveform, rate), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", [*ORDINARY, *ODD])
def test_a_tone_stays_that_tone_at_any_rate(rate):
    """Far from the ends, and to what 6 zero crossings reach."""
    seconds, tone = 0.1, 0.2 * min(rate, 16000)
    length = int(rate * seconds) + 1
    waveform = torch.sin(2 * math.pi * tone * torch.arange(length, dtype=torch.float64) / rate).float()
    found = spectral.resample(waveform, rate)
    assert found.shape == (math.ceil(16000 * length / rate),) and found.dtype == torch.float32
    inside = slice(found.shape[-1] // 4, -found.shape[-1] // 4)
    expected = torch.sin(2 * math.pi * tone * torch.arange(found.shape[-1], dtype=torch.float64) / 16000).float()
    assert (found - expected)[..., inside].abs().max() < 0.01


@pytest.mark.parametrize("n_fft, n_mels", [(512, 64), (512, 128), (1024, 80), (1024, 100)])
def test_mel_filters_are_torchaudios(torchaudio, n_fft, n_mels):
    expected = torchaudio.melscale_fbanks(n_fft // 2 + 1, 0.0, 8000.0, n_mels, 16000, norm=None, mel_scale="htk")
    torch.testing.assert_close(spectral._mel_filters(n_fft, n_mels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", [1.0, 1e-6])
def test_decibels_are_torchaudios(torchaudio, level):
    """Loud beyond the 120 dB floor, and below the smallest power that counts."""
    waveform = noise(2, 8000) * level
    waveform[:, :4000] = 0
    power = spectral._mel(waveform, n_fft=512, hop_length=160, n_mels=64, power=2.0)
    expected = torchaudio.amplitude_to_DB(power, multiplier=10.0, amin=1e-10, db_multiplier=0.0, top_db=120.0)
    found = spectral.semantic_mel(waveform, n_mels=64, hop_length=160)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
