"""How often the mini model follows its prompt: ``python -m mini.scores --model FOLDER [--json OUT]``.

FOLDER holds ``audiogen``, ``text_encoder`` and ``audio_tokenizer``. Prompts are drawn from the synthetic world in
wordings kept out of training, half of them with one layer, half with several; --spoken more of speech alone come to
them for each number of words. Every clip is made from its own prompt and seed, at the length the model estimates, and
mini/judges.py says of each attribute whether it was satisfied. Of words, each is a question: is it in its place?
Of what is stationary, a span of two seconds is one: does it sound like the whole?

Columns: *truth* is the world's own rendering of the scenes, the most a judge can find; *round trip* is that rendering
through the audio tokenizer, the most a generator can reach. Then three groups by where the prompt says what is judged:
in caption and aspects, for each of SETTINGS; in the *aspects* alone, under a caption that names nothing; as a *detail* of a layered scene, in one layer's
aspect, while the caption names the other layers (a clip for each layer, judged for it alone). *Chance* is a blind
guess.
"""

import argparse
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from dasheng_core import DashengAudioGen, compose_prompt
from dasheng_core.duration import SAMPLE_RATE
from dasheng_core.pipeline import DEFAULTS
from mini import ROOT, recogniser
from mini.captions import describe, layers_of
from mini.judges import (
    JUDGED_ATTRIBUTES,
    STATIONARY,
    WINDOWS,
    chance_of,
    heard,
    judge,
    kind_of,
    stated_attributes,
)
from mini.tables import tables
from mini.vocabulary import AMBIENCES, EFFECTS, MUSIC, QUALITIES
from mini.world import MOST_WORDS, render, sample_scene

