"""The mini model's world: draw a scene, render it."""

import math

import numpy as np

from dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from mini import sounds, voices
from mini.vocabulary import (
    AMBIENCES,
    BEEP_PITCH,
    DIGITS,
    EFFECTS,
    KNOCK_COUNTS,
    LONGEST_SECONDS,
    MIN_SECONDS,
    MUSIC,
    QUALITIES,
    REGISTER,
    STATIC_LEVEL,
    TEMPO,
    TIMBRE,
    VOICES,
    Effect,
    Music,
    Speech,
    WorldScene,
)

# The decoder's largest magnitude, 100 of a window of 1280, is a tone of peak 0.31.
# Levels in dB of full scale: of the peak for effects, music and speech, of the rms for ambience.
EFFECT_PEAK = (-17.0, -11.0)
SPEECH_PEAK = (-17.0, -11.0)
MUSIC_PEAK = {"alone": (-17.0, -11.0), "under": (-27.0, -21.0)}
AMBIENCE_RMS = {"alone": (-28.0, -21.0), "under": (-40.0, -33.0)}
QUIET_RMS = {"alone": (-48.0, -42.0), "under": (-60.0, -52.0)}
HIGHEST_PEAK = 0.95
# Seconds over which the loudest layer is measured to set the static's rms STATIC_LEVEL below it.
LOUDEST_SECONDS = 0.2

# Latent frames before the first word and from the start of one word to the next: every word has its place.
SPEECH_START, SPEECH_STEP = 2, 16
MOST_WORDS = 3
# Parts of a word that its label tells apart, of equal length.
WORD_PARTS = 3
WORD_LABELS = 1 + len(DIGITS) * WORD_PARTS
KNOCK_SECONDS = {1: (1.0, 3.2), 2: (1.2, 3.6), 3: (1.6, 4.0)}
KIND_SECONDS = {"sweep": (1.0, 4.0), "bell": (1.2, LONGEST_SECONDS), "waves": (2.0, LONGEST_SECONDS)}
SLOW_SECONDS = (2.0, LONGEST_SECONDS)

LAYERS = {"effect": EFFECTS, "music": MUSIC, "speech": VOICES, "ambience": AMBIENCES}
LAYER_SHARES = {"effect": 0.32, "music": 0.2, "speech": 0.34, "ambience": 0.14}
# Kinds with more to learn come more often.
KIND_SHARES = {"beep": 2.0, "sweep": 2.0, "knock": 3.0, "arpeggio": 2.0}
SINGLE_SHARE = 0.5
QUALITY_SHARE = 0.4

# Kinds that hide each other: they do not meet in a scene.
_RHYTHMS = ("knock", "click", "engine", "beat", "arpeggio")
_TONES = ("beep", "sweep", "whistle", "bell", "buzz", "arpeggio", "drone")
_SPOKEN = (*VOICES, "knock", "click", "engine", "buzz", "whistle", "beat", "murmur")
_PAIRS = (
    *(("click", other) for other in ("rain", "wind", "waves", "drone")),
    ("knock", "drone"),
    *(("engine", other) for other in ("wind", "waves", "quiet", "drone")),
    *(("sweep", other) for other in ("beat", "wind", "waves")),
)
CLASHES = frozenset(
    frozenset((one, other))
    for family in (_RHYTHMS, _TONES, _SPOKEN, *_PAIRS)
    for one in family
    for other in family
    if one != other
)


def sample_scene(rng: np.random.Generator, wanted: str | None = None, layered: bool | None = None) -> WorldScene:
    """Draw a scene: most of them one layer alone, the others two or three layers that do not hide each other.

    Args:
        wanted: something the scene must have: an effect, a music, an ambience, a quality or "speech"; None for any.
        layered: whether it must have more than one layer; None for either.
    """
    layers = {"speech": ("speech",), **{name: kinds for name, kinds in LAYERS.items() if name != "speech"}}
    if wanted is not None and wanted not in (*QUALITIES, *(kind for kinds in layers.values() for kind in kinds)):
        raise ValueError(f"{wanted!r} is not in the world: ask for speech or a kind of the vocabulary.")
    if layered is None:
        layered = rng.random() >= SINGLE_SHARE
    quality = wanted if wanted in QUALITIES else None
    first = next((name for name, kinds in layers.items() if wanted in kinds), None)
    # Static and studio silence can be told only where no ambience covers them.
    covering = {"ambience"} if quality else set()
    first = first or _draw_layer(rng, LAYER_SHARES.keys() - covering)
    kind = None if quality else wanted
    parts = {first: _draw_part(rng, first, kind)}
    if layered:
        parts = _with_companions(rng, parts, covering)
        while parts is None:
            parts = _with_companions(rng, {first: _draw_part(rng, first, kind)}, covering)
    if wanted not in QUALITIES and "ambience" not in parts and rng.random() < QUALITY_SHARE:
        quality = _pick(rng, QUALITIES)
    shortest, longest = _seconds_of(parts)
    tenths = rng.integers(math.ceil(shortest * 10 - 1e-6), math.floor(longest * 10 + 1e-6) + 1)
    return WorldScene(seconds=int(tenths) / 10, quality=quality, **parts)


