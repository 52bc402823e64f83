"""Does a clip sound like its scene? Signal processing only, written from the vocabulary and not from the generator.

Every judge takes a :class:`~mini.levels.Sound` and returns a label of mini/vocabulary.py, or None where
it hears nothing of the sort. Silence never satisfies anything: below ``HEARD`` all judges answer None. The one quiet
sound that counts is the ambience "quiet", a room's noise above ``QUIET_FLOOR``: digital silence is below it.

The measures were chosen for one layer alone. In a layered scene they look where the layer should be (tones above the
noise floor, noise between the tones, onsets above what lasts), and miss more: read those scores beside their ceiling.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter1d

from dasheng_core.duration import SAMPLE_RATE
from mini import vocabulary
from mini.levels import Sound, level, level_in_db, notes, smooth, syllables
from mini.vocabulary import WorldScene

# dBFS, mean square of the loudest STROKE seconds, so that a click counts as much as a tone: a full-scale sine is at -3.
HEARD, STROKE = -43.0, 0.03
# dBFS, mean square of a quiet room's noise: between the first two where it is all there is, which means that nothing is
# louder than ALONE; below the third where more is heard, for weather behind a sound is fainter than weather alone.
QUIET_FLOOR, QUIET_CEILING, QUIET_BEHIND = -85.0, -38.0, -43.0
ALONE = -36.0
# White noise filling the quietest band up to this many dB below the loudest moment is static, with 6 dB to spare.
STATIC_IS_ABOVE = vocabulary.STATIC_LEVEL[0] - 6
# dB by which the loudness of wind comes and goes: a low noise that does not is an engine, or nothing.
GUSTS = 2.0
# And by which that of waves does, at least.
SURF = 11.0
# dB by which a voice's spectrum ripples with its harmonics.
VOICED = 1.2
# Seconds a clip may be longer or shorter than its scene.
LENGTH_TOLERANCE = 0.3

CHANCE = {
    "effect": 1 / len(vocabulary.EFFECTS),
    "pitch": 1 / len(vocabulary.BEEP_PITCH),
    "direction": 1 / 2,
    "count": 1 / len(vocabulary.KNOCK_COUNTS),
    "music": 1 / len(vocabulary.MUSIC),
    "tempo": 1 / len(vocabulary.TEMPO),
    "register": 1 / len(vocabulary.REGISTER),
    "timbre": 1 / len(vocabulary.TIMBRE),
    "ambience": 1 / len(vocabulary.AMBIENCES),
    "quality": 1 / len(vocabulary.QUALITIES),
    "voice": 1 / len(vocabulary.VOICES),
    # Of each word.
    "words": 1 / len(vocabulary.DIGITS),
    # Lengths spread evenly between the shortest and the longest.
    "length": 2 * LENGTH_TOLERANCE / (vocabulary.LONGEST_SECONDS - vocabulary.MIN_SECONDS),
}
# Layer of a scene -> its attributes.
JUDGED_ATTRIBUTES = {
    "effect": ("effect", "pitch", "direction", "count"),
    "music": ("music", "tempo", "register", "timbre"),
    "speech": ("voice", "words"),
    "ambience": ("ambience",),
    "quality": ("quality",),
}
# Kinds of which every span sounds like the whole, and the rows of the score table that say whether it does.
STATIONARY = (*vocabulary.AMBIENCES, "drone", "arpeggio")
WINDOWS = "windows"
ROWS = (*CHANCE, WINDOWS)


def judge(scene: WorldScene, waveform: np.ndarray) -> dict[str, bool]:
    """For every attribute the scene states but the words: does the waveform satisfy it?

    Args:
        scene: what should be heard.
        waveform: float32 ``[samples]``, 16 kHz.
    """
    stated = stated_attributes(scene)
    stated.pop("words", None)
    sound = Sound(waveform)
    quiet_alone = scene.ambience == "quiet" and not (scene.effect or scene.music or scene.speech)
    if not (is_quiet_room(sound) if quiet_alone else heard(waveform)) or not np.isfinite(waveform).all():
        return dict.fromkeys(stated, False)

    verdict = {}
    for name, wanted in stated.items():
        if name == "length":
            verdict[name] = bool(abs(sound.seconds - wanted) <= LENGTH_TOLERANCE)
        else:
            verdict[name] = JUDGES[name](sound) == wanted
    return verdict


def stated_attributes(scene: WorldScene) -> dict[str, object]:
    """Attribute -> what the scene says of it; only those it says something about."""
    stated = {"length": scene.seconds}
    for layer, names in JUDGED_ATTRIBUTES.items():
        part = getattr(scene, layer)
        for name in names if part else ():
            wanted = part if isinstance(part, str) else getattr(part, "kind" if name == layer else name)
            if wanted is not None:
                stated[name] = wanted
    return stated


def chance_of(scene: WorldScene, attribute: str) -> float:
    """How often a blind guess is right: ``CHANCE``, and for a window everything it is judged by at once."""
    if attribute == WINDOWS:
        return math.prod(CHANCE[name] for name in stated_attributes(scene) if name not in ("length", "words"))
    return CHANCE[attribute]


def kind_of(scene: WorldScene, attribute: str) -> str:
    """The row of the score table an attribute's answer belongs to, e.g. "beep, high" for a beep's pitch."""
    if attribute == WINDOWS:
        return scene.ambience or scene.music.kind
    wanted = stated_attributes(scene)[attribute]
    if attribute in ("pitch", "direction", "count"):
        return f"{scene.effect.kind}, {wanted}"
    if attribute in ("tempo", "register", "timbre"):
        return f"{scene.music.kind}, {wanted}"
    if attribute == "length":
        return f"{int(wanted)} to {int(wanted) + 1} s"
    if attribute == "words":
        return f"{len(wanted)} in a clip"
    return str(wanted)


def heard(waveform: np.ndarray) -> bool:
    """Whether a clip is loud enough to be judged at all."""
    return level(waveform, STROKE) >= HEARD


def is_quiet_room(sound: Sound) -> bool:
    """A noise floor too low to be weather, and not digital silence."""
    ceiling = QUIET_CEILING if level(sound.waveform) < ALONE else QUIET_BEHIND
    return QUIET_FLOOR <= noise_level(sound) <= ceiling


# Effects


def effect(sound: Sound) -> str | None:
    """Which of the eight effects is in front.

    One pure tone is a sweep, a beep or a whistle, by how its frequency moves. Several tones that die away together
    are a bell; tones on a common fundamental that last are a buzz. Loudness that beats 6 to 45 times per second low
    down is an engine. Separate short noises are clicks when they are over at once and bright, else knocks.
    """
    if is_percussive(sound):
        return "click" if is_click(sound) else "knock"
    if moves := single_tone(sound):
        return moves
    if is_engine(sound):
        return "engine"
    if sound.pulse[1] > 0.5 and is_click(sound):
        return "click"
    if partial_decay(sound) < -8:
        return "bell"
    if harmonics(sound) >= 5:
        return "buzz"
    return None


def single_tone(sound: Sound) -> str | None:
    """Sweep, beep or whistle where one tone holds most of the foreground's energy; None where none does."""
    if sweep_slope(sound):
        return "sweep"
    hz, share = sound.glide
    pure = np.isfinite(hz) & (share > 0.75)
    if pure.sum() < 15 or pure.sum() < 0.6 * np.isfinite(hz).sum() or np.median(hz[pure]) < 180:
        return None
    track = np.log2(hz[pure])
    if np.percentile(track, 90) - np.percentile(track, 10) < 0.04:
        return "bell" if partial_decay(sound) < -8 else "beep"
    return "whistle"


