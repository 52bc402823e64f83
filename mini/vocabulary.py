"""What the mini model's world can contain: the facts that generator, captions and judges share.

A scene has at most one of each layer. Every number here is a promise: the generator keeps to it, and the judges may
rely on it. Tones are multiples of 50 Hz and start with phase 0, so that they fit the audio tokenizer's frames of 20 ms.
"""

from dataclasses import dataclass

# Of the weights, as of the code.
LICENSE = "Apache-2.0"
MIN_SECONDS, LONGEST_SECONDS = 1.0, 6.0

# Hz. A beep is a steady tone of 0.3 s or more.
BEEP_PITCH = {"low": (200, 400), "middle": (600, 1000), "high": (1500, 2500)}
# Hz at the two ends of a sweep; a falling one goes the other way.
SWEEP_ENDS = ((200, 500), (1200, 3000))
KNOCK_COUNTS = (1, 2, 3)
# Seconds between the knocks of a group.
KNOCK_GAP = (0.35, 0.6)
# Notes or beats a second.
TEMPO = {"slow": (1.5, 2.5), "fast": (4.5, 6.0)}
# Hz, of the lowest note of an arpeggio and of a drone's fundamental.
REGISTER = {"low": (100, 200), "high": (500, 800)}
# Share of the energy above the fifth harmonic: below the first number for soft, above the second for bright.
TIMBRE = {"soft": 0.02, "bright": 0.15}
# Hz, the median of the voice's fundamental.
VOICE_PITCH = {"low": (85, 135), "high": (190, 270)}
# Level of static below the loudest layer, dB.
STATIC_LEVEL = (-22.0, -14.0)

EFFECTS = ("beep", "sweep", "knock", "bell", "whistle", "click", "buzz", "engine")
MUSIC = ("arpeggio", "drone", "beat")
AMBIENCES = ("rain", "wind", "waves", "murmur", "quiet")
QUALITIES = ("studio", "static")
VOICES = tuple(VOICE_PITCH)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Effect:
    """``pitch`` for a beep, ``direction`` ("rising" or "falling") for a sweep, ``count`` for knocks."""

    kind: str
    pitch: str | None = None
    direction: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class Music:
    """``tempo`` for arpeggio and beat; ``register`` and ``timbre`` for arpeggio and drone."""

    kind: str
    tempo: str | None = None
    register: str | None = None
    timbre: str | None = None


@dataclass(frozen=True)
class Speech:
    """Words spoken by a low or a high voice."""

    voice: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class WorldScene:
    """What is heard in a clip of ``seconds``; None where a layer is absent."""

    seconds: float
    effect: Effect | None = None
    music: Music | None = None
    speech: Speech | None = None
    ambience: str | None = None
    quality: str | None = None
