"""How well the mini model takes sounds apart: ``python -m mini.stems_scores --json mini/stems_scores.json --page docs/stems.md``.

True mixes of the world, whose layers are known, and scenes that the model makes, whose layers the judges of mini/judges.py
recognise or not; each in wordings kept out of training, and of seeds that nothing was tuned on. Each line says what was measured,
and on how many clips; the last column has what was aimed at. The page gets the table between its two MARKS.

SI-SDR is in dB, against the layer as it was mixed. *mix* is the sound itself in place of each stem, *one round* one evaluation at
sigma 0.8, *half* the rounds 0.8 and 0.6, *oracle mask* the same mask made of the true layers.
"""

import itertools
import sys
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dasheng_core import compose_prompt
from dasheng_core.control.stems import cut_by_energy, lint_stems
from mini import ROOT, recogniser
from mini.captions import describe
from mini.direction import PLACED, STEADY, jump, typical_jump
from mini.direction import prompt as prompt_of
from mini.judges import JUDGES
from mini.levels import Sound
from mini.measuring import measure_command
from mini.vocabulary import DIGITS, Speech, WorldScene
from mini.world import render_layers, sample_scene

STEM_MARKS = "<!-- figures: python -m mini.stems_scores -->", "<!-- end of figures -->"
# The layers of a scene and their aspects.
STEM_OF = {"effect": "sfx", "music": "music", "speech": "speech", "ambience": "env"}
LAYER_OF = {stem: layer for layer, stem in STEM_OF.items()}
# How many scenes of which layers.
TWO = {"effect ambience": 20, "effect music": 10, "speech ambience": 10, "speech music": 10, "music ambience": 10}
THREE = {"speech music ambience": 12, "speech effect ambience": 12, "effect music ambience": 6}
MADE = {"effect ambience": 40, "effect music": 20, "speech ambience": 20, "speech music": 20, "music ambience": 20}
SPOKEN_UNDER = {"speech ambience": 12, "speech music": 12}
ABSENT = {"speech ambience": 10, "speech music": 10, "music ambience": 10, "speech music ambience": 10}
# Takes of a loop, and of a clip in windows.
LOOPS, WINDOWED = 24, 4
WAYS = {"one round": {"sigmas": (0.8,)}, "half": {"sigmas": (0.8, 0.6)}, "stems": {}}
COLUMNS = ("mix", *WAYS, "oracle mask")
POOR = 5.0


def main() -> int:
    return measure_command(
        __doc__,
        STEM_MEASURES,
        STEM_MARKS,
        every=(1, "measure every Nth scene only"),
        seed=(2700, "of scenes, wordings and sounds"),
    )


# ---- scenes, and what is measured of a stem


def scenes_of(quotas: dict[str, int], seed: int, every: int = 1) -> list[WorldScene]:
    """So many scenes of each set of layers, without static and quiet rooms, which no aspect of their own tells."""
    rng = np.random.default_rng(seed)
    left = {frozenset(layers.split()): number for layers, number in quotas.items()}
    found = []
    while any(left.values()):
        scene = sample_scene(rng, layered=True)
        layers = frozenset(layer for layer in STEM_OF if getattr(scene, layer))
        if not scene.quality and scene.ambience != "quiet" and left.get(layers):
            left[layers] -= 1
            found.append(scene)
    return found[::every]


def worded(scene: WorldScene, seed: int) -> str:
    return compose_prompt(**describe(scene, np.random.default_rng(seed), held_out=True))


def layers_of_scene(scene: WorldScene, seed: int) -> dict[str, Tensor]:
    """The true stems, each ``[samples]``."""
    rendered = render_layers(scene, np.random.default_rng(seed))
    return {STEM_OF[layer]: torch.tensor(wave.astype(np.float32)) for layer, wave in rendered.items()}


def si_sdr(stem: Tensor, true: Tensor) -> float:
    """Scale-invariant signal-to-distortion ratio in dB."""
    stem, true = stem.double(), true.double()
    wanted = (stem @ true) / (true @ true + 1e-12) * true
    return float(10 * torch.log10(wanted.square().sum() / (stem - wanted).square().sum().clamp(min=1e-12)))


