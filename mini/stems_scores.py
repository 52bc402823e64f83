"""How well the mini model takes sounds apart: ``python -m mini.stems_scores --json mini/stems_scores.json --page docs/stems.md``.

True mixes of the world, whose layers are known, and scenes that the model makes, whose layers the judges of mini/judges.py
recognise or not; each in wordings kept out of training, and of seeds that nothing was tuned on. Each line says what was measured,
and on how many clips; the last column has what was aimed at. The page gets the table between its two MARKS.

SI-SDR is in dB, against the layer as it was mixed. *mix* is the sound itself in place of each stem, *one round* one evaluation at
sigma 0.8, *half* the rounds 0.8 and 0.6, *oracle mask* the same mask made of the true layers.
"""

import argparse
import itertools
import json
import logging
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dasheng_core import DashengAudioGen, compose_prompt
from dasheng_core.control.stems import cut_by_energy
from mini import ROOT, recogniser
from mini.captions import describe
from mini.direction import STEADY, jump, rms, steady_latents, table, text_of, typical_jump
from mini.direction import prompt as prompt_of
from mini.judges import JUDGES
from mini.levels import Sound
from mini.scores import CHECKPOINT_PARTS
from mini.vocabulary import DIGITS, Effect, Speech, WorldScene
from mini.world import render_layers, sample_scene

STEM_MARKS = "<!-- figures: python -m mini.stems_scores -->", "<!-- end of figures -->"
# The layers of a scene and their aspects.
STEM_OF = {"effect": "sfx", "music": "music", "speech": "speech", "ambience": "env"}
LAYER_OF = {stem: layer for layer, stem in STEM_OF.items()}
# How many scenes of which layers.
TWO = {"effect ambience": 20, "effect music": 10, "speech ambience": 10, "speech music": 10, "music ambience": 10}
THREE = {"speech music ambience": 12, "speech effect ambience": 12, "effect music ambience": 6}
MADE = {"effect ambience": 40, "effect music": 20, "speech ambience": 20, "speech music": 20, "music ambience": 20}
WAYS = {"one round": {"sigmas": (0.8,)}, "half": {"sigmas": (0.8, 0.6)}, "stems": {}}
COLUMNS = ("mix", *WAYS, "oracle mask")
POOR = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every Nth scene only")
    parser.add_argument("--seed", type=int, default=2700, help="of scenes, wordings and sounds (default %(default)s)")
    parser.add_argument("--only", nargs="*", choices=STEM_MEASURES, default=list(STEM_MEASURES), help="what to measure")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the numbers here, beside those of other measures"
    )
    parser.add_argument("--page", type=Path, metavar="PAGE", help="and a table of them into this page")
    args = parser.parse_args()
    # What is not found is counted here.
    logging.getLogger("dasheng_core").setLevel(logging.ERROR)
    model = DashengAudioGen.from_pretrained(*(ROOT / "mini" / part for part in CHECKPOINT_PARTS))
    rows = []
    for name in args.only:
        begun = time.monotonic()
        for what, clips, value, wanted in STEM_MEASURES[name](model, args):
            rows.append({"measure": name, "what": what, "clips": clips, "value": value, "wanted": wanted})
            print(f"{name:9} {what:66} {clips:4}  {text_of(value):32} {wanted}", flush=True)
        print(f"{name:9} {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    if args.json:
        # What was not measured this time stays as it was.
        earlier = json.loads(args.json.read_text("utf-8"))["rows"] if args.json.exists() else []
        rows += [row for row in earlier if row["measure"] not in args.only]
        rows.sort(key=lambda row: list(STEM_MEASURES).index(row["measure"]))
        args.json.write_text(json.dumps({"seed": args.seed, "rows": rows}, indent=1) + "\n", "utf-8")
    if args.page:
        before, _, rest = args.page.read_text("utf-8").partition(STEM_MARKS[0])
        after = rest.partition(STEM_MARKS[1])[2]
        args.page.write_text(f"{before}{STEM_MARKS[0]}\n\n{table(rows)}\n{STEM_MARKS[1]}{after}", "utf-8")
    return 0


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


def true_mixes(model, args):
    for name, quotas, wanted in (("two layers", TWO, 17.0), ("three layers", THREE, 13.0)):
        ears, values, errors = Ears(), defaultdict(lambda: defaultdict(list)), []
        scenes = scenes_of(quotas, args.seed + len(quotas), args.every)
        for i, scene in enumerate(scenes):
            true, prompt = layers_of_scene(scene, args.seed + i), worded(scene, args.seed + i)
            mix = torch.stack(list(true.values())).sum(dim=0)
            found = {way: taken_apart(model, prompt, mix, **options) for way, options in WAYS.items()}
            found["mix"] = dict.fromkeys(true, mix)
            oracle = cut_by_energy(mix[None, None], torch.stack(list(true.values()))[:, None])[:, 0, 0]
            found["oracle mask"] = dict(zip(true, oracle, strict=True))
            errors.append(float((sum(found["stems"].values()) - mix).abs().max()))
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


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def log_scene(args, name: str, number: int, scene: WorldScene, values: dict[str, float]) -> None:
    """For whoever looks for the scenes that separate worst."""
    kinds = [getattr(part, "kind", part) for layer in STEM_OF if (part := getattr(scene, layer))]
    print(name, number, kinds, {key: round(value, 1) for key, value in values.items()}, file=sys.stderr, flush=True)


STEM_MEASURES = {"true mixes": true_mixes}

if __name__ == "__main__":
    sys.exit(main())