def sweep_slope(sound: Sound) -> float:
    """Octaves a second of a tone that keeps going one way through more than an octave; 0 where there is none."""
    hz, share = sound.glide
    pure = np.flatnonzero(np.isfinite(hz) & (share > 0.5))
    if len(pure) < 15:
        return 0.0
    track = np.log2(hz[pure])
    rank = np.corrcoef(np.argsort(np.argsort(pure)), np.argsort(np.argsort(track)))[0, 1]
    span = abs(np.median(track[-5:]) - np.median(track[:5]))
    if span < 1 or abs(rank) < 0.8:
        return 0.0
    return float(np.polyfit(pure / 100, track, 1)[0])


def sweep_direction(sound: Sound) -> str | None:
    slope = sweep_slope(sound)
    return None if slope == 0 else "rising" if slope > 0 else "falling"


def beep_pitch(sound: Sound) -> str | None:
    """The class in which a steady tone of 0.2 s or more sounds longest; gaps between classes are split halfway."""
    hz, share = sound.loudest_tone
    steady = np.isfinite(hz) & (share > 0.4)
    steady[2:-2] &= np.abs(np.log2(hz[4:]) - np.log2(hz[:-4])) < 0.05
    classes = [nearest_class(value, vocabulary.BEEP_PITCH) for value in hz[steady]]
    counts = {name: classes.count(name) for name in vocabulary.BEEP_PITCH}
    best = max(counts, key=counts.get)
    return best if counts[best] >= 20 else None


def nearest_class(value: float, classes: dict[str, tuple[float, float]]) -> str | None:
    """The class that holds ``value``, with a fifth of an octave to spare; None outside all."""
    for name, (low, high) in classes.items():
        if low / 1.15 <= value <= high * 1.15:
            return name
    return None


