"""What can be measured in a waveform: spectra, tones, strokes, rhythm. No labels here; those are in judges.py.

Waveforms are float32 ``[samples]``, mono, 16 kHz. Spectrograms are ``[T, F]``, 100 frames per second; the bins of a
frame add up to the frame's mean square, so that sums of bins are powers and compare with levels in dBFS.
"""

from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d, percentile_filter, uniform_filter1d
from scipy.signal import find_peaks

from dasheng_core.duration import SAMPLE_RATE

LEVEL_HOP = SAMPLE_RATE // 100
FRAMES_A_SECOND = SAMPLE_RATE / LEVEL_HOP
# 64 ms: tells 100 Hz lines apart, and is shorter than a fast note.
LEVEL_WINDOW = 1024
# 16 ms: as sharp in time as the audio tokenizer can be.
SHORT_WINDOW = 256
TINY = 1e-12
# A peak is a tone when it stands this far above the spectrum around it, dB; white noise rarely reaches it.
TONE_PROMINENCE = 15.0
# What is further below the loudest moment than this, dB, is not what the clip is about.
FOREGROUND = 25.0


def level_in_db(power):
    return 10 * np.log10(np.maximum(power, TINY))


def spectrogram(waveform: np.ndarray, window: int, hop: int) -> np.ndarray:
    """``[samples]`` -> ``[T, window // 2 + 1]``; frame t is centred on sample ``t * hop``."""
    padded = np.pad(waveform.astype(np.float64), window // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    taper = np.hanning(window + 1)[:-1]
    return 2 * np.abs(np.fft.rfft(frames * taper)) ** 2 / (window * np.sum(taper**2))


class Sound:
    """One waveform and its measures, each computed when first asked for."""

    def __init__(self, waveform: np.ndarray):
        self.waveform = np.asarray(waveform, dtype=np.float32)
        self.seconds = len(self.waveform) / SAMPLE_RATE
        self.hz = np.fft.rfftfreq(LEVEL_WINDOW, 1 / SAMPLE_RATE)

    @cached_property
    def power(self) -> np.ndarray:
        """``[T, F]``."""
        return spectrogram(self.waveform, LEVEL_WINDOW, LEVEL_HOP)

    @cached_property
    def floor(self) -> np.ndarray:
        """The noise between the tones, ``[T, F]``: a low percentile over 400 Hz of each frame.

        For noise alone it is 0.36 of the mean, because bins of noise are exponentially distributed.
        """
        return percentile_filter(self.power, 30, size=(1, 27))

    @cached_property
    def steady_noise(self) -> np.ndarray:
        """Mean power of the noise that lasts through the clip, ``[F]``: the quieter moments' floor, in the mean."""
        return np.percentile(self.floor, 20, axis=0) / 0.36 * 1.1

    @cached_property
    def clean(self) -> np.ndarray:
        """Power less three times the noise that lasts through the clip, ``[T, F]``: tones and events."""
        clean = np.maximum(self.power - 3 * self.steady_noise, 0)
        clean[:, self.hz < 50] = 0
        return clean

    @cached_property
    def foreground(self) -> np.ndarray:
        """Frames that belong to the louder moments of ``clean``, ``[T]`` bool."""
        level = self.clean.sum(1)
        return level > max(level.max() * 10 ** (-FOREGROUND / 10), TINY)

    @cached_property
    def tones(self) -> np.ndarray:
        """Power at spectral peaks that are tones, 0 elsewhere, ``[T, F]``; a peak carries its lobe of five bins."""
        lobe = sum(np.roll(self.power, shift, axis=1) for shift in range(-2, 3))
        is_peak = self.power >= maximum_filter1d(self.power, 5, axis=1)
        is_tone = is_peak & (level_in_db(self.power) > level_in_db(self.floor) + TONE_PROMINENCE)
        is_tone[:, self.hz < 70] = False
        loud = self.power > self.power.max() * 10 ** (-4.5)
        # A tone lasts: there is a peak near it 30 ms before or after.
        near = maximum_filter1d(is_tone, 7, axis=1)
        lasting = is_tone & (np.roll(near, 3, axis=0) | np.roll(near, -3, axis=0))
        return np.where(lasting & loud, lobe, 0)

    @cached_property
    def loudest_tone(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each frame: the loudest tone's frequency in Hz, NaN where there is none, and its share of ``clean``."""
        frames, best = np.arange(len(self.tones)), self.tones.argmax(1)
        power = self.tones[frames, best]
        heard = (power > 0) & self.foreground
        share = np.minimum(power / np.maximum(self.clean.sum(1), TINY), 1)
        return np.where(heard, parabola(self.power, best) * self.hz[1], np.nan), np.where(heard, share, 0)

    @cached_property
    def glide(self) -> tuple[np.ndarray, np.ndarray]:
        """As ``loudest_tone``, but for a tone on the move: 32 ms windows, and a share that holds what it sweeps over."""
        power = spectrogram(self.waveform, LEVEL_WINDOW // 2, LEVEL_HOP)
        noise = np.percentile(percentile_filter(power, 30, size=(1, 41)), 20, axis=0) / 0.36
        clean = np.maximum(power - 3 * noise, 0)
        clean[:, :3] = 0
        best = clean.argmax(1)
        near = uniform_filter1d(clean, 11, axis=1)[np.arange(len(clean)), best] * 11
        heard = clean.sum(1) > max(clean.sum(1).max() * 10 ** (-FOREGROUND / 10), TINY)
        share = np.where(heard, near / np.maximum(clean.sum(1), TINY), 0)
        return np.where(heard, parabola(power, best) * SAMPLE_RATE / (LEVEL_WINDOW // 2), np.nan), share

    @cached_property
    def lowest_tone(self) -> np.ndarray:
        """Of each frame: the lowest tone within 20 dB of the loudest, Hz ``[T]``, NaN where there is none."""
        strong = self.tones > 0.01 * self.tones.max(1, keepdims=True)
        lowest = np.where(strong, self.hz, np.inf).min(1)
        return np.where(np.isfinite(lowest) & self.foreground, lowest, np.nan)

    @cached_property
    def short_power(self) -> np.ndarray:
        """``[4 T, 129]``: 400 frames per second of 16 ms."""
        return spectrogram(self.waveform, SHORT_WINDOW, LEVEL_HOP // 4)

    @cached_property
    def novelty(self) -> np.ndarray:
        """Onset strength, 100 a second: how much louder the bands get within 20 ms, in dB above the noise floor."""
        bands = np.add.reduceat(self.short_power[:, 2:], np.arange(0, 120, 6), axis=1)
        noise = np.median(bands, axis=0) + bands.max() * 10 ** (-3.5)
        level = gaussian_filter1d(level_in_db(bands + noise), 2, axis=0)
        rise = np.maximum(level[8:] - level[:-8], 0).mean(1)
        return np.pad(rise, 4)[::4][: len(self.power)]

    def strokes(self, apart: float = 0.12, share: float = 0.4) -> np.ndarray:
        """Seconds at which something starts: peaks of the novelty, at least ``apart`` seconds from each other."""
        least = max(share * self.novelty.max(), 1.0)
        found, _ = find_peaks(np.pad(self.novelty, 1), height=least, distance=max(1, round(apart * 100)))
        return (found - 1) / FRAMES_A_SECOND

    def periodicity(self, shortest: float, longest: float) -> tuple[float, float]:
        """The novelty's best period between two, seconds, and its strength: 1 for a perfectly regular rhythm."""
        novelty = self.novelty - self.novelty.mean()
        novelty = gaussian_filter1d(novelty, 1.5)
        full = np.correlate(novelty, novelty, "full")[len(novelty) - 1 :]
        # Longer lags overlap less; without this every rhythm would look faster than it is.
        full = full / np.maximum(len(novelty) - np.arange(len(novelty)), 1)
        full = full / max(full[0], TINY)
        peaks, _ = find_peaks(full)
        peaks = peaks[(peaks >= shortest * 100) & (peaks <= longest * 100)]
        if not len(peaks):
            return 0.0, 0.0
        best = peaks[full[peaks].argmax()]
        return best / 100, float(full[best])

    @cached_property
    def pulse(self) -> tuple[float, float]:
        """Rate in Hz and depth of the loudness's fast beating between 6 and 45 Hz; depth is its share of the mean."""
        level = np.sqrt(self.short_power[:, 1:].sum(1))
        active = level > 0.1 * level.max()
        if active.sum() < 80:
            return 0.0, 0.0
        first, last = np.flatnonzero(active)[[0, -1]]
        level = level[first : last + 1]
        level = level / np.maximum(gaussian_filter1d(level, 60), TINY) - 1
        spectrum = np.abs(np.fft.rfft(level * np.hanning(len(level)))) * 4 / len(level)
        hz = np.fft.rfftfreq(len(level), 1 / 400)
        wanted = (hz >= 6) & (hz <= 45)
        best = np.where(wanted, spectrum, 0).argmax()
        return float(hz[best]), float(spectrum[best])

    def ripple(self, low: float, high: float) -> np.ndarray:
        """Of each frame: how deeply its spectrum ripples at the spacing of a fundamental between two, Hz; dB, ``[T]``.

        The cepstrum (Noll, 1967): many harmonics of one pitch count, and a few loud tones beside them hardly do.
        """
        inside = slice(4, 4000 * LEVEL_WINDOW // SAMPLE_RATE)
        level = level_in_db(self.power[:, inside] + self.steady_noise[inside] + self.power.max(initial=0) * 1e-6)
        taper = np.hanning(level.shape[1] + 1)[:-1]
        level = level - level.mean(1, keepdims=True)
        size = 2048
        depth = np.abs(np.fft.rfft(level * taper, size)) / taper.sum()
        spacing = size * self.hz[1] / np.maximum(np.arange(depth.shape[1]), TINY)
        return depth[:, (spacing >= low) & (spacing <= high)].max(1)

    @cached_property
    def bands(self) -> np.ndarray:
        """Noise power in eight bands of ``BAND_EDGES``, ``[T, 8]``; the lower quartile of each band's bins ignores tones."""
        columns = [
            np.percentile(self.power[:, (self.hz >= low) & (self.hz < high)], 25, axis=1) / 0.29 * (high - low)
            for low, high in zip(BAND_EDGES[:-1], BAND_EDGES[1:], strict=True)
        ]
        return np.stack(columns, 1) * LEVEL_WINDOW / SAMPLE_RATE


BAND_EDGES = (60, 150, 300, 600, 1200, 2400, 4000, 6000, 7600)


def parabola(power: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Bins ``best`` ``[T]`` of ``power`` ``[T, F]``, refined by the parabola through the peak and its neighbours."""
    inner = np.clip(best, 1, power.shape[1] - 2)
    left, middle, right = (level_in_db(power[np.arange(len(power)), inner + shift]) for shift in (-1, 0, 1))
    curve = left - 2 * middle + right
    return inner + np.clip(np.where(curve < 0, 0.5 * (left - right) / np.minimum(curve, -TINY), 0), -0.5, 0.5)


def smooth(values: np.ndarray, seconds: float) -> np.ndarray:
    """Moving mean over ``seconds`` of ``[T, ...]`` at 100 frames per second."""
    return uniform_filter1d(values, max(1, round(seconds * FRAMES_A_SECOND)), axis=0)


def level(waveform: np.ndarray, seconds: float = 0.25) -> float:
    """Mean square of the loudest moment, dBFS."""
    if not len(waveform):
        return -np.inf
    square = np.asarray(waveform, np.float64) ** 2
    window = min(len(square), round(seconds * SAMPLE_RATE))
    total = np.concatenate([[0], np.cumsum(square)])
    return float(level_in_db((total[window:] - total[:-window]).max() / window))


def notes(hz: np.ndarray) -> list[int]:
    """Semitones at which a track rests for 50 ms or more, in their order."""
    semitones = np.round(12 * np.log2(np.where(np.isfinite(hz), hz, 1)))
    found, run = [], 1
    for before, now in zip(semitones[:-1], semitones[1:], strict=True):
        run = run + 1 if now == before and now > 0 else 1
        if run == 5 and (not found or found[-1] != now):
            found.append(int(now))
    return found


def syllables(envelope: np.ndarray) -> float:
    """How deeply a power ``[T]`` beats 2 to 9 times per second: the deviation of its amplitude over the mean."""
    # A running mean of zeros can end a rounding below zero.
    amplitude = np.sqrt(np.maximum(smooth(envelope, 0.05), 0))
    beating = smooth(amplitude, 0.05) - smooth(amplitude, 0.45)
    return float(beating.std() / max(amplitude.mean(), 1e-9))
