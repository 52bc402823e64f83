"""Variations of one sound: aligned, equally loud, within distances of each other; in the library, in files, and as a node."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import GOLDEN
from dasheng_core import DashengAudioGen
from dasheng_core.batch import sets, worker
from dasheng_core.batch.jobs import Clip
from dasheng_core.batch.sets import SetMaker
from dasheng_core.cli import main
from dasheng_core.delivery.measures import loudness, onset_seconds
from dasheng_core.delivery.variations import choose_variations, make_variations
from graphs import Graph
from tools.comfyui import Problem

SECOND = torch.arange(16000) / 16000


def tone(hertz: float, begin: float = 0.1, gain: float = 0.1) -> torch.Tensor:
    """A second with a tone of 0.5 s in it."""
    return gain * torch.sin(6.2832 * hertz * SECOND) * ((SECOND >= begin) & (SECOND < begin + 0.5))


def encode(sound: torch.Tensor) -> torch.Tensor:
    """In the tokenizer's place: a latent ``[1, 2, T]`` that is the kilohertz of a tone, so that distances are known."""
    hertz = torch.fft.rfft(sound[0]).abs().argmax() / sound.shape[-1] * 16000
    return (hertz / 1000).expand(1, 2, 25) * 2**0.5


def spread(values) -> float:
    return max(values) - min(values)


def test_an_onset_is_where_the_level_comes_near_its_highest():
    for begin in (0.0, 0.1, 0.3334):
        for gain in (1e-4, 1.0):
            assert onset_seconds(tone(1000, begin, gain)[None], 16000) == pytest.approx(begin, abs=0.002)
    noise = 0.01 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    assert onset_seconds(noise, 16000) == 0
    assert onset_seconds(noise + tone(500, 0.4)[None], 16000) == pytest.approx(0.4, abs=0.002)
    assert onset_seconds(torch.zeros(1, 100), 16000) is None


def test_a_set_begins_at_one_moment_and_is_equally_loud():
    takes = [tone(1000 + 50 * i, 0.05 + 0.04 * i, 0.02 * (i + 1)) for i in range(8)]
    made = choose_variations(takes, encode, 8, (0.0, 1.0))
    assert made.numbers == [*range(8)] and made.refused == {}
    assert spread([onset_seconds(take[None], 16000) for take in takes]) > 0.2
    assert spread([onset_seconds(sound[None], 16000) for sound in made.sounds]) <= 0.005
    assert spread([loudness(sound[None], 16000) for sound in made.sounds]) <= 0.01
    median = sorted(loudness(take[None], 16000) for take in takes)[3:5]
    assert median[0] < loudness(made.sounds[0][None], 16000) < median[1]


def test_distances_are_kept_and_no_take_is_drawn_without_need():
    kilohertz = [3.0, 1.1, 1.104, 1.2, 1.3, 1.65, 1.4, 9.9]
    drawn = []
    takes = (drawn.append(k) or tone(1000 * k) for k in kilohertz)
    made = choose_variations(takes, encode, 4, (0.01, 0.4))
    # The third is the middle of the first four: the first is far from it, and the second too alike.
    assert made.numbers == [2, 3, 4, 6] and drawn == kilohertz[:7]
    assert {number: why.split(" (")[0] for number, why in made.refused.items()} == {
        0: "too far", 1: "too alike", 5: "too far"
    }  # fmt: skip
    expected = torch.tensor([[abs(kilohertz[i] - kilohertz[k]) for i in made.numbers] for k in made.numbers])
    # The mean differs, the deviation does not: over both, a channel's difference is divided by the root of 2.
    assert torch.allclose(made.distances, expected, atol=0.002)


def test_silent_takes_are_left_out_however_many():
    takes = [torch.zeros(16000), torch.zeros(16000), tone(1000), tone(1100), tone(1200)]
    made = choose_variations(takes, encode, 3, (0.0, 1.0))
    assert made.numbers == [2, 3, 4] and {*made.refused} == {0, 1} and made.refused[0].startswith("silent")
    assert loudness(made.sounds[0][None], 16000) == pytest.approx(loudness(tone(1000)[None], 16000), abs=0.05)


def test_a_take_that_loses_its_onset_when_it_is_moved_is_left_out():
    """Its loudest part, at its end, is cut; beside what is left, the faint part before its onset counts."""
    swelling = (0.3 + 0.7 * (SECOND >= 0.1) + (SECOND >= 0.9)) * 0.1 * torch.sin(6283.2 * SECOND)
    takes = [tone(1000, 0.4), tone(1050, 0.4), swelling, tone(1100, 0.4)]
    made = choose_variations(takes, encode, 3, (0.0, 1.0))
    assert made.numbers == [0, 1, 3] and "does not begin with the others" in made.refused[2]