def taken_apart(model, prompt: str, mix: Tensor, **options) -> dict[str, Tensor]:
    return {name: stem[0] for name, stem in model.stems(prompt, audio=mix[None], **options).items()}


def not_found(stems: dict[str, Tensor], mix: Tensor) -> list[str]:
    stacked = torch.stack(list(stems.values()))[:, None, None]
    return [doubt.split()[0] for doubt in lint_stems(list(stems), stacked, mix[None, None])]


class Ears:
    """The judges of a stem: is it what its layer says?"""

    def __init__(self):
        self.words = recogniser.load(ROOT / "mini" / "recogniser.safetensors").recognise

    def right(self, scene: WorldScene, stem: str, wave: Tensor) -> float:
        part = getattr(scene, LAYER_OF[stem])
        if stem == "speech":
            return self.words_right(wave, part.words)
        return float(JUDGES[LAYER_OF[stem]](Sound(wave.numpy())) == getattr(part, "kind", part))

    def words_right(self, wave: Tensor, words: tuple[str, ...]) -> float:
        pairs = itertools.zip_longest(self.words(wave.numpy()), words)
        return float(np.mean([one == other for one, other in pairs]))

    def words_elsewhere(self, scene: WorldScene, stems: dict[str, Tensor]) -> int:
        return sum(len(self.words(wave.numpy())) for stem, wave in stems.items() if stem != "speech")


# ---- what is measured: (what, clips, value, what is asked for) each


def two_layers(model, args):
    yield from true_mixes(model, args, "two layers", scenes_of(TWO, args.seed + 5, args.every), 17.0)


def three_layers(model, args):
    yield from true_mixes(model, args, "three layers", scenes_of(THREE, args.seed + 50, args.every), 13.0)


def true_mixes(model, args, name: str, scenes: list[WorldScene], wanted: float):
    ears, values, errors, false_alarms = Ears(), defaultdict(lambda: defaultdict(list)), [], []
    for i, scene in enumerate(scenes):
        true, prompt = layers_of_scene(scene, args.seed + i), worded(scene, args.seed + i)
        mix = torch.stack(list(true.values())).sum(dim=0)
        found = {way: taken_apart(model, prompt, mix, **options) for way, options in WAYS.items()}
        found["mix"] = dict.fromkeys(true, mix)
        oracle = cut_by_energy(mix[None, None], torch.stack(list(true.values()))[:, None])[:, 0, 0]
        found["oracle mask"] = dict(zip(true, oracle, strict=True))
        errors.append(float((sum(found["stems"].values()) - mix).abs().max()))
        false_alarms.append(not_found(found["stems"], mix))
        for column, stems in found.items():
            for stem, wave in true.items():
                value = si_sdr(stems[stem], wave)
                for key in ("all", stem):
                    values[column][key].append(value)
                values[column]["right " + stem].append(ears.right(scene, stem, stems[stem]))
            if scene.speech:
                values[column]["elsewhere"].append(ears.words_elsewhere(scene, stems))
        log_scene(
            args,
            name,
            i,
            scene,
            {column: mean(si[-len(true) :]) for column, v in values.items() for si in [v["all"]]},
        )
    count = len(scenes)
    for key in ("all", "speech", "sfx", "music", "env"):
        row = [mean(values[column][key]) for column in COLUMNS]
        aim = f"stems >= {wanted:g}" if key == "all" else ""
        yield f"{name}, {key}: SI-SDR, {', '.join(COLUMNS)}", len(values["mix"][key]), row, aim
        tenth = [float(np.percentile(values[column][key], 10)) for column in COLUMNS]
        yield f"{name}, {key}: its tenth percentile", len(values["mix"][key]), tenth, ""
    poor = [mean([value < POOR for value in values[column]["all"]]) for column in COLUMNS]
    yield f"{name}: share of stems under {POOR:g} dB", len(values["mix"]["all"]), poor, "stems <= 0.07"
    for key in ("speech", "sfx", "music", "env"):
        row = [mean(values[column]["right " + key]) for column in COLUMNS]
        yield f"{name}, {key}: judged right", len(values["mix"][key]), row, ""
    elsewhere = [mean(values[column]["elsewhere"]) for column in COLUMNS]
    yield f"{name}: words heard in the other stems of a clip", len(values["mix"]["elsewhere"]), elsewhere, ""
    yield f"{name}: stems add up to the mix within", count, max(errors), "<= 1e-6"
    yield f"{name}: stems reported as not found", len(values["mix"]["all"]), sum(map(len, false_alarms)), "0"


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def log_scene(args, name: str, number: int, scene: WorldScene, values: dict[str, float]) -> None:
    """For whoever looks for the scenes that separate worst."""
    kinds = [getattr(part, "kind", part) for layer in STEM_OF if (part := getattr(scene, layer))]
    print(name, number, kinds, {key: round(value, 1) for key, value in values.items()}, file=sys.stderr, flush=True)


