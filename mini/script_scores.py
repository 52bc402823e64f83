"""How well scripts and extensions work on the mini model: ``python -m mini.script_scores --json mini/script_scores.json --page docs/script.md``.

Scripts of three to five lines and chains of extensions, in wordings kept out of training and of seeds that nothing was tuned on,
judged by mini/judges.py. Each line says what was measured, and on how many clips; the last column has what was aimed at. The page
gets the table between its two MARKS.

A script has a bed, an ambience or music, and one or two sounds in spans of their own. *Plain* is the same scene as one clip of the
span's length.
"""

import itertools
import sys
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch

from dasheng_core import Script, compose_prompt
from dasheng_core.control.script import extended_scene, with_words
from mini import ROOT, recogniser
from mini.captions import describe
from mini.direction import cut, spread
from mini.judges import JUDGES
from mini.levels import Sound, spectrogram
from mini.measuring import measure_command
from mini.vocabulary import DIGITS, LONGEST_SECONDS, Speech, WorldScene
from mini.world import CLASHES, LAYERS, SLOW_SECONDS, sample_scene

SCRIPT_MARKS = "<!-- figures: python -m mini.script_scores -->", "<!-- end of figures -->"
SCRIPTS, SECTION, EDGE, FRAME_SECONDS = 40, (1.6, 2.4), 0.1, 0.04
# Waves need more time than a span has, and a quiet room is what no other sound is in.
BEDS = {"ambience": ("rain", "wind", "murmur"), "music": ("drone", "arpeggio", "beat")}
# Sounds that last as long as they may; the others are events within their span.
FILLING = {"whistle", "buzz", "engine", "beep", "drone"}
EVENTS = {"bell", "knock", "click"}
# Of a chain: how many extensions, and seconds of each half.
EXTENSIONS, HALF, CHAIN_BEDS = 10, 2.2, ("rain", "wind", "murmur")
ONSET = 0.15


def main() -> int:
    return measure_command(
        __doc__,
        SCRIPT_MEASURES,
        SCRIPT_MARKS,
        every=(1, "measure every Nth script and chain only"),
        chains=(2, "of each ambience"),
        seed=(2800, "of scenes, wordings and sounds"),
    )


# ---- scripts


@dataclass(frozen=True)
class Placed:
    """A layer from one second to another."""

    layer: str
    part: object
    start: float
    end: float

    @property
    def kind(self) -> str:
        return getattr(self.part, "kind", None) or getattr(self.part, "voice", self.part)


