"""The sounds of the synthetic world, one function a kind.

Each takes a random generator, a length in samples and its attributes, and returns float ``[samples]`` at 16 kHz of no
particular level. Tones are multiples of 50 Hz with phase 0 at sample 0, so that every 20 ms look alike to the audio
tokenizer; what is struck is struck at whole 20 ms for the same reason. Effects start early and fill most of a clip;
ambiences, drones and arpeggios are stationary: they have no beginning and no end within a clip, so that any part of
one sounds like the whole and clips can be joined.
"""

import functools
import math

import numpy as np
from scipy import fft

from dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from mini.vocabulary import KNOCK_GAP, REGISTER, SWEEP_ENDS

GRID = 50
# Samples after which any sum of tones on the grid repeats.
PERIOD = SAMPLE_RATE // GRID
HIGHEST_HARMONIC = 7800
# Hz. Few pitches, so that a small model can learn each.
BEEPS = {"low": (200, 250, 300, 350, 400), "middle": (600, 700, 800, 900, 1000), "high": (1500, 1750, 2000, 2250, 2500)}
# Latent frames from one note or beat to the next: 2.1 and 5 a second. One for each tempo, or none is learned in an hour.
NOTE_FRAMES = {"slow": 12, "fast": 5}
# Highest harmonic and how fast amplitudes fall with its number h: h ** -slope.
TIMBRES = {"soft": (3, 1.5), "bright": (16, 0.25)}
# Seconds kept free behind the last knock.
KNOCK_TAIL = 0.28
# Hz, of the pulses of an engine; clicks a second; Hz, of a murmur's syllables.
ENGINE_RATE = (8.0, 12.0)
CLICK_GAP = (0.16, 0.32)
MURMUR_RATE = (3.0, 5.0)
# Frequencies and levels of a bell's partials relative to its strike note, and how long each rings relative to the lowest.
BELL = ((0.56, 0.7, 1.0), (0.92, 0.8, 1.0), (1.19, 1.0, 0.6), (1.71, 0.9, 0.6), (2.0, 0.7, 0.6), (2.74, 0.6, 0.35))
BELL += ((3.0, 0.4, 0.35), (3.76, 0.35, 0.35), (4.07, 0.3, 0.35))


# ---- effects


def beep(rng: np.random.Generator, n: int, pitch: str) -> np.ndarray:
    """A pure tone, held to the end or repeated."""
    wave = tone(n, {int(rng.choice(BEEPS[pitch])): 1.0})
    start = samples(rng.uniform(0.0, 0.1))
    if n < samples(1.6) or rng.random() < 0.5:
        return wave * gate(n, start, n)
    on, off = samples(rng.uniform(0.4, 0.9)), samples(rng.uniform(0.12, 0.35))
    envelope = np.zeros(n)
    while start + samples(0.32) < n:
        envelope += gate(n, start, min(start + on, n))
        start += on + off
    return wave * envelope


def sweep(rng: np.random.Generator, n: int, direction: str) -> np.ndarray:
    """One exponential glide over most of the clip."""
    low, high = (rng.uniform(*ends) for ends in SWEEP_ENDS)
    first, last = (low, high) if direction == "rising" else (high, low)
    start = samples(rng.uniform(0.0, 0.1))
    length = int((n - start) * rng.uniform(0.75, 1.0))
    seconds, ratio = length / SAMPLE_RATE, last / first
    progress = np.arange(length) / length
    phase = 2 * np.pi * first * seconds / math.log(ratio) * (ratio**progress - 1)
    wave = np.zeros(n)
    wave[start : start + length] = np.sin(phase)
    return wave * gate(n, start, start + length, 0.02)