def absent(model, args):
    """An effect in the prompt that is not in the sound; and the same prompt without it."""
    levels, reported, with_it, without_it = [], [], [], []
    scenes = scenes_of(ABSENT, args.seed + 100, args.every)
    for i, scene in enumerate(scenes):
        effect = list(PLACED.values())[i % len(PLACED)]
        true = layers_of_scene(scene, args.seed + i)
        mix = torch.stack(list(true.values())).sum(dim=0)
        stems = taken_apart(model, worded(replace(scene, effect=effect), args.seed + i), mix)
        levels.append(float(10 * torch.log10(stems["sfx"].square().sum() / mix.square().sum() + 1e-12)))
        reported.append("sfx" in not_found(stems, mix))
        with_it += [si_sdr(stems[stem], wave) for stem, wave in true.items()]
        honest = taken_apart(model, worded(scene, args.seed + i), mix)
        without_it += [si_sdr(honest[stem], wave) for stem, wave in true.items()]
    value = (float(np.median(levels)), float(np.percentile(levels, 90)))
    yield "effect that is not there: its stem against the mix, dB, median, 90 %", len(scenes), value, "<= -20"
    yield "effect that is not there: share reported as not found", len(scenes), mean(reported), ""
    yield "SI-SDR of the others, with it in the prompt and without", len(with_it), (mean(with_it), mean(without_it)), ""


def words(model, args):
    """Other words in the prompt than are spoken."""
    ears, heard, voice = Ears(), defaultdict(list), defaultdict(list)
    scenes = scenes_of(SPOKEN_UNDER, args.seed + 200, args.every)
    rng = np.random.default_rng(args.seed)
    for i, scene in enumerate(scenes):
        others = tuple(str(rng.choice([d for d in DIGITS if d != word])) for word in scene.speech.words)
        true = layers_of_scene(scene, args.seed + i)
        mix = torch.stack(list(true.values())).sum(dim=0)
        for told, speech in (("true", scene.speech), ("other", Speech(scene.speech.voice, others))):
            stem = taken_apart(model, worded(replace(scene, speech=speech), args.seed + i), mix)["speech"]
            heard[told].append(ears.words_right(stem, scene.speech.words))
            voice[told].append(si_sdr(stem, true["speech"]))
            if told == "other":
                heard["told"].append(ears.words_right(stem, others))
    count, rates = len(scenes), {key: mean(some) for key, some in heard.items()}
    yield "spoken words heard: with them in the prompt, with others", count, (rates["true"], rates["other"]), ""
    yield "words of the prompt heard that are not spoken", count, rates["told"], "measured 0.25"
    yield "SI-SDR of the voice: with its words in the prompt, with others", count, [mean(v) for v in voice.values()], ""


def generated(model, args):
    ears, right, elsewhere = Ears(), defaultdict(lambda: defaultdict(list)), defaultdict(list)
    scenes = scenes_of(MADE, args.seed + 300, args.every)
    for i, scene in enumerate(scenes):
        prompt = worded(scene, args.seed + i)
        content, mask, _ = model.encode_text(prompt)
        latent = model.sample(content, mask, [round(scene.seconds * 25)], seed=args.seed + i)
        mix = model.decode(latent)[0]
        stems = {name: stem[0] for name, stem in model.stems(prompt, latent=latent).items()}
        for column, sounds in (("mix", dict.fromkeys(stems, mix)), ("stems", stems)):
            for stem, wave in sounds.items():
                right[column][stem].append(ears.right(scene, stem, wave))
            if scene.speech:
                elsewhere[column].append(ears.words_elsewhere(scene, sounds))
    for stem in ("speech", "sfx", "music", "env"):
        value = [mean(right[column][stem]) for column in ("mix", "stems")]
        yield f"{stem} judged right: in the mix, in its stem", len(right["mix"][stem]), value, "not less"
    value = [mean(elsewhere[column]) for column in ("mix", "stems")]
    yield "words heard in the other stems of a clip: mix, stems", len(elsewhere["mix"]), value, "stems <= 0.2"


