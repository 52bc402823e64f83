"""Spoken words: two voices of espeak-ng, kept in memory and, if wanted, in one file on disk.

espeak-ng is needed where training clips are made, never where the trained model runs.
"""

import hashlib
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from tools.mini.vocabulary import DIGITS, OTHER_WORDS, SAMPLE_RATE, VOICE_PITCH

WORDS = DIGITS + OTHER_WORDS

# espeak-ng's voice variants and its -p, chosen so that the fundamental falls into VOICE_PITCH.
SPEAKERS = {
    "low": (("en-us+m3", 58), ("en-us+m7", 55), ("en-us+m2", 68)),
    "high": (("en-us+f2", 72), ("en-us+f3", 62), ("en-us+f5", 68)),
}
# espeak-ng's -s, words a minute.
SPEEDS = (150, 175)
# No word lasts longer, in seconds; a longer take is left out.
WORD_SECONDS = 0.6
ESPEAK_RATE = 22050

_takes: dict[tuple[str, str], list[np.ndarray]] = {}


class NoEspeak(RuntimeError):
    """espeak-ng is not installed."""


def takes(word: str, voice: str) -> list[np.ndarray]:
    """Every take of a word by a voice: float32 ``[samples]`` at 16 kHz, peak 1, without silence around it."""
    if (word, voice) not in _takes:
        said = (say(word, *speaker, speed) for speaker, speed in itertools.product(SPEAKERS[voice], SPEEDS))
        kept = [wave for wave in said if fits(wave, voice)]
        if not kept:
            raise RuntimeError(
                f"No take of {word!r} is within {WORD_SECONDS} s and {VOICE_PITCH[voice]} Hz: change SPEAKERS[{voice!r}]."
            )
        _takes[word, voice] = kept
    return _takes[word, voice]


def open_cache(folder: str | Path) -> Path:
    """Read all words of both voices from a file in ``folder``, which the first call writes; returns its path."""
    settings = repr((WORDS, SPEAKERS, SPEEDS, WORD_SECONDS, VOICE_PITCH))
    path = Path(folder) / f"words-{hashlib.sha256(settings.encode()).hexdigest()[:8]}.npz"
    if not path.exists():
        waves = {
            f"{voice}/{word}/{number}": np.round(wave * 32767).astype(np.int16)
            for voice, word in itertools.product(SPEAKERS, WORDS)
            for number, wave in enumerate(takes(word, voice))
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # Workers may get here together: each writes a file of its own, and the last rename wins with equal content.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **waves)
        os.replace(file.name, path)
    _takes.clear()
    with np.load(path) as waves:
        for name in waves.files:
            voice, word, _ = name.split("/")
            _takes.setdefault((word, voice), []).append(waves[name].astype(np.float32) / 32767)
    return path


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