BATCH = 16
# Independent streams of random numbers from one seed.
PROMPT_STREAM, RECOGNISER_STREAM, ASPECTS_STREAM = 0, 1, 2
RECOGNISER_CLIPS = 900
# Guidance and steps: each varied alone, the other at its default.
SETTINGS = ((1.0, 25), (5.0, 5), (5.0, 25))
# Of stationary sounds, what is judged at a time: the first span, the last, and one between them.
WINDOW_SECONDS, WINDOWS_A_CLIP = 2.0, 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="where the three parts are")
    parser.add_argument("--prompts", type=int, default=450, help="how many, at least 2 (default 450)")
    parser.add_argument("--spoken", type=int, default=100, help="more of speech alone for each number of words")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, wordings and noise")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the counts here too")
    args = parser.parse_args()
    if args.prompts < 2:
        parser.error("--prompts: at least 2, one with a single layer and one with several.")
    started = time.monotonic()
    recognise = words_of(ROOT / "mini" / "recogniser.safetensors", args.seed)
    scenes, prompts, truth = draw(args.prompts, args.seed, args.spoken)
    columns = {"truth": count(scenes, truth, recognise)}
    model = DashengAudioGen.from_pretrained(args.model)
    columns["round trip"] = count(scenes, [round_trip(model, clip) for clip in truth], recognise)
    for guidance, steps in SETTINGS:
        progress(f"guidance {guidance:g}, {steps} steps")
        clips = generate(model, prompts, guidance, steps, args.seed)
        columns[f"g {guidance:g}, {steps} steps"] = count(scenes, clips, recognise)
    for name, told in told_by_aspects(scenes, args.seed).items():
        progress(name)
        asked, told_prompts, layers = zip(*told, strict=True)
        clips = generate(model, told_prompts, DEFAULTS.guidance_scale, DEFAULTS.num_steps, args.seed)
        columns[name] = count(asked, clips, recognise, layers)
    progress("")
    found = scores_as_json(columns, blind_guesses(scenes, judged=columns["truth"]), args, time.monotonic() - started)
    print(tables(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def draw(number: int, seed: int, spoken: int = 0) -> tuple[list, list[str], list[np.ndarray]]:
    """Scenes of every kind in turn, half with one layer and half with more, their held-out prompts, and their true sound.

    Args:
        spoken: so many more of speech alone, for each number of words.
    """
    rng = np.random.default_rng([seed, PROMPT_STREAM])
    room = {True: (number + 1) // 2, False: number // 2}
    turns = itertools.cycle(itertools.product((*EFFECTS, *MUSIC, "speech", *AMBIENCES, *QUALITIES), (False, True)))
    scenes = []
    while any(room.values()):
        scene = sample_scene(rng, *next(turns))
        if room[is_single(scene)]:
            room[is_single(scene)] -= 1
            scenes.append(scene)
    wanted = dict.fromkeys(range(1, MOST_WORDS + 1), spoken)
    while any(wanted.values()):
        scene = sample_scene(rng, "speech", layered=False)
        words = len(scene.speech.words)
        if is_single(scene) and wanted[words]:
            wanted[words] -= 1
            scenes.append(scene)
    prompts = [compose_prompt(**describe(scene, rng, held_out=True)) for scene in scenes]
    return scenes, prompts, [render(scene, rng) for scene in scenes]


def told_by_aspects(scenes: list, seed: int) -> dict[str, list[tuple]]:
    """The other two column groups: name -> scenes, prompts, and the layers each clip is judged for, None for all."""
    rng = np.random.default_rng([seed, ASPECTS_STREAM])

    def prompt(scene, unnamed) -> str:
        return compose_prompt(**describe(scene, rng, held_out=True, unnamed=unnamed))

    layered = [(scene, layer) for scene in scenes if not is_single(scene) for layer in layers_of(scene)]
    return {
        "aspects": [(scene, prompt(scene, layers_of(scene)), None) for scene in scenes],
        "detail": [(scene, prompt(scene, [layer]), layer) for scene, layer in layered],
    }


def is_single(scene) -> bool:
    """One layer at most; static is a layer, for the judges have to hear through it."""
    layers = (scene.effect, scene.music, scene.speech, scene.ambience)
    return sum(layer is not None for layer in layers) + (scene.quality == "static") <= 1


def words_of(path: Path, seed: int) -> Callable:
    """The recogniser in the file, trained first where there is none."""
    if not path.exists():
        progress("training the recogniser")
        recogniser.save(recogniser.train_recogniser(speech_clips(RECOGNISER_CLIPS, seed)), path)
    return recogniser.load(path).recognise


def speech_clips(number: int, seed: int) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """(waveform, words) of scenes with speech that are not among the prompts, two in three with nothing else."""
    rng = np.random.default_rng([seed, RECOGNISER_STREAM])
    room = {True: number * 2 // 3, False: number - number * 2 // 3}
    while any(room.values()):
        scene = sample_scene(rng)
        if scene.speech and room[is_single(scene)]:
            room[is_single(scene)] -= 1
            yield render(scene, rng), scene.speech.words


def round_trip(model, waveform: np.ndarray) -> np.ndarray:
    return model.decode(model.encode(torch.from_numpy(waveform)[None]))[0, : len(waveform)].numpy()


def generate(model, prompts: list[str], guidance: float, steps: int, seed: int, **options) -> list[np.ndarray]:
    """A clip for each prompt, made as it would be alone; clips of one length share a batch. ``options``: of sampling."""
    lengths = defaultdict(list)
    for i, prompt in enumerate(prompts):
        lengths[int(model.encode_text(prompt)[2])].append(i)
    clips: list[np.ndarray] = [np.empty(0)] * len(prompts)
    for items in lengths.values():
        for first in range(0, len(items), BATCH):
            batch = items[first : first + BATCH]
            seeds = [seed + i for i in batch]
            made = model.generate([prompts[i] for i in batch], steps, guidance, seed=seeds, **options)
            for i, waveform in zip(batch, made, strict=True):
                clips[i] = waveform.numpy()
    return clips


def rows_of(scene, attribute: str) -> list[tuple[str, str, str]]:
    """The rows of the table one answer counts in: the attribute's, and that of the kind below it."""
    group = "one layer" if is_single(scene) else "layered"
    return [(group, attribute, ""), (group, attribute, kind_of(scene, attribute))]


def count(
    scenes: list, clips: list[np.ndarray], recognise: Callable | None, layers: list[str | None] | None = None
) -> dict[tuple, list[int]]:
    """Row -> [right answers, questions].

    Args:
        layers: of each scene the layer that is asked for; None for all.
    """
    counts = defaultdict(lambda: [0, 0])
    for scene, clip, layer in zip(scenes, clips, layers or itertools.repeat(None, len(scenes)), strict=True):
        for attribute, answers in answer(scene, clip, recognise).items():
            if layer is None or attribute in JUDGED_ATTRIBUTES[layer]:
                for row in rows_of(scene, attribute):
                    counts[row][0] += sum(answers)
                    counts[row][1] += len(answers)
    return dict(counts)


def answer(scene, clip: np.ndarray, recognise: Callable | None) -> dict[str, list[bool]]:
    """For each attribute the scene states: right or not; for words, each word; for WINDOWS, each window."""
    answers = {attribute: [right] for attribute, right in judge(scene, clip).items()}
    if scene.speech and recognise:
        said = itertools.chain(recognise(clip) if heard(clip) else (), itertools.repeat(None))
        answers["words"] = [word == wanted for word, wanted in zip(said, scene.speech.words, strict=False)]
    if is_stationary(scene):
        size = round(WINDOW_SECONDS * SAMPLE_RATE)
        starts = np.linspace(0, max(0, len(clip) - size), WINDOWS_A_CLIP).astype(int)
        parts = [judge(scene, clip[at : at + size]) for at in starts]
        answers[WINDOWS] = [all(right for name, right in part.items() if name != "length") for part in parts]
    return answers


def is_stationary(scene) -> bool:
    """Whether every part of the scene sounds like the whole, and the whole is longer than such a part."""
    kinds = {scene.ambience, scene.music and scene.music.kind}
    return is_single(scene) and scene.seconds > WINDOW_SECONDS and bool(kinds & set(STATIONARY))


def blind_guesses(scenes: list, judged: dict[tuple, list[int]]) -> dict[tuple, float]:
    """Row -> the share a blind guess gets right, in the mean over the row's questions."""
    guesses = defaultdict(list)
    for scene in scenes:
        for attribute in [*stated_attributes(scene), *([WINDOWS] if is_stationary(scene) else [])]:
            for row in rows_of(scene, attribute):
                guesses[row].append(chance_of(scene, attribute))
    return {row: sum(values) / len(values) for row, values in guesses.items() if row in judged}


def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a proportion, which stays inside 0 to 1 for few questions too."""
    share, spread = right / asked, z * z / asked
    centre = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / asked + spread / (4 * asked)) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def cell(right: int, asked: int) -> str:
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.0f}% [{100 * low:.0f}-{100 * high:.0f}]"


def scores_as_json(
    columns: dict[str, dict], chances: dict[tuple, float], args: argparse.Namespace, seconds: float
) -> dict:
    rows = [
        {
            "layers": row[0],
            "attribute": row[1],
            "kind": row[2] or None,
            "chance": chance,
            "asked": columns["truth"][row][1],
            "right": {name: column[row][0] for name, column in columns.items() if row in column},
            "interval": {name: wilson(*column[row]) for name, column in columns.items() if row in column},
        }
        for row, chance in chances.items()
    ]
    return {"prompts": args.prompts, "seed": args.seed, "seconds": round(seconds, 1), "rows": rows}


def progress(doing: str) -> None:
    """What goes on now, on the terminal only."""
    if sys.stderr.isatty():
        print(f"\r{doing:60}", end="" if doing else "\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
