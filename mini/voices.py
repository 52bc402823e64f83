"""Spoken words: espeak-ng's, said again on one pitch of the world's grid by linear prediction.

espeak-ng is needed where training clips are made, never where the trained model runs.
"""

import itertools
import math
import shutil
import subprocess

import numpy as np
from scipy.linalg import solve_toeplitz
from scipy.signal import butter, lfilter, resample_poly

from dasheng_core.duration import SAMPLE_RATE
from mini.vocabulary import VOICE_PITCH

# espeak-ng's voice variants and its -p, chosen so that the fundamental falls into VOICE_PITCH.
SPEAKERS = {
    "low": (("en-us+m3", 58),),
    "high": (("en-us+f3", 62),),
}
# espeak-ng's -s, words per minute.
SPEEDS = (165,)
# No word lasts longer, in seconds; a longer take is left out.
WORD_SECONDS = 0.6
ESPEAK_RATE = 22050
# Hz of the voices that say the words again: a robot's, on the grid like every other tone.
PITCHES = {"low": (100,), "high": (200,)}

_takes: dict[tuple[str, str], list[np.ndarray]] = {}


class NoEspeak(RuntimeError):
    """espeak-ng is not installed."""


def takes(word: str, voice: str) -> list[np.ndarray]:
    """Every take of a word by a voice: float32 ``[samples]`` at 16 kHz, peak 1, without silence around it."""
    if (word, voice) not in _takes:
        said = (say(word, *speaker, speed) for speaker, speed in itertools.product(SPEAKERS[voice], SPEEDS))
        kept = [on_pitch(wave, pitch) for wave in said if fits(wave, voice) for pitch in PITCHES[voice]]
        if not kept:
            raise RuntimeError(
                f"No take of {word!r} is within {WORD_SECONDS} s and {VOICE_PITCH[voice]} Hz: change SPEAKERS[{voice!r}]."
            )
        _takes[word, voice] = kept
    return _takes[word, voice]


def say(word: str, variant: str, pitch: int, speed: int) -> np.ndarray:
    """One word by espeak-ng: float32 ``[samples]`` at 16 kHz, trimmed, peak 1."""
    command = shutil.which("espeak-ng")
    if command is None:
        raise NoEspeak("espeak-ng was not found, and spoken words need it: apt-get install espeak-ng (Debian, Ubuntu).")
    told = [command, "-v", variant, "-p", str(pitch), "-s", str(speed), "--stdout", word]
    header = 44
    pcm = subprocess.run(told, capture_output=True, check=True).stdout[header:]
    wave = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32)
    wave = resample_poly(wave, SAMPLE_RATE // 50, ESPEAK_RATE // 50)
    loud = np.flatnonzero(np.abs(wave) > 0.02 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1] + 1]
    fade = np.linspace(0, 1, SAMPLE_RATE // 200, dtype=np.float32)
    wave[: len(fade)] *= fade
    wave[-len(fade) :] *= fade[::-1]
    return (wave / np.abs(wave).max()).astype(np.float32)


def on_pitch(wave: np.ndarray, pitch: int, order: int = 18) -> np.ndarray:
    """A word said again by pulses of one pitch and by noise, through its own resonances; starts with a pulse, peak 1.

    Linear prediction every 10 ms from 25 ms (Markel and Gray, Linear Prediction of Speech, 1976).
    """
    hop, size = SAMPLE_RATE // 100, SAMPLE_RATE // 40
    n = math.ceil(len(wave) / hop) * hop
    wave = np.pad(wave.astype(np.float64), (size // 2, n - len(wave) + size))
    flat, deep = lfilter([1, -0.95], [1], wave), lfilter(*butter(2, 900 / (SAMPLE_RATE / 2)), wave)
    window = np.hanning(size)
    overlap = autocorrelation(window)
    period = SAMPLE_RATE // pitch
    pulses = np.zeros(n)
    pulses[::period] = math.sqrt(period)
    hiss = np.random.default_rng(0).standard_normal(n)
    said, state = np.zeros(n), np.zeros(order)
    for at in range(0, n, hop):
        piece = slice(at + hop // 2, at + hop // 2 + size)
        r = autocorrelation(flat[piece] * window)[: order + 1]
        if r[0] < 1e-9:
            state[:] = 0
            continue
        r[0] *= 1.0001
        predictor = solve_toeplitz(r[:-1], r[1:])
        gain = math.sqrt(max(r[0] - predictor @ r[1:], 0) / overlap[0])
        similar = autocorrelation(deep[piece] * window)
        # Between 70 and 400 Hz; fewer products overlap at longer lags.
        lags = slice(SAMPLE_RATE // 400, SAMPLE_RATE // 70)
        regular = (similar[lags] / overlap[lags] * overlap[0]).max() > 0.45 * similar[0]
        voiced = regular and similar[0] > 0.15 * autocorrelation(wave[piece] * window)[0]
        source = (pulses if voiced else hiss)[at : at + hop]
        said[at : at + hop], state = lfilter([gain], np.concatenate([[1], -predictor]), source, zi=state)
    # Back from the flat spectrum, less what is too low to hear.
    said = lfilter([1, -1], [1, -0.98], lfilter([1], [1, -0.95], said))
    return (said / np.abs(said).max()).astype(np.float32)


def autocorrelation(wave: np.ndarray) -> np.ndarray:
    """``[n]`` -> ``[n]``, lags 0 to n - 1."""
    return np.correlate(wave, wave, "full")[len(wave) - 1 :]


def fits(wave: np.ndarray, voice: str) -> bool:
    """Whether a take is short enough and its voice is as low or as high as promised."""
    low, high = VOICE_PITCH[voice]
    return len(wave) <= WORD_SECONDS * SAMPLE_RATE and low <= median_pitch(wave) <= high


def median_pitch(wave: np.ndarray) -> float:
    """The median fundamental of a word's voiced parts in Hz, by autocorrelation; 0 without any.

    Args:
        wave: ``[samples]`` at 16 kHz.
    """
    size, step = SAMPLE_RATE // 20, SAMPLE_RATE // 100
    shortest, longest = SAMPLE_RATE // 400, SAMPLE_RATE // 60
    # Fricatives have no fundamental: look below 900 Hz only.
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE) > 900] = 0
    voiced = np.fft.irfft(spectrum, len(wave))
    loudest = max(np.square(voiced[at : at + size]).mean() for at in range(0, len(voiced), step))
    pitches = []
    for at in range(0, len(voiced) - size, step):
        piece = voiced[at : at + size]
        if np.square(piece).mean() < 0.2 * loudest:
            continue
        similar = np.fft.irfft(np.abs(np.fft.rfft(piece, 2 * size)) ** 2)[:longest]
        # Fewer products overlap at longer lags.
        similar = similar / (1 - np.arange(longest) / size) / similar[0]
        best = similar[shortest:].max()
        if best > 0.6:
            # The first peak that is nearly the best: later ones are multiples of the period.
            lag = shortest + int(np.argmax(similar[shortest:] > 0.9 * best))
            while lag + 1 < longest and similar[lag + 1] > similar[lag]:
                lag += 1
            pitches.append(SAMPLE_RATE / lag)
    return float(np.median(pitches)) if pitches else 0.0