def test_what_is_pushed_over_the_edge_of_a_loop_comes_in_at_the_other():
    noise = 0.02 * torch.randn(16000, generator=torch.Generator().manual_seed(1))
    takes = [tone(1000, begin) + noise for begin in (0.1, 0.2, 0.3)]
    for take, sound in zip(takes, choose_variations(takes, encode, 3, (0.0, 1.0), loop=True).sounds, strict=True):
        gain = sound.square().mean().sqrt() / take.square().mean().sqrt()
        assert torch.allclose((sound / gain).sort().values, take.sort().values, atol=1e-5)


@pytest.mark.parametrize(
    "takes, apart, said",
    [
        (
            [tone(1000)] * 9,
            (0.01, 1.0),
            "Of 9 takes 1 lie from 0.01 to 1 apart, expected 3 (take 2 is too alike (0.000",
        ),
        ([tone(1000 * k) for k in (1, 2, 3)], (0.0, 0.5), "Of 3 takes 1 lie from 0 to 0.5 apart, expected 3"),
        ([torch.zeros(16000)] * 3, (0.0, 1.0), "All of the first 3 takes are silent"),
        ([tone(1000, gain=1e-5)] * 3, (0.0, 1.0), "All of the first 3 takes are silent"),
        ([tone(1000)] * 3, (0.0, float("nan")), "A distance is nan"),
        ([tone(1000)[:3000]] * 3, (0.0, 1.0), "too short for a loudness"),
    ],
    ids=["alike", "far", "silent", "faint", "no number", "short"],
)
def test_where_there_is_no_set_it_is_said(takes, apart, said):
    with pytest.raises(ValueError) as error:
        choose_variations(takes, encode, 3, apart)
    assert said in str(error.value)


PROMPT = "<|caption|> A cat meowing softly."


def test_the_library_draws_the_seeds_from_the_first_one(tiny):
    options = {"num_steps": 2, "duration": 0.6}
    made = make_variations(tiny, PROMPT, 3, 5, (0.0, 1000.0), together=2, **options)
    assert made.numbers == [0, 1, 2]
    takes = tiny.generate(PROMPT, takes=3, seed=5, **options)
    again = choose_variations(takes, tiny.encode, 3, (0.0, 1000.0))
    assert torch.allclose(made.sounds, again.sounds, atol=1e-4 * float(again.sounds.abs().max()))
    # Every take is too far from another: four times three are drawn, and no more.
    with pytest.raises(ValueError, match="Of 12 takes 1 lie from 0 to 0 apart"):
        make_variations(tiny, PROMPT, 3, 5, (0.0, 0.0), **options)


# ---- files


class Tones:
    """In the model's place: of each seed a tone of its own, every third of them far from the others."""

    encode = staticmethod(encode)

    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)

    @staticmethod
    def generate(prompts, seed, **options):
        return torch.stack(
            [tone(1000 + 50 * number + 3000 * (number % 3 == 0), 0.01 * (number % 7)) for number in seed]
        )


@pytest.fixture
def tones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "load_model", lambda args: Tones())


