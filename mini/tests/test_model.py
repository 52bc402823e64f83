"""What only a trained model can be asked: does the sound follow its prompt?

Prompts are in wordings never trained on, seeds are fixed, and mini/judges.py listens. Every question has a row in
RATES; the rates as they are now stand at the end of a run.
"""

import json
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import GOLDEN
from dasheng_core import compose_prompt
from graphs import Graph, run
from mini.captions import describe, layers_of
from mini.judges import CHANCE, JUDGES, noise_level, stated_attributes
from mini.levels import Sound
from mini.recogniser import load
from mini.vocabulary import AMBIENCES, DIGITS, EFFECTS, MUSIC, VOICES, Effect, Music, Speech, WorldScene
from mini.world import sample_scene
from tools.comfyui import MODEL_FOLDERS, SMALL, SMALL_NAME

SEEDS = range(6)
# Of a batch in a graph: take i has seed i.
TAKES = range(3)
# Of a latent sampled again. Most of what a prompt decides, it decides close to the noise: from about 0.7 on.
LOW_DENOISE, HIGH_DENOISE = 0.3, 0.85
# dB that the noise between the tones falls by when a negative prompt takes the ambience away.
REMOVED = 10.0
# Distance of a cached sampling from the full one, relative to its norm.
CACHED = 0.1


class Rate(NamedTuple):
    """Right answers: of a blind guess, of the weights in the repository, and the least that passes."""

    chance: float
    measured: float
    least: float


RATES = {
    "swap pitch": Rate(CHANCE["pitch"] ** 2, 1.0, 0.6),
    "swap direction": Rate(CHANCE["direction"] ** 2, 1.0, 0.6),
    "swap count": Rate(CHANCE["count"] ** 2, 1.0, 0.6),
    "swap tempo": Rate(CHANCE["tempo"] ** 2, 1.0, 0.6),
    "swap ambience": Rate(CHANCE["ambience"] ** 2, 1.0, 0.6),
    "swap register": Rate(CHANCE["register"] ** 2, 1.0, 0.6),
    "swap voice": Rate(CHANCE["voice"] ** 2, 1.0, 0.6),
    "batch, own prompt": Rate(1 / 8, 1.0, 0.7),
    "encoded and decoded": Rate(1 / 2, 1.0, 0.75),
    "negative prompt": Rate(0.2, 0.78, 0.6),
    "low denoise keeps": Rate(1 / 2, 1.0, 0.75),
    "high denoise follows": Rate(1 / 2, 1.0, 0.75),
    "swap in the aspect alone": Rate(1 / 4, 1.0, 0.7),
    "one digit": Rate(CHANCE["words"], 1.0, 0.8),
    "KSampler": Rate(1 / 4, 1.0, 0.7),
    "KSampler and Dasheng Sampler": Rate(1 / 2, 1.0, 0.75),
}

SWAPS = {
    "pitch": [WorldScene(1.5, Effect("beep", pitch=pitch)) for pitch in ("low", "high")],
    "direction": [WorldScene(2.0, Effect("sweep", direction=direction)) for direction in ("rising", "falling")],
    "count": [WorldScene(2.0, Effect("knock", count=count)) for count in (1, 3)],
    "tempo": [
        WorldScene(2.5, music=Music("arpeggio", tempo, register="high", timbre="soft")) for tempo in ("slow", "fast")
    ],
    "ambience": [WorldScene(2.5, ambience=ambience) for ambience in ("rain", "waves")],
    "register": [
        WorldScene(2.0, music=Music("drone", register=register, timbre="soft")) for register in ("low", "high")
    ],
    "voice": [WorldScene(2.0, speech=Speech(voice, ("seven", "two"))) for voice in ("low", "high")],
}