def drawn_scripts(seed: int, number: int) -> list[list[Placed]]:
    """Placed layers of so many scripts, the bed first; what sounds together is a scene of mini/world.py."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < number:
        bed_layer, *sounds = str(rng.choice(["ambience", "music"])), *range(int(rng.integers(1, 3)))
        bed = getattr(sample_scene(rng, str(rng.choice(BEDS[bed_layer]))), bed_layer)
        at, placed = 0.0, []
        for _ in sounds:
            layer = str(rng.choice([layer for layer in ("effect", "speech", "music") if layer != bed_layer]))
            part = getattr(sample_scene(rng, "speech" if layer == "speech" else str(rng.choice(LAYERS[layer]))), layer)
            length = float(rng.uniform(*SECTION))
            if layer == "music":
                length = max(length, SLOW_SECONDS[0])
            if layer == "speech":
                length = max(length, 0.1 + 0.64 * len(part.words))
            start = round(at + float(rng.uniform(1.2, 1.8)), 1)
            at = round(start + length, 1)
            placed.append(Placed(layer, part, start, at))
        whole = Placed(bed_layer, bed, 0.0, round(at + 1.4, 1))
        if not any(frozenset((whole.kind, sound.kind)) in CLASHES for sound in placed):
            found.append([whole, *placed])
    return found


def script_of(placed: list[Placed], seed: int, without: Placed | None = None) -> str:
    """Each layer but one as a line, speech as two, in held-out wordings."""
    rows = []
    for i, sound in enumerate(placed):
        aspects = describe(worded(sound), np.random.default_rng(seed + i), held_out=True)
        aspects = {} if sound is without else aspects
        rows += [f"{sound.start:g}-{sound.end:g} {name}: {text}" for name, text in aspects.items() if name != "caption"]
    return "\n".join(rows)


def worded(*placed: Placed) -> WorldScene:
    # A bed may be longer than captions can say; its line has no caption.
    seconds = min(placed[-1].end - placed[-1].start, LONGEST_SECONDS)
    return WorldScene(seconds, **{sound.layer: sound.part for sound in placed})


class ScriptJudge:
    def __init__(self):
        self.words = recogniser.load(ROOT / "mini" / "recogniser.safetensors").recognise

    def right(self, sound: Placed, clip: np.ndarray) -> float:
        if sound.layer == "speech":
            return self.words_right(clip, sound.part.words)
        return float(JUDGES[sound.layer](Sound(clip)) == sound.kind)

    def words_right(self, clip: np.ndarray, words: tuple[str, ...]) -> float:
        return float(np.mean([one == other for one, other in itertools.zip_longest(self.words(clip), words)]))

    def present(self, sound: Placed, clip: np.ndarray) -> float:
        """Whether a piece without a line has its sound."""
        return float(bool(self.words(clip))) if sound.layer == "speech" else self.right(sound, clip)


def made(model, scene, seed: int, seconds: float | None = None) -> np.ndarray:
    return model.generate(scene, seed=seed, duration=seconds)[0].numpy()


def layer_onset(clip: np.ndarray, start: float, end: float) -> float:
    """The second at which a sound that fills a span begins: its spectrum is half of what it is inside."""
    logs = np.log(np.sqrt(spectrogram(clip, 1024, 160)) + 1e-4)
    before, inside = (
        logs[round(a * 100) : round(b * 100)].mean(axis=0)
        for a, b in ((start - 0.9, start - 0.3), (start + 0.3, end - 0.3))
    )
    share = (logs - before) @ (inside - before) / np.square(inside - before).sum()
    smooth = np.convolve(share, np.ones(5) / 5, "same")
    first = round((start - 0.5) * 100)
    return (first + int(np.argmax(smooth[first : round((start + 0.6) * 100)] >= 0.5))) / 100


def strongest_onset(clip: np.ndarray, start: float, end: float) -> float:
    """The second of the strongest onset from half a second before a span to half a second after it."""
    first = round((start - 0.5) * 100)
    return (first + int(Sound(clip).novelty[first : round((end + 0.5) * 100)].argmax())) / 100


def scripts(model, args):
    ears = ScriptJudge()
    inside, plain, outside, without = (defaultdict(list) for _ in range(4))
    onsets, events = [], []
    for i, placed in enumerate(drawn_scripts(args.seed, SCRIPTS)[:: args.every]):
        seed, (bed, *sounds) = args.seed + 10 * i, placed
        clip = made(model, Script.parse(script_of(placed, seed)), seed)
        edges = sorted({0.0, bed.end, *(edge for sound in sounds for edge in (sound.start, sound.end))})
        for start, end in itertools.pairwise(edges):
            own = [sound for sound in sounds if sound.start == start]
            scene = worded(bed, *own) if own else replace(worded(bed), seconds=end - start)
            prompt = compose_prompt(**describe(scene, np.random.default_rng(seed + 7), held_out=True))
            alone = made(model, prompt, seed, end - start)
            for sound in (bed, *own):
                inside[sound.layer].append(ears.right(sound, cut(clip, start, end)))
                plain[sound.layer].append(ears.right(sound, alone))
        for sound in sounds:
            less = made(model, Script.parse(script_of(placed, seed, without=sound), seconds=bed.end), seed)
            elsewhere = [other.start for other in sounds if other.layer == sound.layer]
            for start, end in itertools.pairwise(edges):
                if start not in elsewhere and end - start > 0.6:
                    piece = (start + EDGE, end - EDGE)
                    outside[sound.layer].append(ears.present(sound, cut(clip, *piece)))
                    without[sound.layer].append(ears.present(sound, cut(less, *piece)))
            # Where a sound is not there, it has no onset.
            if ears.right(sound, cut(clip, sound.start, sound.end)) and sound.kind in FILLING:
                onsets.append(abs(layer_onset(clip, sound.start, sound.end) - sound.start))
            elif ears.right(sound, cut(clip, sound.start, sound.end)) and sound.kind in EVENTS:
                at = strongest_onset(clip, sound.start, sound.end)
                events.append(sound.start - FRAME_SECONDS <= at <= sound.end + FRAME_SECONDS)
        print("script", i, [(s.kind, s.start, s.end) for s in placed], file=sys.stderr, flush=True)

    def of_all(rates: dict[str, list[float]]) -> float:
        return mean(list(itertools.chain(*rates.values())))

    for layer in inside:
        value = (mean(inside[layer]), mean(plain[layer]), mean(inside[layer]) / max(mean(plain[layer]), 1e-9))
        yield f"{layer} right in its span; in a plain scene; ratio", len(inside[layer]), value, ""
    value = (of_all(inside), of_all(plain), of_all(inside) / of_all(plain))
    yield "all lines right; in plain scenes; ratio", sum(map(len, inside.values())), value, "ratio >= 0.9"
    for layer in outside:
        value = (mean(outside[layer]), mean(without[layer]))
        yield f"{layer} outside its span; without its line", len(outside[layer]), value, ""
    value = (of_all(outside), of_all(without))
    yield "all outside their spans; without their lines", sum(map(len, outside.values())), value, "at most 0.05 more"
    yield "sounds that fill their span: onset off by, s, median, most", len(onsets), spread(onsets), ""
    yield f"share of them within {ONSET:g} s", len(onsets), mean(np.array(onsets) <= ONSET + 1e-9), "1"
    yield "events whose strongest onset is inside the span", len(events), mean(events), "1"


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else 0.0


# ---- extensions


def floor_level(clip: np.ndarray) -> float:
    """What lies between words, in dB: the level that 85 % of pieces of 20 ms are above."""
    pieces = clip[: len(clip) // 320 * 320].reshape(-1, 320)
    return float(np.percentile(10 * np.log10(np.square(pieces).mean(axis=1) + 1e-10), 15))


def extensions(model, args):
    """Each of the half before it: two halves are a clip of the length that the model was trained on."""
    ears, rng = ScriptJudge(), np.random.default_rng(args.seed)
    right, plain, more, ambience, ambience_plain = [], [], [], [], []
    levels = defaultdict(list)
    for number, bed in enumerate([bed for bed in CHAIN_BEDS for _ in range(args.chains)]):
        said = [tuple(rng.choice(DIGITS, int(rng.integers(2, 4)), replace=False)) for _ in range(EXTENSIONS + 1)]
        scene, seed = WorldScene(HALF, speech=Speech("low", said[0]), ambience=bed), args.seed + 100 * number
        prompt = compose_prompt(**describe(scene, np.random.default_rng(seed), held_out=True))
        half = first = made(model, prompt, seed, HALF)
        levels[bed].append([])
        for step, words in enumerate(said[1:], start=1):
            half = next_half(model, extended_scene(prompt, HALF, " ".join(words)), half, seed + step)
            prompt = with_words(prompt, " ".join(words))
            alone = made(model, prompt, seed + 50 + step, HALF)
            for clip, rates, kinds in ((half, right, ambience), (alone, plain, ambience_plain)):
                rates.append(ears.words_right(clip, words))
                kinds.append(JUDGES["ambience"](Sound(clip)) == bed)
            more.append(len(ears.words(half)) > len(words))
            levels[bed][-1].append(floor_level(half) - floor_level(first))
        print("chain", bed, right[-EXTENSIONS:], np.round(levels[bed][-1], 1), file=sys.stderr, flush=True)
    count, rates = len(right), (mean(right), mean(plain), mean(right) / mean(plain))
    yield "words of extensions right; in plain clips; ratio", count, rates, "ratio >= 0.95"
    yield "extensions that say more words than theirs", count, mean(more), "0"
    yield "ambience of extensions right; in plain clips", count, (mean(ambience), mean(ambience_plain)), "not less"
    for bed, found in levels.items():
        value = (mean(found), mean(np.abs(found)), mean(np.array(found)[:, -1]))
        what = f"{bed}: level against the first half, dB: mean, mean off, at the end"
        yield what, len(found) * EXTENSIONS, value, "within 1 dB"


def next_half(model, scene, half: np.ndarray, seed: int) -> np.ndarray:
    """The seconds after a half, which is kept."""
    known = model.encode(torch.from_numpy(half)[None])
    return model.generate(scene, seed=seed, duration=2 * HALF, latent=known, keep=[(0.0, HALF)])[0, len(half) :].numpy()


SCRIPT_MEASURES = {"scripts": scripts, "extensions": extensions}

if __name__ == "__main__":
    sys.exit(main())