def knock(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """``count`` equal low thuds at a regular gap."""
    pitch = grid_pitch(rng, (100, 200))
    length = samples(KNOCK_TAIL)
    thud = tone(length, {pitch: 1.0, pitch + 50: 0.6, 2 * pitch + 50: 0.4}) * decay(length, rng.uniform(0.05, 0.08))
    thud += 0.4 * noise(rng, length, low=200, high=2000) * decay(length, 0.008)
    thud *= gate(length, 0, length, 0.002) * np.minimum(1, np.arange(length, 0, -1) / samples(0.06))
    shortest, longest = (step_of(seconds) for seconds in KNOCK_GAP)
    shortest += 1
    room = n // PERIOD - step_of(KNOCK_TAIL)
    first = int(rng.integers(2, 9))
    gap = 0
    if count > 1:
        first = max(0, min(first, room - (count - 1) * shortest))
        gap = int(rng.integers(shortest, min(longest, (room - first) // (count - 1)) + 1))
    return struck(n, thud, [(first + number * gap) * PERIOD for number in range(count)])


def bell(rng: np.random.Generator, n: int) -> np.ndarray:
    """Inharmonic partials that ring out; struck again in long clips."""
    strike = int(rng.choice((500, 600, 700, 800, 900, 1000)))
    rings = rng.uniform(0.45, 0.7)
    wave = np.zeros(n)
    for relative in (1.0, 0.6, 0.35):
        partials = {on_grid(strike * ratio): level for ratio, level, rung in BELL if rung == relative}
        wave += tone(n, partials) * decay(n, rings * relative)
    wave *= gate(n, 0, n, 0.003)
    first, gap = rng.integers(1, 8), rng.integers(step_of(1.8), step_of(2.6))
    last = max(1, n // PERIOD - step_of(0.8))
    return struck(n, wave, [at * PERIOD for at in range(first, max(last, first + 1), gap)])


def whistle(rng: np.random.Generator, n: int) -> np.ndarray:
    """A human whistle: nearly a sine, with vibrato and a little breath."""
    pitch, rate, depth = rng.uniform(1100, 1850), rng.uniform(5.0, 6.5), rng.uniform(0.03, 0.05)
    t = np.arange(n) / SAMPLE_RATE
    phase = 2 * np.pi * pitch * (t - depth / (2 * np.pi * rate) * (np.cos(2 * np.pi * rate * t) - 1))
    start = samples(rng.uniform(0.0, 0.1))
    envelope = gate(n, start, n, 0.08)
    if n > samples(2.5):
        # A breath between two notes.
        breath = samples(rng.uniform(0.4, 0.6) * n / SAMPLE_RATE)
        envelope = gate(n, start, breath, 0.08) + gate(n, breath + samples(0.15), n, 0.08)
    return (np.sin(phase) + 0.02 * noise(rng, n, low=800, high=4000)) * envelope


def click(rng: np.random.Generator, n: int) -> np.ndarray:
    """A regular train of equal broadband clicks."""
    length = samples(0.02)
    burst = noise(rng, length, low=300) * decay(length, 0.003)
    gap = int(rng.integers(step_of(CLICK_GAP[0]), step_of(CLICK_GAP[1]) + 1))
    return struck(n, burst, [at * PERIOD for at in range(int(rng.integers(1, 6)), n // PERIOD, gap)])


def buzz(rng: np.random.Generator, n: int) -> np.ndarray:
    """A harsh electric buzz: every harmonic up to the top, hardly falling."""
    return tone(n, harmonics(int(rng.choice((100, 150))), 100, rng.uniform(0.4, 0.6))) * gate(n, 0, n, 0.02)


def engine(rng: np.random.Generator, n: int) -> np.ndarray:
    """A dark pulse train that throbs."""
    pitch, dark = int(rng.choice((50, 100))), rng.uniform(250, 450)
    pulses = tone(n, {f: math.exp(-f / dark) for f in range(pitch, 2000, pitch)})
    rate = rng.uniform(*ENGINE_RATE)
    throb = 0.5 - 0.5 * np.cos(2 * np.pi * rate * np.arange(n) / SAMPLE_RATE)
    rumble = 0.15 * pulses.std() * noise(rng, n, low=60, high=500)
    return (pulses + rumble) * (0.12 + 0.88 * throb) * gate(n, 0, n, 0.02)


# ---- music


def arpeggio(rng: np.random.Generator, n: int, tempo: str, register: str, timbre: str) -> np.ndarray:
    """The notes of a major or minor chord, plucked upwards, over and over."""
    low, high = REGISTER[register]
    # Above 650 Hz a bright octave would have no harmonics left.
    root = grid_pitch(rng, (low, min(high, 650)))
    third = 1.25 if rng.random() < 0.5 else 1.2
    notes = sorted({on_grid(root * ratio) for ratio in (1.0, third, 1.5, 2.0)})
    period = NOTE_FRAMES[tempo] * SAMPLES_PER_FRAME
    pluck = decay(period, 0.5 * period / SAMPLE_RATE) * gate(period, 0, period, 0.006)
    waves = {note: tone(n, harmonics(note, *TIMBRES[timbre])) for note in notes}
    wave = np.zeros(n)
    for number in range(math.ceil(n / period)):
        start = number * period
        piece = slice(start, min(start + period, n))
        wave[piece] = waves[notes[number % len(notes)]][piece] * pluck[: piece.stop - start]
    return wave


def drone(rng: np.random.Generator, n: int, register: str, timbre: str) -> np.ndarray:
    """A held tone with harmonics that hardly moves."""
    wave = tone(n, harmonics(grid_pitch(rng, REGISTER[register]), *TIMBRES[timbre]))
    swell = 1 + 0.1 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * np.arange(n) / SAMPLE_RATE + rng.random()))
    return wave * swell


def beat(rng: np.random.Generator, n: int, tempo: str) -> np.ndarray:
    """A kick on every beat, with a hat on every second."""
    period = NOTE_FRAMES[tempo] * SAMPLES_PER_FRAME
    length = min(samples(0.3), period)
    t = np.arange(length) / SAMPLE_RATE
    # The drum's pitch falls from 160 to 60 Hz.
    kick = np.sin(2 * np.pi * (60 * t - 100 * 0.03 * np.expm1(-t / 0.03))) * decay(length, 0.25 * length / SAMPLE_RATE)
    kick += 0.15 * noise(rng, length, low=500, high=3000) * decay(length, 0.006)
    kick *= np.minimum(1, np.arange(length, 0, -1) / samples(0.03))
    hat = 0.35 * noise(rng, length, low=4000) * decay(length, 0.02)
    beats = list(range(0, n, period))
    return struck(n, kick, beats) + struck(n, hat, beats[1::2])


# ---- ambience


def rain(rng: np.random.Generator, n: int) -> np.ndarray:
    """High hiss with droplets."""
    wave = noise(rng, n, low=rng.uniform(1200, 2500))
    length = samples(0.02)
    for at in rng.integers(0, n - length, size=int(rng.uniform(12, 25) * n / SAMPLE_RATE)):
        drop = np.sin(2 * np.pi * rng.uniform(1500, 4000) * np.arange(length) / SAMPLE_RATE) * decay(length, 0.003)
        wave[at : at + length] += rng.uniform(1.5, 4.0) * drop
    return wave


def wind(rng: np.random.Generator, n: int) -> np.ndarray:
    """Low noise that rises from a lull to a gust, about every one and a half seconds."""
    gust = drift(rng, n, rate=rng.uniform(1.2, 1.5), first=(0, 2))
    dark, light = noise(rng, n, low=60, high=180), noise(rng, n, low=250, high=500)
    return dark * (0.25 + 0.75 * gust) + 0.6 * light * gust


def waves(rng: np.random.Generator, n: int) -> np.ndarray:
    """Surf: each swell of 1.6 to 2 s rises, brightens and sinks back, so that any two seconds hold a whole one."""
    cycles = np.arange(n) / SAMPLE_RATE / rng.uniform(1.6, 2.0) + rng.random()
    swell = np.sin(np.pi * cycles) ** 4
    return (0.06 + swell) * noise(rng, n, low=150, high=700) + 0.6 * swell**2 * noise(rng, n, low=600, high=3000)


def murmur(rng: np.random.Generator, n: int) -> np.ndarray:
    """Voices too far away to understand: noise of two formants in the rhythm of syllables."""
    rate, phase = rng.uniform(*MURMUR_RATE), rng.random()
    t = np.arange(n) / SAMPLE_RATE
    wave = np.zeros(n)
    for level, low, high in ((1.0, 300, 800), (0.5, 900, 2500)):
        syllables = 0.5 - 0.5 * np.cos(2 * np.pi * (rate * t + phase + rng.uniform(-0.1, 0.1)))
        wave += level * (0.1 + syllables * (0.6 + 0.4 * drift(rng, n, 1.0, (0, 2)))) * noise(rng, n, low, high)
    return wave


def quiet(rng: np.random.Generator, n: int) -> np.ndarray:
    """The faint dull noise of a room."""
    return noise(rng, n, low=60, high=800)


def static(rng: np.random.Generator, n: int) -> np.ndarray:
    """White noise."""
    return noise(rng, n)


# ---- what they are made of


def samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def step_of(seconds: float) -> int:
    """Seconds in whole steps of 20 ms, rounded down."""
    return int(seconds * GRID + 1e-9)


def on_grid(frequency: float) -> int:
    return GRID * max(1, round(frequency / GRID))


def grid_pitch(rng: np.random.Generator, limits: tuple[float, float]) -> int:
    """A multiple of 50 Hz within ``limits``, both included."""
    return GRID * int(rng.integers(math.ceil(limits[0] / GRID), math.floor(limits[1] / GRID) + 1))


def harmonics(fundamental: int, count: int, slope: float) -> dict[int, float]:
    """``{Hz: amplitude}`` of up to ``count`` harmonics, amplitude ``h ** -slope``."""
    return {fundamental * h: h**-slope for h in range(1, min(count, HIGHEST_HARMONIC // fundamental) + 1)}


def tone(n: int, partials: dict[int, float]) -> np.ndarray:
    """A sum of sines on the grid with phase 0 at sample 0: one period, repeated. ``[n]``"""
    frequencies = np.array(list(partials))
    t = np.arange(PERIOD) / SAMPLE_RATE
    return np.resize(np.array(list(partials.values())) @ np.sin(2 * np.pi * frequencies[:, None] * t), n)


def gate(n: int, start: int, stop: int, fade: float = 0.01) -> np.ndarray:
    """1 from ``start`` to ``stop`` with ramps of ``fade`` seconds inside, 0 elsewhere. ``[n]``"""
    wave = np.zeros(n)
    wave[start:stop] = 1
    length = min(samples(fade), (stop - start) // 2)
    ramp = np.sin(np.linspace(0, np.pi / 2, length, endpoint=False)) ** 2
    wave[start : start + length] = ramp
    wave[stop - length : stop] = ramp[::-1]
    return wave


def decay(n: int, seconds: float) -> np.ndarray:
    """An exponential that falls to 1/e in ``seconds``. ``[n]``"""
    return np.exp(np.arange(n, dtype=np.float32) * np.float32(-1 / (seconds * SAMPLE_RATE)))


def struck(n: int, wave: np.ndarray, starts: list[int]) -> np.ndarray:
    """``wave`` added at each of ``starts``, cut at the end of the clip. ``[n]``"""
    mixed = np.zeros(n)
    for start in starts:
        mixed[start : start + len(wave)] += wave[: max(0, n - start)]
    return mixed


def drift(rng: np.random.Generator, n: int, rate: float, first: tuple[float, float]) -> np.ndarray:
    """A smooth random walk between 0 and 1 with ``rate`` turns a second, near 0 and 1 by turns. ``[n]``

    Args:
        first: least and most turns that are over when it starts; at 0 it is low, at 1 high.
    """
    points = math.ceil(n / SAMPLE_RATE * rate + first[1]) + 2
    heights = rng.uniform(0.0, 0.3, points)
    heights[1::2] += 0.7
    place = np.arange(n) * (rate / SAMPLE_RATE) + rng.uniform(*first)
    index = place.astype(int)
    blend = place - index
    blend = blend * blend * (3 - 2 * blend)
    return heights[index] * (1 - blend) + heights[index + 1] * blend


@functools.lru_cache(maxsize=256)
def frequencies_of(n: int) -> np.ndarray:
    return fft.rfftfreq(n, 1 / SAMPLE_RATE).astype(np.float32)


def noise(rng: np.random.Generator, n: int, low: float = 0.0, high: float = 0.0) -> np.ndarray:
    """Gaussian noise between ``low`` and ``high`` Hz (0: no limit), 12 dB an octave outside; rms 1. ``[n]``"""
    if not low and not high:
        return rng.standard_normal(n, dtype=np.float32)
    frequency = frequencies_of(n)
    shape = np.ones_like(frequency)
    if low:
        shape *= frequency**4 / (frequency**4 + np.float32(low) ** 4)
    if high:
        shape *= np.float32(high) ** 4 / (frequency**4 + np.float32(high) ** 4)
    draw = rng.standard_normal(2 * len(frequency), dtype=np.float32).view(np.complex64)
    # shape is the gain of the power.
    wave = fft.irfft(draw * np.sqrt(shape), n)
    return wave / math.sqrt(float(np.square(wave).mean()) + 1e-20)