def loops_and_windows(model, args):
    layers = {"ambience": "rain", "music": STEADY["drone"]["music"]}
    prompt = prompt_of(4.0, **layers)
    content, mask, _ = model.encode_text(prompt)
    for looped in (True, False):
        jumps = defaultdict(list)
        for seed in range(0, LOOPS, args.every):
            latent = model.sample(content, mask, [100], seed=seed, loop=looped)
            stems = model.stems(prompt, latent=latent, loop=looped)
            for name, stem in {"mix": model.decode(latent, loop=looped), **stems}.items():
                wave = np.roll(stem[0].numpy(), 32000)
                jumps[name].append(jump(wave, 2.0) / typical_jump(wave, [2.0]))
        value = [float(np.median(some)) for some in jumps.values()]
        what = f"{'loop' if looped else 'no loop'}: jump at the seam / typical: {', '.join(jumps)}"
        yield what, len(jumps["mix"]), value, "stems <= 1.1" if looped else ""
    seconds, size, jumps, errors = 16.0, 4.0, defaultdict(list), []
    borders = [float(at) for at in np.arange(size / 2, seconds - 1, size / 2)]
    for seed in range(0, WINDOWED, args.every):
        latent = model.sample(content, mask, [round(seconds * 25)], seed=seed, window=size)
        stems = model.stems(prompt, latent=latent, window=size)
        mix = model.decode(latent)
        errors.append(float((sum(stems.values()) - mix).abs().max()))
        for name, stem in {"mix": mix, **stems}.items():
            wave = stem[0].numpy()
            jumps[name] += [jump(wave, at) / typical_jump(wave, borders) for at in borders]
    value = [float(np.median(some)) for some in jumps.values()]
    what = f"windows: jump at their borders / typical: {', '.join(jumps)}"
    yield what, len(jumps["mix"]), value, "stems <= 1.1"
    yield "windows: stems add up to the clip within", len(errors), max(errors), "<= 1e-6"


def cost(model, args):
    """Of a clip of 4 s of two aspects: what is evaluated per aspect, and seconds of one processor core."""
    prompt = prompt_of(4.0, ambience="rain", music=STEADY["drone"]["music"])
    content, mask, _ = model.encode_text(prompt)
    counts, step = [], model.backbone.step

    def counted(x, *rest):
        counts.append(len(x))
        return step(x, *rest)

    def timed(run) -> tuple[float, float]:
        counts.clear()
        begun = time.process_time()
        run()
        return sum(counts) / 2, time.process_time() - begun

    latent = model.sample(content, mask, [100], seed=0)
    model.stems(prompt, audio=model.decode(latent))
    model.backbone.step = counted
    try:
        ways = {"a guided run of 25 steps": lambda: model.decode(model.sample(content, mask, [100], seed=0))}
        for name, options in WAYS.items():
            ways[name] = lambda options=options: model.stems(prompt, latent=latent, **options)
        ways["with retake"] = lambda: model.stems(prompt, latent=latent, retake=True)
        for name, run in ways.items():
            evaluations, seconds = timed(run)
            per = evaluations * 2 if name.startswith("a guided") else evaluations
            yield f"{name}: evaluations{'' if per != evaluations else ' per aspect'}; seconds", 1, (per, seconds), ""
    finally:
        del model.backbone.step


STEM_MEASURES = {
    "two": two_layers,
    "three": three_layers,
    "absent": absent,
    "words": words,
    "generated": generated,
    "long": loops_and_windows,
    "cost": cost,
}

if __name__ == "__main__":
    sys.exit(main())
