"""Loudness and peaks against the signals of EBU Tech 3341 and 3342, and the other measures against what was put in."""

import math
import sys

import pytest
import torch

from dasheng_core.delivery.measures import decibels, loudness, measure, swing, true_peak

RATES = (16000, 44100, 48000)


def tone(rate, *parts, hertz=1000.0):
    """Stereo: a sine of so many dBFS for so many seconds, one part after the other."""
    levels = torch.cat([torch.full((round(seconds * rate),), 10 ** (level / 20)) for level, seconds in parts])
    sine = torch.sin(2 * math.pi * hertz / rate * torch.arange(len(levels), dtype=torch.float64))
    return (levels * sine).float().expand(2, -1)


# EBU Tech 3341, table 1, cases 1 to 5: each within 0.1 LU.
CASES = {
    "1": ([(-23, 20)], -23.0),
    "2": ([(-33, 20)], -33.0),
    "3": ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
    "4": ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
    "5": ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("case", CASES)
def test_loudness_of_the_ebu_signals(case, rate):
    parts, expected = CASES[case]
    assert abs(loudness(tone(rate, *parts), rate) - expected) <= 0.1


def fourier_peak(clip):
    """The largest value of a clip ``[1, L]`` between silences, 32 times as fine, by one Fourier transform of all of it."""
    clip = torch.nn.functional.pad(clip.double(), (4096, 4096 + clip.shape[-1] % 2))
    spectrum = torch.fft.rfft(clip)
    spectrum[..., -1] /= 2
    return decibels(32 * torch.fft.irfft(spectrum, n=32 * clip.shape[-1]).abs().max().item())


def peaky(kind, rate, seed):
    """Half a second whose highest value lies between samples."""
    generator, length = torch.Generator().manual_seed(seed), rate // 2
    noise, places = torch.randn(length, generator=generator), torch.arange(length, dtype=torch.float64)
    if kind == "noise":
        clip = 0.3 * noise
    elif kind == "rain":
        clip = noise * torch.rand(length, generator=generator).pow(20)
    elif kind == "clicks":
        clip = torch.zeros(length)
        hits = torch.randint(length, (30,), generator=generator)
        clip[hits], clip[(hits + 1) % length] = torch.rand(2, 30, generator=generator)
    else:
        # From 80 % to 99 % of half the rate; it fades, for a cut sine has peaks of its own.
        share, phase = torch.rand(2, generator=generator).tolist()
        ramp = (places / (0.1 * length)).clamp(max=1)
        clip = (math.pi * (0.8 + 0.19 * share) * places + 6 * phase).sin() * ramp * ramp.flip(0)
    return clip.float()[None]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", ["noise", "rain", "clicks", "near half the rate"])
def test_true_peak_is_that_of_a_fourier_interpolation(kind, rate):
    """40 clips and more, each within 0.1 dB; four times oversampled by a short filter they were up to 1.03 dB low."""
    for seed in range(4):
        clip = peaky(kind, rate, seed)
        assert abs(true_peak(clip, rate) - fourier_peak(clip)) <= 0.1
    # It is no question of level, nor of channels.
    for factor in (1e-30, 1e30):
        assert abs(true_peak(clip * factor, rate) - decibels(factor) - true_peak(clip, rate)) < 0.01
    assert true_peak(torch.cat([0.1 * clip, clip]), rate) == pytest.approx(true_peak(clip, rate), abs=1e-4)


@pytest.mark.parametrize("rate", [1000, 2000, 3300, 3364, 4000, 7999, 8000])
def test_a_low_rate_measures_as_the_same_sound_at_48_khz(rate):
    """The filters of BS.1770 have no place there: at 2000 Hz they gave nan, at 3300 Hz +2370 LUFS."""
    low, high = (tone(r, (-23, 2), hertz=rate * 0.15) for r in (rate, 48000))
    assert abs(loudness(low, rate) - loudness(high, 48000)) <= 0.1
    generator = torch.Generator().manual_seed(rate)
    assert -30 < loudness(0.1 * torch.randn(1, 2 * rate, generator=generator), rate) < -15


@pytest.mark.parametrize("rate", [1, 2, 7, 19, 20, 50, 76, 77, 150, 1000, 3363, 768000])
def test_every_rate_has_measures(rate):
    for samples in (1, 2, 40):
        found = measure(0.1 * torch.ones(1, samples) * (-1.0) ** torch.arange(samples), rate)
        assert not any(math.isnan(value) for value in vars(found).values() if value is not None)
    for wrong in (0, -1, math.nan, None, 10**9):
        with pytest.raises(ValueError, match="The sample rate of the audio is "):
            measure(torch.ones(1, 100), wrong)


@pytest.mark.parametrize("value", [0.5, -1.0])
def test_a_constant_has_an_offset_and_no_swing(value):
    found = measure(torch.full((2, 16000), value), 16000)
    assert found.offset == abs(value) and found.swing == -math.inf and found.silence == 0
    # A drift that takes ten seconds is no sound either; a step within a window and one between two are.
    assert swing(torch.linspace(-0.5, 0.5, 160000)[None], 16000) < -45
    for place in (800, 900):
        step = (torch.arange(16000) >= place).float()[None]
        assert swing(step, 16000) == 0
    assert measure(tone(16000, (-6, 1)), 16000).offset < 1e-3
    assert swing(tone(16000, (-26, 1), hertz=20.0), 16000) == pytest.approx(-20, abs=0.1)


def test_six_channels_are_measured_without_a_loudness():
    found = measure(tone(16000, (-20, 1))[:1].expand(6, -1), 16000)
    assert found.loudness is None and found.peak == pytest.approx(-20, abs=0.1)
    with pytest.raises(ValueError, match="6 channels, expected 1 or 2"):
        loudness(torch.zeros(6, 16000), 16000)


def test_a_short_clip_is_said_to_be_too_short():
    clip = tone(16000, (-20, 0.399))
    with pytest.raises(ValueError, match=r"0.40 s long, too short for a loudness: expected at least 0.4 s"):
        loudness(clip, 16000)
    assert measure(clip, 16000).loudness is None
    assert loudness(tone(16000, (-20, 0.4)), 16000) < 0


def test_measures_of_a_known_clip():
    clip = torch.cat([torch.zeros(8000), tone(16000, (-6, 0.5))[0]])
    clip[-3:] = torch.tensor([1.0, -1.5, 32767 / 32768])
    found = measure(clip, 16000, words=3)
    assert found.seconds == 1 and found.words_per_second == 3 and found.clipped == 3
    assert found.silence == pytest.approx(0.5, abs=0.011)
    assert found.peak == pytest.approx(20 * math.log10(1.5), abs=1e-6) and found.true_peak >= found.peak
    assert found.crest == pytest.approx(found.peak - 20 * math.log10(clip.square().mean().sqrt()), abs=1e-4)
    found = measure(torch.zeros(1, 16000), 16000)
    assert found.silence == 1 and found.crest == 0 and found.clipped == 0 and found.words_per_second is None
    assert found.peak == found.true_peak == found.loudness == -math.inf
    # Below the absolute gate.
    assert loudness(tone(16000, (-80, 2)), 16000) == -math.inf


def test_without_scipy_the_extra_is_named(monkeypatch):
    for name in ("scipy", "scipy.signal"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"dasheng-audiogen\[finish\]"):
        loudness(torch.zeros(1, 16000), 16000)