def render(scene: WorldScene, rng: np.random.Generator) -> np.ndarray:
    """The sound of a scene: float32 ``[samples]`` at 16 kHz, whole frames, peak at most HIGHEST_PEAK."""
    layers = list(render_layers(scene, rng).values())
    if not layers:
        raise ValueError("The scene is empty: give it an effect, music, speech or an ambience.")
    mixed = np.sum(layers, axis=0)
    if scene.quality == "static":
        wave = sounds.static(rng, len(mixed))
        loudest = max(_loudest_rms(layer) for layer in layers)
        mixed += wave * (loudest * _gain(-rng.uniform(-STATIC_LEVEL[1], -STATIC_LEVEL[0])))
    peak = np.abs(mixed).max()
    return (mixed * min(1.0, HIGHEST_PEAK / peak)).astype(np.float32)


def render_layers(scene: WorldScene, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Each layer of a scene alone, as loud as in it, ``[samples]``; their sum is the scene, but for static."""
    n = max(1, round(scene.seconds * SAMPLE_RATE / SAMPLES_PER_FRAME)) * SAMPLES_PER_FRAME
    layers = {}
    if scene.effect:
        attributes = (scene.effect.pitch, scene.effect.direction, scene.effect.count)
        layers["effect"] = _sound(rng, n, scene.effect.kind, attributes, EFFECT_PEAK)
    if scene.music:
        attributes = (scene.music.tempo, scene.music.register, scene.music.timbre)
        place = "under" if scene.effect or scene.speech else "alone"
        layers["music"] = _sound(rng, n, scene.music.kind, attributes, MUSIC_PEAK[place])
    if scene.speech:
        layers["speech"] = _at_level(rng, _spoken(rng, n, scene.speech), SPEECH_PEAK, peak=True)
    if scene.ambience:
        levels = QUIET_RMS if scene.ambience == "quiet" else AMBIENCE_RMS
        wave = getattr(sounds, scene.ambience)(rng, n)
        layers["ambience"] = _at_level(rng, wave, levels["under" if layers else "alone"], peak=False)
    return layers


def word_labels(scene: WorldScene, frames: int) -> np.ndarray:
    """What is spoken in each latent frame, int64 ``[frames]``: 0 for nothing, else a number for a digit and its part."""
    labels = np.zeros(frames, np.int64)
    for number, word in enumerate(scene.speech.words if scene.speech else ()):
        take = voices.takes(word, scene.speech.voice)[0]
        length = max(WORD_PARTS, round(len(take) / SAMPLES_PER_FRAME))
        at = SPEECH_START + number * SPEECH_STEP
        labels[at : at + length] = 1 + DIGITS.index(word) * WORD_PARTS + np.arange(length) * WORD_PARTS // length
    return labels


# ---- drawing


def _draw_layer(rng, names) -> str:
    # A set has no order of its own, and the same state must draw the same layer.
    names = [name for name in LAYER_SHARES if name in names]
    return _draw_weighted(rng, names, LAYER_SHARES)


def _draw_weighted(rng, names, shares: dict[str, float]) -> str:
    """One of ``names``; a name without a share counts 1."""
    bounds = np.cumsum([shares.get(name, 1.0) for name in names])
    return names[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]


def _pick(rng, choices):
    return tuple(choices)[rng.integers(len(choices))]


def _draw_part(rng, layer: str, wanted: str | None = None) -> Effect | Music | Speech | str:
    """One layer with its attributes; ``wanted`` is its kind, or None for any."""
    if layer == "speech":
        return Speech(_pick(rng, VOICES), tuple(_pick(rng, DIGITS) for _ in range(rng.integers(1, MOST_WORDS + 1))))
    kind = wanted or _draw_weighted(rng, LAYERS[layer], KIND_SHARES)
    if layer == "effect":
        return Effect(
            kind,
            pitch=_pick(rng, BEEP_PITCH) if kind == "beep" else None,
            direction=_pick(rng, ("rising", "falling")) if kind == "sweep" else None,
            count=_pick(rng, KNOCK_COUNTS) if kind == "knock" else None,
        )
    if layer == "music":
        return Music(
            kind,
            tempo=_pick(rng, TEMPO) if kind != "drone" else None,
            register=_pick(rng, REGISTER) if kind != "beat" else None,
            timbre=_pick(rng, TIMBRE) if kind != "beat" else None,
        )
    return kind


def _with_companions(rng, first: dict, covering: set[str], tries: int = 20) -> dict | None:
    """The first layer with one or two that neither hide it nor need another length; None if none were found."""
    for _ in range(tries):
        parts = dict(first)
        for _ in range(1 if rng.random() < 0.7 else 2):
            name = _draw_layer(rng, LAYER_SHARES.keys() - covering - parts.keys())
            parts[name] = _draw_part(rng, name)
        shortest, longest = _seconds_of(parts)
        if shortest <= longest and not _clash(parts):
            return parts
    return None


def _kinds(parts: dict) -> list[str]:
    return [getattr(part, "kind", None) or getattr(part, "voice", None) or part for part in parts.values()]


def _clash(parts: dict) -> bool:
    kinds = _kinds(parts)
    return any(frozenset((one, other)) in CLASHES for one in kinds for other in kinds)


def _seconds_of(parts: dict) -> tuple[float, float]:
    """The shortest and longest clip that suits every layer, in seconds."""
    limits = [(MIN_SECONDS, LONGEST_SECONDS)]
    for kind, part in zip(_kinds(parts), parts.values(), strict=True):
        limits.append(KIND_SECONDS.get(kind, (MIN_SECONDS, LONGEST_SECONDS)))
        if kind == "knock":
            limits.append(KNOCK_SECONDS[part.count])
        if isinstance(part, Music) and part.tempo == "slow":
            limits.append(SLOW_SECONDS)
        if isinstance(part, Speech):
            frames = SPEECH_START + len(part.words) * SPEECH_STEP
            needed = max(MIN_SECONDS, frames * SAMPLES_PER_FRAME / SAMPLE_RATE)
            limits.append((needed, needed + 1.0))
    return max(low for low, _ in limits), min(high for _, high in limits)


# ---- mixing


def _gain(decibels: float) -> float:
    return 10 ** (decibels / 20)


def _at_level(rng, wave: np.ndarray, decibels: tuple[float, float], peak: bool) -> np.ndarray:
    level = np.abs(wave).max() if peak else math.sqrt(np.square(wave).mean())
    return wave * (_gain(rng.uniform(*decibels)) / level)


def _sound(rng, n: int, kind: str, attributes: tuple, decibels: tuple[float, float]) -> np.ndarray:
    wave = getattr(sounds, kind)(rng, n, *(value for value in attributes if value is not None))
    return _at_level(rng, wave, decibels, peak=True)


def _spoken(rng, n: int, speech: Speech) -> np.ndarray:
    """Words one after the other in one voice's takes, evenly. ``[n]``"""
    wave = np.zeros(n)
    for number, word in enumerate(speech.words):
        takes = voices.takes(word, speech.voice)
        take = takes[rng.integers(len(takes))]
        at = (SPEECH_START + number * SPEECH_STEP) * SAMPLES_PER_FRAME
        if at + len(take) > n:
            raise ValueError(
                f"{' '.join(speech.words)!r} does not fit into {n / SAMPLE_RATE:g} s: make the scene longer."
            )
        wave[at : at + len(take)] = take
    return wave


def _loudest_rms(wave: np.ndarray) -> float:
    size = sounds.samples(LOUDEST_SECONDS)
    return math.sqrt(max(np.square(wave[at : at + size]).mean() for at in range(0, len(wave) - size + 1, size // 2)))