KINDS = {"effect": EFFECTS, "music": MUSIC, "ambience": AMBIENCES}
LAYERED = [
    WorldScene(2.5, Effect("beep", pitch="high"), ambience="waves"),
    WorldScene(2.5, Effect("beep", pitch="low"), ambience="rain"),
    WorldScene(2.5, Effect("beep", pitch="middle"), ambience="wind"),
]
RESAMPLED = ("pitch", "register", "voice", "direction")
# A voice's pitch is decided late: it follows the new prompt also at LOW_DENOISE.
DECIDED_EARLY = ("pitch", "register", "direction")
# Told where the caption names nothing.
ASPECTS_ALONE = ("pitch", "tempo", "ambience", "voice")


def prompt_of(scene: WorldScene, seed: int = 0, unnamed: Collection[str] = ()) -> str:
    """A held-out wording; the same seed words scenes alike that differ in one attribute."""
    return compose_prompt(**describe(scene, np.random.default_rng(seed), held_out=True, unnamed=unnamed))


def cut(clip: torch.Tensor, scene: WorldScene) -> np.ndarray:
    """``[samples]`` without what fills the clip up to the longest of its batch."""
    return clip[: 640 * round(scene.seconds * 25)].numpy()


def heard(waveform, attribute: str):
    return JUDGES[attribute](Sound(waveform))


def follows(waveform, scene: WorldScene, attribute: str) -> bool:
    return heard(waveform, attribute) == stated_attributes(scene)[attribute]


@pytest.fixture
def check(rates):
    """Right answers to a question, as a list of bool: enough of them?"""

    def check(question: str, answers: Iterable[bool]):
        rates[question] = rate = float(np.mean(list(answers)))
        assert rate >= RATES[question].least, f"{question}: {rate:.2f} right, {RATES[question]}"

    return check


@pytest.fixture(scope="module")
def swapped(mini) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Of every attribute: pairs of clips from one seed and one wording, in which only its word is another."""
    wanted = [(name, seed, scene) for name, scenes in SWAPS.items() for seed in SEEDS for scene in scenes]
    made = mini.generate(
        [prompt_of(scene, seed) for _, seed, scene in wanted],
        seed=[seed for _, seed, _ in wanted],
        duration=[scene.seconds for _, _, scene in wanted],
    )
    clips = [cut(clip, scene) for clip, (_, _, scene) in zip(made, wanted, strict=True)]
    pairs = list(zip(clips[::2], clips[1::2], strict=True))
    return {name: pairs[i * len(SEEDS) : (i + 1) * len(SEEDS)] for i, name in enumerate(SWAPS)}


@pytest.mark.parametrize("question", RATES)
def test_every_threshold_lies_between_chance_and_what_was_measured(question):
    chance, measured, least = RATES[question]
    assert chance + 0.1 <= least <= measured - 0.1


@pytest.mark.parametrize("attribute", SWAPS)
def test_another_word_makes_another_sound(swapped, check, attribute):
    """In the caption and the aspect, from the same noise; both clips of a pair must be right."""
    pairs = [zip(pair, SWAPS[attribute], strict=True) for pair in swapped[attribute]]
    check(f"swap {attribute}", [all(follows(clip, scene, attribute) for clip, scene in pair) for pair in pairs])


def test_another_word_in_the_aspect_alone_makes_another_sound(mini, check):
    """Under one and the same caption, which names nothing: both clips of a pair must be right."""
    pairs = [(name, seed) for name in ASPECTS_ALONE for seed in SEEDS[:3]]
    wanted = [(name, seed, scene) for name, seed in pairs for scene in SWAPS[name]]
    prompts = [prompt_of(scene, seed, layers_of(scene)) for _, seed, scene in wanted]
    captions = [prompt.split(" <|")[0] for prompt in prompts]
    assert captions[::2] == captions[1::2]
    made = mini.generate(
        prompts, seed=[seed for _, seed, _ in wanted], duration=[scene.seconds for _, _, scene in wanted]
    )
    right = [follows(cut(clip, scene), scene, name) for clip, (name, _, scene) in zip(made, wanted, strict=True)]
    check("swap in the aspect alone", [one and other for one, other in zip(right[::2], right[1::2], strict=True)])


def test_a_digit_is_heard_as_itself(mini, check):
    """Only the transcript tells it: "seven" is heard as seven."""
    recogniser = load(SMALL / "recogniser.safetensors")
    scenes = [WorldScene(1.2, speech=Speech(voice, (digit,))) for digit in DIGITS for voice in VOICES]
    made = mini.generate(
        [prompt_of(scene, seed) for seed, scene in enumerate(scenes)], seed=0, duration=[1.2] * len(scenes)
    )
    answers = [recogniser.recognise(clip.numpy()) for clip in made]
    check("one digit", [answer == scene.speech.words for answer, scene in zip(answers, scenes, strict=True)])


def test_what_was_right_stays_right_encoded_and_decoded(mini, swapped, check):
    answers = []
    for attribute, scenes in SWAPS.items():
        for clip, scene in (
            (clip, scene) for pair in swapped[attribute] for clip, scene in zip(pair, scenes, strict=True)
        ):
            if follows(clip, scene, attribute):
                again = mini.decode(mini.encode(torch.from_numpy(clip)[None]))[0].numpy()
                answers.append(follows(again, scene, attribute))
    assert len(answers) > len(SWAPS) * len(SEEDS)
    check("encoded and decoded", answers)


def test_items_of_a_batch_follow_their_own_prompts(mini, check):
    """One of every kind, in one call; heard beside the next one's prompt, few are right."""
    rng = np.random.default_rng(0)
    scenes = [
        (sample_scene(rng, kind, layered=False), attribute) for attribute, kinds in KINDS.items() for kind in kinds
    ]
    made = mini.generate(
        [prompt_of(scene, seed) for seed, (scene, _) in enumerate(scenes)],
        seed=0,
        duration=[scene.seconds for scene, _ in scenes],
    )
    clips = [cut(clip, scene) for clip, (scene, _) in zip(made, scenes, strict=True)]
    own = [follows(clip, *wanted) for clip, wanted in zip(clips, scenes, strict=True)]
    others = [follows(clip, *wanted) for clip, wanted in zip(clips[1:], scenes, strict=False)]
    check("batch, own prompt", own)
    assert np.mean(own) - np.mean(others) > 0.4