def is_percussive(sound: Sound) -> bool:
    """Whether the foreground comes in short strokes with silence between."""
    loudness = sound.clean.sum(1)
    # Pulses faster than 10 a second are one sound.
    loud = maximum_filter1d(loudness > 0.1 * loudness.max(), 11)
    longest, run = 0, 0
    for frame in loud:
        run = run + 1 if frame else 0
        longest = max(longest, run)
    return 0 < longest <= 32 and loud.mean() < 0.75


def is_click(sound: Sound) -> bool:
    """A click is over within 25 ms and has its energy high up."""
    early = sound.short_power.sum(1)
    peak = early.argmax()
    spectrum = sound.short_power[peak]
    centroid = (spectrum * np.arange(len(spectrum))).sum() / spectrum.sum() * 62.5
    tail = early[peak + 12 : peak + 24].mean() if peak + 24 < len(early) else 0.0
    return bool(centroid > 1800 or (centroid > 1000 and tail < 0.003 * early[peak]))


def knock_count(sound: Sound) -> int | None:
    """Strokes at least 0.2 s apart that die away; None above three."""
    loudness = smooth(sound.clean.sum(1), 0.03)
    strokes = 0
    for frame in (sound.strokes(apart=0.22) * 100).astype(int):
        peak = loudness[frame : frame + 8].max(initial=0)
        # What starts and stays is no knock: a buzz, a gust.
        strokes += peak > 0.06 * loudness.max() and loudness[frame : frame + 36].min() < 0.39 * peak
    return int(strokes) if strokes in vocabulary.KNOCK_COUNTS else None


def is_engine(sound: Sound) -> bool:
    """Pulses faster than one can count, or a rumble with no energy above 600 Hz."""
    _, depth = sound.pulse
    spectrum = sound.clean[sound.foreground].mean(0)
    low = spectrum[sound.hz < 600].sum() / max(spectrum.sum(), 1e-12)
    return depth > 0.3 and low > 0.4