def write(*scenes: dict) -> None:
    Path("steps.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes))


def batch(*options: str, output: str = "out/{name}_{take}.wav", scenes: str = "steps.jsonl") -> int:
    return main(["batch", scenes, "--audiogen", "nowhere", "-o", output, "--seed", "2", *options])


def lines() -> list[dict]:
    return [json.loads(line) for line in Path("steps.manifest.jsonl").read_text("utf-8").splitlines()][1:]


STEPS = {"caption": "A step.", "name": "step", "seconds": 1, "variations": 4}


def test_a_line_becomes_a_set_of_files_and_each_is_made_again_as_it_was(tones):
    write(STEPS, {"caption": "A dog.", "name": "dog", "seconds": 1})
    assert batch() == 0
    of_set = [line for line in lines() if "of" in line]
    assert [(line["file"], line["variation"], line["of"]) for line in of_set] == [
        (f"out/step_{take}.wav", take, 4) for take in (1, 2, 3, 4)
    ]
    # Seeds 3 and 6 are far from the others.
    assert [line["seed"] for line in of_set] == [2, 4, 5, 7]
    assert spread([line["loudness"] for line in of_set]) <= 0.02
    before = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert len(before) == 5
    sounds = [
        torch.from_numpy(soundfile.read(f"out/step_{take}.wav", dtype="float32")[0])[None] for take in (1, 2, 3, 4)
    ]
    assert spread([onset_seconds(sound, 16000) for sound in sounds]) <= 0.005
    # A killed run: a file is missing, and another has no line.
    Path("out/step_3.wav").unlink()
    kept = Path("steps.manifest.jsonl").read_text("utf-8").splitlines(keepends=True)
    Path("steps.manifest.jsonl").write_text("".join(line for line in kept if "step_2" not in line), "utf-8")
    assert batch("--resume") == 0
    assert {path: path.read_bytes() for path in Path("out").iterdir()} == before
    assert [(line["file"], line["seed"]) for line in lines()[-2:]] == [("out/step_2.wav", 4), ("out/step_3.wav", 5)]
    assert batch("--check") == 0
    # With other bounds they are other sounds.
    assert batch("--resume", "--apart", "0", "10") == 1


@pytest.mark.parametrize(
    "keys, output, said",
    [
        ({"takes": 2}, "out/{take}.wav", "takes and variations are two ways"),
        ({"variations": 1}, "out/{take}.wav", "variations is 1, expected a whole number from 2 to 64"),
        ({"variations": "8"}, "out/{take}.wav", 'variations is "8", expected a whole number'),
        ({}, "out/{seed}.wav", "variations have no {seed} in their names"),
        ({"variations": 40}, "out/{take}.wav", "lie from 0.005 to 0.5 apart, expected 40"),
    ],
)
def test_what_is_no_set_is_refused_by_its_line(keys, output, said, tones, caplog):
    write({**STEPS, **keys})
    assert batch(output=output) == 1
    assert said in caplog.text


def test_a_table_has_a_column_of_variations(tones):
    Path("steps.csv").write_text("caption;name;seconds;variations\nA step.;step;1;4,0\nA dog.;dog;1;\n")
    assert batch(scenes="steps.csv") == 0
    assert sorted(path.stem for path in Path("out").iterdir()) == ["dog_1", "step_1", "step_2", "step_3", "step_4"]


def test_generate_and_batch_make_one_set(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write({**STEPS, "caption": "A cat meowing softly.", "seconds": 0.6, "variations": 3})
    parts = ("audiogen", "text_encoder", "audio_tokenizer")
    files = [part for name in parts for part in (f"--{name.replace('_', '-')}", str(GOLDEN / "tiny" / name))]
    options = [*files, "--steps", "2", "--seed", "5", "--apart", "0", "1000"]
    assert main(["generate", "--prompts", "steps.jsonl", "-o", "one/{name}_{take}.wav", *options]) == 0
    assert main(["batch", "steps.jsonl", "-o", "out/{name}_{take}.wav", *options]) == 0
    assert main(["remake", "one/step_1.wav", *options[:6]]) == 1
    assert "it is one of a set of variations" in caplog.text
    for take in (1, 2, 3):
        one, other = (
            torch.from_numpy(soundfile.read(f"{folder}/step_{take}.wav", dtype="float32")[0])
            for folder in ("one", "out")
        )
        assert (one - other).abs().max() <= 1e-4 * one.abs().max()


# ---- the node


def test_the_node_chooses_of_a_batch_and_says_what_it_left_out(server, tiny: DashengAudioGen):
    graph = Graph()
    model, clip, vae = graph.loaders()
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.6, batch_size=4)
    takes = graph.add(
        "DashengDecode",
        vae=vae,
        latent=graph.sample(model, graph.encode(clip, PROMPT), latent, steps=2, seed=5, noise="steady"),
    )
    options = {"count": 3, "least_distance": 0.0, "most_distance": 10.0}
    made = graph.add("DashengVariations", audio=takes, vae=vae, **options)
    graph.add("SaveAudio", audio=made, filename_prefix="variations/set")
    graph.add("PreviewAny", source=made(1))
    said = json.dumps(server.run(graph.nodes))
    assert "3 of 4 takes" in said and "take\\tseed\\tleast\\tlargest" in said
    assert [f"{number}\\t{seed}\\t" in said for number, seed in ((1, 5), (2, 6), (3, 7))] == [True] * 3
    # Too many are asked for, and none is near enough.
    graph.nodes[made(0)[0]]["inputs"]["count"] = 5
    with pytest.raises(Problem, match="audio has 4 takes, expected at least 5"):
        server.run(graph.nodes)
    graph.nodes[made(0)[0]]["inputs"] |= {"count": 4, "most_distance": 0.0}
    with pytest.raises(Problem, match="Of 4 takes 1 lie from 0 to 0 apart, expected 4"):
        server.run(graph.nodes)


def test_a_set_that_cannot_be_made_is_drawn_once_for_all_its_clips(monkeypatch):
    drawn = []

    def none(model, prompt, count, seed, *more, **options):
        drawn.append(seed)
        raise ValueError("no set")

    monkeypatch.setattr(sets, "make_variations", none)
    maker = SetMaker((0.005, 0.5))
    for number, seed in enumerate((5, 5, 5, 6), start=1):
        clip = Clip(number // 4, "<|caption|> A knock.", seed, 1.0, "", take=number, takes=3, is_set=True)
        with pytest.raises(ValueError, match="no set"):
            maker.make(None, clip, 8, {})
    assert drawn == [5, 6]