class Studio(Graph):
    """A graph with the mini model loaded, whose sounds are saved in the order they are asked for."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders(SMALL_NAME)

    def encode_scene(self, scene: WorldScene, seed: int = 0):
        return self.encode(self.clip, prompt_of(scene, seed))

    def empty(self, seconds: float, batch_size: int = len(TAKES)):
        return self.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=batch_size)

    def save(self, latent):
        decoded = self.add("DashengDecode", vae=self.vae, latent=latent)
        self.add("SaveAudio", audio=decoded, filename_prefix="test")


def sounds(server, graph: Studio) -> list[list[np.ndarray]]:
    """The takes of every saved sound, ``[samples]`` each."""
    clips = [samples[:, 0].numpy() for samples, _ in run(server, graph).audio()]
    return [clips[i : i + len(TAKES)] for i in range(0, len(clips), len(TAKES))]


def test_a_negative_prompt_removes_an_aspect(server, check):
    """The ambience of a layered scene goes, and the effect before it stays."""
    graph = Studio()
    for scene in LAYERED:
        positive, latent = graph.encode_scene(scene), graph.empty(scene.seconds)
        negative = graph.encode_scene(WorldScene(scene.seconds, ambience=scene.ambience))
        graph.save(graph.sample(graph.model, positive, latent))
        graph.save(graph.sample(graph.model, positive, latent, negative=negative))
    made = sounds(server, graph)
    answers = []
    for scene, plain, removed in zip(LAYERED, made[::2], made[1::2], strict=True):
        for before, after in zip(plain, removed, strict=True):
            quieter = noise_level(Sound(before)) - noise_level(Sound(after)) > REMOVED
            answers.append(quieter and follows(after, scene, "pitch") and follows(before, scene, "ambience"))
    check("negative prompt", answers)


def test_resampling_keeps_the_sound_or_follows_the_new_prompt(server, check):
    graph = Studio()
    for attribute in RESAMPLED:
        first, second = SWAPS[attribute]
        old, new = (graph.encode_scene(scene) for scene in (first, second))
        start = graph.sample(graph.model, old, graph.empty(first.seconds))
        for denoise in (LOW_DENOISE, HIGH_DENOISE):
            graph.save(graph.sample(graph.model, new, start, seed=100, denoise=denoise))
    made = sounds(server, graph)
    pairs = list(zip(RESAMPLED, made[::2], made[1::2], strict=True))
    check(
        "low denoise keeps",
        [follows(clip, SWAPS[name][0], name) for name, low, _ in pairs if name in DECIDED_EARLY for clip in low],
    )
    check("high denoise follows", [follows(clip, SWAPS[name][1], name) for name, _, high in pairs for clip in high])


def test_core_ksampler_and_dasheng_sampler_agree(server, check):
    """On what is heard: their schedules differ, and so do the samples."""
    graph = Studio()
    asked = [(name, scene) for name in RESAMPLED for scene in SWAPS[name]]
    for _, scene in asked:
        positive, latent = graph.encode_scene(scene), graph.empty(scene.seconds)
        zero = graph.add("ConditioningZeroOut", conditioning=positive)
        inputs = dict(
            model=graph.model, positive=positive, negative=zero, latent_image=latent, seed=0, steps=25, cfg=5.0
        )
        graph.save(graph.sample(graph.model, positive, latent))
        graph.save(graph.add("KSampler", **inputs, sampler_name="euler", scheduler="simple", denoise=1.0))
    made = sounds(server, graph)
    takes = [
        (heard(ours, name), heard(core, name), stated_attributes(scene)[name])
        for (name, scene), all_ours, all_core in zip(asked, made[::2], made[1::2], strict=True)
        for ours, core in zip(all_ours, all_core, strict=True)
    ]
    check("KSampler", [core == wanted for _, core, wanted in takes])
    check("KSampler and Dasheng Sampler", [ours == core for ours, core, _ in takes])


def test_easy_cache_stays_near_the_full_result(server):
    graph = Studio()
    scene = SWAPS["pitch"][0]
    cached = graph.add(
        "EasyCache", model=graph.model, reuse_threshold=0.1, start_percent=0.15, end_percent=0.95, verbose=False
    )
    for i, model in enumerate((graph.model, cached)):
        latent = graph.sample(model, graph.encode_scene(scene), graph.empty(scene.seconds), steps=30)
        graph.add("SaveLatent", samples=latent, filename_prefix=f"{i}")
        graph.save(latent)
    result = run(server, graph)
    (skipped,) = re.findall(r"skipped (\d+)/30 steps", server.log.read_text("utf-8", "replace"))[-1:]
    assert 3 <= int(skipped) < 26
    full, near = result.latents()
    assert 0 < (near - full).norm() / full.norm() < CACHED
    clips = [samples[:, 0].numpy() for samples, _ in result.audio()]
    assert [heard(clip, "pitch") for clip in clips] == ["low"] * len(clips)


def test_it_is_an_ordinary_checkpoint_of_at_most_12_mb():
    """Names of tensors and config keys are the golden checkpoint's, which are the published ones."""
    files = [
        *SMALL.glob("*.safetensors"),
        *(file for part in MODEL_FOLDERS.values() for file in (SMALL / part).iterdir()),
    ]
    assert 8e6 <= sum(file.stat().st_size for file in files) <= 12e6
    assert (SMALL / "README.md").exists()
    for part in MODEL_FOLDERS.values():
        ours, published = (
            {re.sub(r"\.\d+\.", ".N.", name) for name in load_file(folder / part / "model.safetensors")}
            for folder in (SMALL, GOLDEN / "tiny")
        )
        assert ours <= published
        ours, published = (
            json.loads((folder / part / "config.json").read_text("utf-8")) for folder in (SMALL, GOLDEN / "tiny")
        )
        assert set(ours) <= set(published)