def partial_decay(sound: Sound) -> float:
    """dB per second by which the foreground fades once it is loudest: about 0 for what lasts and then stops."""
    loudness = level_in_db(smooth(sound.clean.sum(1), 0.05))
    # Noise decides where the very maximum of a steady tone is.
    peak = (loudness > loudness.max() - 1).argmax()
    below = loudness[peak:] < loudness[peak] - 20
    end = int(below.argmax()) if below.any() else len(below)
    # The last third is left out: there a steady tone's end is, too.
    after = loudness[peak : peak + end * 2 // 3]
    return float(np.polyfit(np.arange(len(after)) / 100, after, 1)[0]) if len(after) >= 8 else 0.0


def harmonics(sound: Sound) -> int:
    """How many multiples of one fundamental between 60 and 400 Hz are tones in the foreground's mean spectrum."""
    spectrum = sound.tones[sound.foreground].mean(0) if sound.foreground.any() else np.zeros(len(sound.hz))
    if spectrum.max() <= 0:
        return 0
    present = spectrum > 0.0005 * spectrum.max()
    best = 0
    for fundamental in range(60, 401, 5):
        bins = np.round(np.arange(1, int(4000 / fundamental) + 1) * fundamental / sound.hz[1]).astype(int)
        hits = present[bins] | present[bins - 1] | present[bins + 1]
        # A run from the bottom: a coarse grid of multiples would meet any set of tones somewhere.
        run = int(hits.argmin()) if not hits.all() else len(hits)
        best = max(best, run)
    return best


# Music


def music(sound: Sound) -> str | None:
    """A drone's tones last through the clip; an arpeggio's come one after the other; a beat has strokes, few tones."""
    present = (sound.tones > 0.003 * sound.tones.max(initial=0)) & (sound.tones > 0)
    near = present | np.roll(present, 1, 1) | np.roll(present, -1, 1)
    if near.mean(0).max() > 0.75 and stroke_rate(sound) < 1.45:
        return "drone"
    hz, _ = sound.loudest_tone
    tonal = np.isfinite(sound.lowest_tone)
    # A sweep passes through many notes and never comes back.
    several = len(set(notes(hz))) >= 3 and not sweep_slope(sound)
    if several and tonal.sum() > 0.45 * max(sound.foreground.sum(), 1):
        return "arpeggio"
    return "beat" if len(sound.strokes()) >= 2 else "drone" if near.mean(0).max() > 0.75 else None


def stroke_rate(sound: Sound) -> float:
    return len(sound.strokes(share=0.3)) / max(sound.seconds, 0.1)


def tempo(sound: Sound) -> str | None:
    """The novelty's period, where it is regular; else the number of strokes a second."""
    if sound.seconds < 0.5:
        return None
    # With an eighth to spare at either end of a class.
    fast, slow = (
        sound.periodicity(0.87 / fastest, 1.13 / slowest)[1]
        for slowest, fastest in (vocabulary.TEMPO["fast"], vocabulary.TEMPO["slow"])
    )
    rate = len(sound.strokes(apart=0.09, share=0.3)) / sound.seconds
    # A fast rhythm also repeats at its multiples, and there better where its strokes differ; a slow one has nothing
    # at a fast rhythm's period.
    if fast > 0.15:
        return "fast"
    if slow > 0.25 or 1 < rate < 3.5:
        return "slow"
    return "fast" if rate > 4.5 else None


def register(sound: Sound) -> str | None:
    """By each frame's lowest tone, well below their median: an arpeggio climbs, and a voice beside it speaks at times."""
    lowest = sound.lowest_tone[np.isfinite(sound.lowest_tone)]
    if len(lowest) < 20:
        return None
    hz = np.percentile(lowest, 35)
    return "low" if hz < 400 else "high" if hz < 1300 else None


def timbre(sound: Sound) -> str | None:
    """Share of the tones' energy above the fifth harmonic of each frame's lowest tone, split between the classes."""
    lowest = sound.lowest_tone
    frames = np.flatnonzero(np.isfinite(lowest))
    if len(frames) < 20:
        return None
    clean = sound.clean[frames]
    above = np.where(sound.hz > 5.5 * lowest[frames, None], clean, 0).sum(1)
    # The median frame: what speaks or strikes beside the music is not always there.
    share = np.median(above / np.maximum(clean.sum(1), 1e-12))
    return "soft" if share < (vocabulary.TIMBRE["soft"] * vocabulary.TIMBRE["bright"]) ** 0.5 else "bright"


# Ambience and recording


def noise_level(sound: Sound) -> float:
    """The noise between tones and between events, dBFS; a swell's louder half counts."""
    return float(level_in_db(np.percentile(smooth(sound.bands, 0.1).sum(1), 60)))


def ambience(sound: Sound) -> str | None:
    """By the noise between tones: a low level is a quiet room; then where it lies and how it moves.

    Murmur lies in the voice's range and moves with its syllables, waves come and go slowly, rain is high, wind is low and
    gusts.
    """
    if is_quiet_room(sound):
        return "quiet"
    if not heard(sound.waveform):
        return None
    bands = smooth(sound.bands, 0.05)
    spectrum = np.percentile(bands, 50, axis=0)
    share = spectrum / max(spectrum.sum(), 1e-12)
    centres = np.array([105, 225, 450, 900, 1800, 3200, 5000, 6800])
    centroid = float(np.exp((share * np.log(centres)).sum()))
    swell = np.ptp(np.percentile(level_in_db(smooth(bands, 0.4).sum(1)), (10, 90)))
    if centroid < 2000 and share[2:6].sum() > 0.5 and syllables(bands[:, 2:5].sum(1)) > 0.2:
        return "murmur"
    if swell > SURF:
        return "waves"
    if centroid > 1500:
        return "rain"
    return "wind" if centroid < 900 and swell > GUSTS and not is_engine(sound) else None


def quality(sound: Sound) -> str | None:
    """Static is white and never stops: it fills the emptiest band even in the quietest moments."""
    if not heard(sound.waveform) and not is_quiet_room(sound):
        return None
    bands = np.percentile(smooth(sound.bands, 0.1), 10, axis=0)
    # As if the emptiest band's density went on over the whole spectrum; the lowest band is left to microphones.
    density = bands[1:] / np.diff(np.array([150, 300, 600, 1200, 2400, 4000, 6000, 7600]))
    white = level_in_db(density.min() * SAMPLE_RATE / 2)
    return "static" if white - level(sound.waveform) > STATIC_IS_ABOVE else "studio"


# Voice


def voice(sound: Sound) -> str | None:
    """Low or high by the spacing of the harmonics in the quarter of a second that has the clearest."""
    # What lies between the two classes is neither.
    (_, above_low), (below_high, _) = vocabulary.VOICE_PITCH.values()
    classes = {**vocabulary.VOICE_PITCH, None: (above_low * 1.08, below_high / 1.06)}
    depth = np.stack([sound.ripple(*hz) for hz in classes.values()])
    clearest = np.sort(depth.max(0))[-25:]
    if len(clearest) < 25 or clearest[10] < VOICED:
        return None
    chosen = depth.max(0) >= clearest[0]
    return list(classes)[depth[:, chosen].mean(1).argmax()]


def audible(judge: Callable[[Sound], object]) -> Callable[[Sound], object]:
    """A judge that hears nothing in what is too faint."""
    return lambda sound: judge(sound) if heard(sound.waveform) else None


JUDGES: dict[str, Callable[[Sound], object]] = {
    "effect": audible(effect),
    "pitch": audible(beep_pitch),
    "direction": audible(sweep_direction),
    "count": audible(knock_count),
    "music": audible(music),
    "tempo": audible(tempo),
    "register": audible(register),
    "timbre": audible(timbre),
    "ambience": ambience,
    "quality": quality,
    "voice": audible(voice),
}
