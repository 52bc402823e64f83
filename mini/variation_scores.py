"""How well sets of variations hold: ``python -m mini.variation_scores --json mini/variation_scores.json --page docs/variations.md``.

50 effects of the mini model's world, in wordings kept out of training and of seeds that nothing was tuned on, 8 variations each. They
are compared with the first 8 takes of the same seeds. Each line says what was measured, and on how many; the last column has what was
aimed at. Onsets are measured twice: by what aligns them, and by when 2 % of a sound's energy has passed, which nothing was aligned by.
"""

from statistics import median

import numpy as np
import torch
from torch import Tensor

from dasheng_core import DashengAudioGen, compose_prompt
from dasheng_core.delivery.measures import loudness, onset_seconds
from dasheng_core.delivery.variations import Variations, make_variations, pooled_distances
from dasheng_core.duration import SAMPLE_RATE
from dasheng_core.options import DISTANCES
from mini.captions import describe
from mini.judges import judge
from mini.measuring import measure_command
from mini.vocabulary import EFFECTS, WorldScene
from mini.world import sample_scene

VARIATION_MARKS = "<!-- figures: python -m mini.variation_scores -->", "<!-- end of figures -->"
COUNT = 8
# A set is too alike or too far where a distance passes the bounds by more than rounding.
ROUNDING = 1e-4


def main() -> int:
    return measure_command(
        __doc__,
        VARIATION_MEASURES,
        VARIATION_MARKS,
        sounds=(50, "how many"),
        seed=(2950, "of scenes, wordings and takes"),
    )


class Recorded:
    """A model that keeps the takes it makes."""

    def __init__(self, model: DashengAudioGen):
        self.model, self.encode, self.takes = model, model.encode, []

    def generate(self, prompts, **options) -> Tensor:
        made = self.model.generate(prompts, callback=lambda done, steps: None, **options)
        self.takes += list(made)
        return made


def sets(model, args):
    rng = np.random.default_rng(args.seed)
    singles: list[tuple[WorldScene, Tensor]] = []
    siblings: list[tuple[WorldScene, Variations]] = []
    drawn = 0
    for i in range(args.sounds):
        scene = sample_scene(rng, wanted=EFFECTS[i % len(EFFECTS)], layered=False)
        prompt = compose_prompt(**describe(scene, np.random.default_rng(args.seed + i), held_out=True))
        recorded = Recorded(model)
        try:
            made = make_variations(recorded, prompt, COUNT, 1000 * (args.seed + i), duration=scene.seconds)
            siblings.append((scene, made))
            drawn += len(made.refused)
        except ValueError as error:
            print(f"sound {i}, {scene.effect}: {error}", flush=True)
        singles.append((scene, torch.stack(recorded.takes[:COUNT])))
    yield "sounds of which a set was made", args.sounds, len(siblings), f"{args.sounds}"
    yield "takes refused, of each set", len(siblings), drawn / len(siblings), ""
    for kind, rate in (("of the kind asked for", is_kind), ("all of what is asked for", is_right)):
        one, many = (
            float(np.mean([rate(scene, sound) for scene, sounds in group for sound in sounds]))
            for group in (singles, [(scene, made.sounds) for scene, made in siblings])
        )
        wanted = "variations >= takes - 0.02" if kind.startswith("of the kind") else ""
        yield f"{kind}: takes, variations", COUNT * len(siblings), (one, many), wanted
    # Measured again on the sounds that are handed over.
    pairs = torch.cat([pairs_of(pooled_distances(model.encode, made.sounds)) for _, made in siblings])
    beyond = (pairs < DISTANCES[0] - ROUNDING) | (pairs > DISTANCES[1] + ROUNDING)
    yield f"pairs outside {DISTANCES[0]:g} to {DISTANCES[1]:g}", len(pairs), int(beyond.sum()), "0"
    yield "distance of a pair: least, median, largest", len(pairs), [float(f(pairs)) for f in (min, median, max)], ""
    for name, measure, wanted in (
        ("onsets, ms", lambda sound: 1000 * onset_seconds(sound[None], SAMPLE_RATE), "largest <= 5"),
        ("onsets by energy, ms", lambda sound: 1000 * energy_onset(sound), ""),
        ("loudness, LU", lambda sound: loudness(sound[None], SAMPLE_RATE), "largest <= 0.3"),
    ):
        before = [spread_of(measure, sounds) for _, sounds in singles if all(map(torch.any, sounds))]
        after = [spread_of(measure, made.sounds) for _, made in siblings]
        value = [median(before), max(before), median(after), max(after)]
        yield f"spread of {name}: takes, median, largest; variations", len(siblings), value, wanted


def is_kind(scene: WorldScene, sound: Tensor) -> bool:
    return judge(scene, sound.numpy())["effect"]


def is_right(scene: WorldScene, sound: Tensor) -> bool:
    return all(judge(scene, sound.numpy()).values())


def pairs_of(distances: Tensor) -> Tensor:
    return distances[torch.triu(torch.ones_like(distances, dtype=torch.bool), diagonal=1)]


def energy_onset(sound: Tensor) -> float:
    energy = sound.double().square().cumsum(dim=0)
    return int((energy >= 0.02 * energy[-1]).nonzero()[0]) / SAMPLE_RATE


def spread_of(measure, sounds: Tensor) -> float:
    values = [measure(sound) for sound in sounds]
    return max(values) - min(values)


VARIATION_MEASURES = {"sets": sets}

if __name__ == "__main__":
    raise SystemExit(main())
