"""``dasheng batch`` in one process: each scene one file and one line, resumed, one run at a time. A stand-in makes most sounds.

What needs Ray is in test_batch_on_ray.py, which ``test_on_ray`` runs.
"""

import errno
import hashlib
import io
import json
import logging
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, stop_command
from dasheng_core import DashengAudioGen, __version__
from dasheng_core.batch import rows, worker
from dasheng_core.batch.cluster import most_clips
from dasheng_core.batch.jobs import Clip
from dasheng_core.batch.manifest import Manifest
from dasheng_core.batch.model import READ_WHOLE, SAMPLE_BYTES, _digest, load_model
from dasheng_core.batch.one_run import NOTE
from dasheng_core.batch.storage import LOCK
from dasheng_core.batch.survey import plan
from dasheng_core.batch.worker import group_clips
from dasheng_core.cli import main
from dasheng_core.cli.arguments import build_parser
from dasheng_core.delivery import audio_file
from dasheng_core.delivery.file_notes import read_about
from dasheng_core.delivery.measures import decibels, loudness
from dasheng_core.progress import progress_bar
from riff import loops_of, markers_of, tags_of
from tools.comfyui import ROOT

SCENES = [
    {"caption": "A cat.", "name": "cat", "seconds": 0.4},
    {"caption": "A dog.", "name": "dog", "seconds": 0.04},
    {"timeline": [[0, "<|caption|> Rain."], [0.1, "<|caption|> Wind."]], "name": "sky", "seconds": 0.2, "seed": 9},
    {"caption": "A bell.", "name": "bell", "seconds": 0.2, "takes": 2},
]
FILES = ["bell_1.wav", "bell_2.wav", "cat_1.wav", "dog_1.wav", "sky_1.wav"]
FOUR = [{"caption": f"clip {i}", "seconds": 0.2, "name": f"{i}"} for i in range(4)]
UNREADABLE = {"caption": "\U0001f642", "seconds": 0.2}
MANIFEST = Path("scenes.manifest.jsonl")
REAL = [
    "--audiogen", str(GOLDEN / "tiny" / "audiogen"), "--text-encoder", str(GOLDEN / "tiny" / "text_encoder"),
    "--audio-tokenizer", str(GOLDEN / "tiny" / "audio_tokenizer"), "--steps", "2",
]  # fmt: skip
# Two sums of one clip in batches of other sizes, in float32; and what 24 bits add to it.
TOLERANCE = 1e-5 + 2**-23


class Noise:
    """In the model's place: noise of each clip's seed, and the sizes of the batches it was asked for."""

    def __init__(self):
        self.sizes = []

    @staticmethod
    def tokenizer(prompts):
        if UNREADABLE["caption"] in prompts[0]:
            raise ValueError("nothing that the model can read")
        return None, torch.ones(len(prompts), 8)

    def generate(self, prompts, seed, duration, **options):
        self.sizes.append(len(prompts))
        each = [torch.Generator().manual_seed(number) for number in seed]
        return torch.stack([0.1 * torch.randn(round(duration * 16000), generator=one) for one in each])


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = Noise()
    monkeypatch.setattr(worker, "load_model", lambda args: noise)
    write(SCENES)
    return noise


@pytest.fixture
def real(monkeypatch, model):
    monkeypatch.setattr(worker, "load_model", load_model)


def write(scenes: list[dict]) -> str:
    Path("scenes.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes))
    return "scenes.jsonl"


def batch(*options: str, seed: str = "3", output: str = "out/{name}_{take}.wav", audiogen: str = "nowhere") -> int:
    seeded = ["--seed", seed] if seed else []
    return main(["batch", "scenes.jsonl", "--audiogen", audiogen, "-o", output, *seeded, *options])


def lines(path: Path = MANIFEST) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def contents(folder: str = "out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def sound(path: Path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


# ---- what becomes of each scene


def test_names_seeds_and_sounds_are_those_of_generate_in_fewer_evaluations(real, monkeypatch):
    write([{**scene, "caption": "A cat meowing softly."} for scene in SCENES if "timeline" not in scene])
    sizes, whole = [], DashengAudioGen.generate
    monkeypatch.setattr(
        DashengAudioGen, "generate", lambda self, p, **more: sizes.append(len(p)) or whole(self, p, **more)
    )
    template = "{name}_{take}_{seed}_{index}.flac"
    assert main(["generate", "--prompts", "scenes.jsonl", *REAL, "--seed", "3", "-o", f"one/{template}"]) == 0
    sizes.clear()
    assert main(["batch", "scenes.jsonl", *REAL, "--seed", "3", "-o", f"out/{template}"]) == 0
    assert sorted(sizes) == [1, 1, 2]
    assert sorted(contents("out")) == sorted(contents("one"))
    assert all((sound(Path("out", name)) - sound(Path("one", name))).abs().max() <= TOLERANCE for name in contents())


def test_the_manifest_says_what_became_of_each_clip():
    write([*SCENES, {"sfx": "no caption"}, {"caption": "x", "seconds": 3600}, UNREADABLE])
    assert batch() == 0
    made = {Path(entry["file"]).name: entry for entry in lines()[1:] if "file" in entry}
    assert sorted(made) == FILES == sorted(contents())
    for name, entry in made.items():
        data, about = Path("out", name).read_bytes(), read_about(Path("out", name).read_bytes())
        assert entry["bytes"] == len(data) and entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert about["made_by"] == f"dasheng-audiogen {__version__}"
        assert all(about[key] == entry[key] for key in ("prompt", "seed", "asked", "seconds", "peak", "clipped"))
    cat, heard = made["cat_1.wav"], sound(Path("out/cat_1.wav"))
    assert (cat["scene"], cat["seed"], cat["seconds"], made["sky_1.wav"]["seed"]) == (1, 3, 0.4, 9)
    assert cat["prompt"] == "<|caption|> A cat." and cat["worker"].endswith(f":{os.getpid()}") and cat["took"] >= 0
    assert cat["peak"] == round(decibels(heard.abs().max().item()), 2)
    assert cat["loudness"] == round(loudness(heard[None], 16000), 2)
    assert made["dog_1.wav"]["loudness"] is None, "it is too short"
    errors = {entry["scene"]: entry["error"] for entry in lines()[1:] if "error" in entry}
    assert sorted(errors) == [5, 6, 7]
    assert "scenes.jsonl:5: The caption is empty" in errors[5] and "3600" in errors[6]
    assert "nothing that the model can read" in errors[7]


def test_a_refused_scene_keeps_its_number_free():
    write([FOUR[0], {"sfx": "b"}, FOUR[1]])
    assert batch(output="out/x.flac") == 0 and sorted(contents()) == ["x_001.flac", "x_003.flac"]


@pytest.mark.parametrize("scene", [{"sfx": "b"}, UNREADABLE], ids=["planned", "read"])
def test_strict_ends_at_the_first_scene_that_cannot_be_made(scene, caplog):
    caplog.set_level(logging.INFO)
    write([scene, FOUR[0]])
    assert batch("--strict") == 1
    planned = "sfx" in scene
    assert ("scenes.jsonl:1: The caption is empty" in caplog.text) is planned
    assert "leave --strict out" in caplog.text and ("with --resume makes the others" in caplog.text) is not planned
    assert not Path("out").exists()
    assert batch("--resume") == 0 and sorted(contents()) == ["0_1.wav"]
    assert ("--resume tries what failed once more" in caplog.text) is not planned


def test_a_sound_that_fails_in_company_is_found_and_the_others_are_made(monkeypatch, model):
    write(FOUR)
    whole = model.generate

    def fail(prompts, **more):
        if any("2" in prompt for prompt in prompts):
            raise ValueError("not numbers")
        return whole(prompts, **more)

    monkeypatch.setattr(model, "generate", fail)
    assert batch() == 0 and sorted(contents()) == ["0_1.wav", "1_1.wav", "3_1.wav"]
    (error,) = [entry for entry in lines() if "error" in entry]
    assert error["scene"] == 3 and error["error"] == "not numbers" and "file" not in error


def test_only_the_sound_that_cannot_be_written_fails(monkeypatch, model):
    """Of one evaluation, one sound is spoilt, and the files of two have appeared: a worker lost from sight made one of them."""
    write(FOUR)
    assert batch("--manifest", "lost.jsonl", output="lost/{name}_{take}.wav") == 0
    whole = model.generate

    def spoil(prompts, **more):
        made = whole(prompts, **more)
        made[0] = torch.nan
        Path("out").mkdir(exist_ok=True)
        shutil.copy("lost/1_1.wav", "out/1_1.wav")
        soundfile.write("out/3_1.wav", [0.5] * 320, 16000)
        return made

    monkeypatch.setattr(model, "generate", spoil)
    assert batch() == 0 and model.sizes == [4, 4]
    bad, found, good, other = sorted(lines()[1:], key=lambda entry: entry["scene"])
    assert "The sound for out/0_1.wav" in bad["error"]
    assert "out/3_1.wav is there and is not the sound of this scene" in other["error"]
    before = {entry["scene"]: entry for entry in lines(Path("lost.jsonl"))[1:]}
    assert good["asked"] == before[3]["asked"]
    assert all(found[key] == before[2][key] for key in ("asked", "seconds", "sha256", "peak"))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([], "scenes.manifest.jsonl is there: go on with that run by --resume"),
        (["--manifest", "new"], "out/0_1.wav is already there: choose another name"),
        (["--resume", "--seed", "4"], "is of a run whose seed was 3, not 4"),
        (["--resume", "--zero-star"], "is of a run whose zero_star was False, not True"),
        (["--resume", "-o", "x.wav"], "is of a run whose output was out/{name}_{take}.wav, not x.wav"),
        (["--manifest", "new", "-o", "{nme}.wav"], "{nme} is not one of the fields"),
        (["--manifest", "new", "-o", "{seed}.wav"], "Clips 1 and 2 would both be written to 3.wav"),
        (["--manifest", "new", "-o", "s3://bucket/{name}.wav"], "s3://bucket needs pyarrow: pip install"),
        (["--manifest", "new", "-o", "a{index}.wav", "--ray", "local"], "--ray needs Ray, which is not installed"),
        (["--manifest", "new", "--batch-frames", "0"], "--batch-frames is 0, expected a whole number from 1"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(options, sentence, caplog):
    write(FOUR[:1])
    assert batch() == 0
    write(FOUR[:2])
    assert batch(*options) == 1
    assert sentence in caplog.text
    assert sorted(contents()) == ["0_1.wav"] and not Path("new").exists()


def test_scenes_are_read_one_by_one(monkeypatch):
    write(FOUR[:1] * 20_000)
    reader = plan(build_parser().parse_args(["batch", "scenes.jsonl", "-o", "{index}.wav"]), 3)
    with open("scenes.jsonl", "rb") as file:
        monkeypatch.setattr(rows, "open_binary", lambda name: nullcontext(file))
        assert next(reader).prompt == "<|caption|> clip 0"
        assert file.tell() < 20_000, "of 1,000,000 bytes"


def test_groups_are_of_one_length_and_of_like_texts():
    sizes = {Clip(i, "", 0, None, ""): size for i, size in enumerate([(5, 3), (7, 1), (5, 1), (5, 2), (9, 1), (5, 9)])}

    def groups(sizes, most):
        return [[clip.scene for clip in group] for group in group_clips(sizes, most)]

    assert groups(sizes, 15) == [[2, 3, 0], [5], [1], [4]]
    away = {replace(clip, negative="x" if clip.scene in (2, 5) else None): size for clip, size in sizes.items()}
    assert groups(away, 15) == [[3, 0], [2, 5], [1], [4]], "all of a group have a negative, or none"
    assert [len(group) for group in groups(sizes, 1)] == [1] * 6, "a clip longer than a batch is made alone"


def test_a_gpu_gets_full_batches_of_estimated_lengths():
    """Of 2 to 10 seconds. A processor does not read so many texts before its first clip."""
    draw, filled = random.Random(3), {}
    for device in ("cpu", "cuda"):
        chunk = most_clips(build_parser().parse_args(["batch", "x", "-o", "y", "--device", device]))
        sizes = {Clip(i, "", 0, None, ""): (draw.randint(50, 250), 30) for i in range(chunk)}
        filled[device] = chunk / len(list(group_clips(sizes, 2500)))
    assert filled["cuda"] > 4 > 1.5 > filled["cpu"]


def test_the_size_of_a_pool(capsys):
    for size in ("3,1", "0", "x", "1,", "1,2,3"):
        with pytest.raises(SystemExit):
            batch("--workers", size)
        assert f"'{size}' is no number of workers" in capsys.readouterr().err
    read = lambda size: build_parser().parse_args(["batch", "x", "-o", "y", "--workers", size]).workers  # noqa: E731
    assert [read("3"), read("1,64")] == [(3, 3), (1, 64)]


@pytest.mark.parametrize("suffix, clipped", [("flac", 3), ("wav", 0)])
def test_peaks_are_those_before_the_file_clips_them(suffix, clipped, monkeypatch, model, caplog):
    loud = torch.full((3200,), 0.01)
    loud[5:8] = torch.tensor([1.5, -2.0, 1.01])
    monkeypatch.setattr(model, "generate", lambda prompts, **options: loud.expand(len(prompts), -1))
    write(FOUR[:2])
    output = "out/{index}." + suffix
    assert batch(output=output) == 0
    head = MANIFEST.read_text().splitlines(True)[0]
    assert {(line["peak"], line["clipped"]) for line in lines()[1:]} == {(6.02, clipped)}
    assert ("2 clips pass full scale and are clipped" in caplog.text) == bool(clipped)
    # A run that died before it wrote the lines: the files know it.
    MANIFEST.write_text(head)
    assert batch("--resume", output=output) == 0
    assert {(line["peak"], line["clipped"]) for line in lines()[1:]} == {(6.02, clipped)}


def test_loop_points_and_markers_are_in_every_file():
    for suffix in ("wav", "flac"):
        assert batch("--loop", "--manifest", f"{suffix}.jsonl", output=suffix + "/{name}_{take}." + suffix) == 0
    assert loops_of(Path("wav/sky_1.wav")) == [(0, 3199)]
    assert markers_of(Path("wav/sky_1.wav")) == [(0, "Rain."), (1600, "Wind.")]
    tags = tags_of(Path("flac/sky_1.flac"))
    assert (tags["LOOPSTART"], tags["LOOPLENGTH"]) == ("0", "3200")
    assert [tags[f"CHAPTER00{i}"] for i in (0, 1)] == ["00:00:00.000", "00:00:00.100"]
    assert tags["CHAPTER001NAME"] == "Wind."
    assert json.loads(tags["COMMENT"])["prompt"]["entries"][1] == [0.1, "<|caption|> Wind."]
    assert batch("--manifest", "plain.jsonl", output="plain/{name}_{take}.flac") == 0
    assert list(tags_of(Path("plain/cat_1.flac"))) == ["COMMENT"]


def test_notes_that_no_flac_can_hold_are_refused_and_no_file_breaks_their_reader():
    # In the comment's JSON a letter of another script takes six bytes; the line itself is not too long to be read.
    Path("scenes.jsonl").write_text('{"caption": "%s", "seconds": 0.04, "name": "a"}' % ("é" * 2**22), "utf-8")
    assert batch(output="out/{name}.flac") == 1
    assert "expected less than 16 MB" in lines()[1]["error"] and not Path("out").exists()
    for data in (b"", b"fLaCCOMMENT=", b"INFOICMT", b"INFOICMT\xff\xff\xff\xff[" + b"[" * 99_999, b"COMMENT={}"):
        assert read_about(data) == {}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_a_line_a_minute_in_a_log(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("dasheng_core.progress.LINE_SECONDS", 0)
    assert batch() == 0
    said = [line for line in caplog.messages if line.startswith("batch: ")]
    assert len(said) == 5
    assert re.fullmatch(r"batch: 3 of 5 clips, 3 made, 0 failed, \S+ per minute, 00:\d\d left", said[2])
    stderr = Terminal()
    write([FOUR[0], UNREADABLE, FOUR[1]])
    monkeypatch.setattr("sys.stderr", stderr)
    # Each step is shown, however quick; and the handler of the command line writes to what is stderr here.
    monkeypatch.setattr("dasheng_core.cli.batch.progress_bar", partial(progress_bar, mininterval=0))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    started = time.monotonic()
    assert batch("--manifest", "new") == 0
    least = 3 * 60 / (time.monotonic() - started)
    said = stderr.getvalue().split("\r")
    bar = [part for part in said if "|" in part][-1]
    pace = re.search(r"batch, 2 made, 1 failed, ([\d.e+]+) per minute, 00:00 left \|.*\| 3/3", bar)
    assert float(pace[1]) > 0.9 * least
    (warned,) = [part for part in said if "nothing that the model can read" in part]
    assert warned.startswith("scenes.jsonl:2: "), "it stands above the bar, on a line of its own"


# ---- resumed


def whole_run(scenes: list[dict], output: str) -> dict[str, bytes]:
    """The files of an undisturbed run of these scenes."""
    before = Path("scenes.jsonl").read_bytes()
    write(scenes)
    assert batch("--manifest", "undisturbed/m.jsonl", output=f"undisturbed/{output}") == 0
    found = contents("undisturbed/out")
    shutil.rmtree("undisturbed")
    Path("scenes.jsonl").write_bytes(before)
    return found


def changed(number: int, **keys) -> list[dict]:
    return [{**scene, **keys} if i == number else scene for i, scene in enumerate(SCENES)]


def put(name: str, data: bytes | Callable[[bytes], bytes], forget: bool = False) -> Callable[[], None]:
    """Something else under a file's name; ``forget``: no line of the manifest knows it."""

    def change() -> None:
        path = Path("out", name)
        path.write_bytes(data(path.read_bytes()) if callable(data) else data)
        if forget:
            MANIFEST.write_text("".join(line for line in MANIFEST.read_text().splitlines(True) if name not in line))

    return change


# What was changed after a run, and what the next one says. Then what is asked for, and the naming template.
DIFFERENT = {
    "caption": (changed(0, caption="A cow."), None, "its prompt was '<|caption|> A cat.' and is '<|caption|> A cow.'"),
    "seed": (changed(0, seed=9), None, "its seed was 3 and is 9"),
    "seconds": (changed(0, seconds=0.2), None, "its length was 0.4 s and is 0.2 s"),
    "negative": (changed(0, negative="<|caption|> A dog."), None, "its negative was none and is "),
    "timeline": (changed(2, timeline=SCENES[2]["timeline"][:1]), None, "(scenes.jsonl:3): its prompt was "),
    "row": ([{"caption": "New.", "seconds": 0.04}, *SCENES], "out/{index}.wav", "5 scenes differ from what was made"),
    "empty": (SCENES, put("cat_1.wav", b""), "it has 0 bytes, and "),
    "noise": (SCENES, put("cat_1.wav", lambda data: os.urandom(len(data))), "those that were written (another sha256)"),
    "unknown empty": (SCENES, put("cat_1.wav", b"", True), "neither the manifest nor its own comment"),
    "another": (SCENES, put("cat_1.wav", lambda data: Path("out/bell_1.wav").read_bytes(), True), "neither the manif"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_is_there_is_what_was_asked(case, caplog, model):
    """A change is named, nothing is touched; --check finds it too; --remake gives what an undisturbed run gives."""
    scenes, how, sentence = DIFFERENT[case]
    output = how if isinstance(how, str) else "out/{name}_{take}.wav"
    assert batch(output=output) == 0
    if callable(how):
        how()
    write(scenes)
    before, text, asked = contents(), MANIFEST.read_bytes(), [*model.sizes]
    for option in ("--resume", "--check"):
        assert batch(option, output=output) == 1
        assert model.sizes == asked and contents() == before and MANIFEST.read_bytes() == text
    assert sentence in caplog.text and (
        case in ("row", "timeline") or "out/cat_1.wav (scenes.jsonl:1): " in caplog.text
    )
    expected = whole_run(scenes, output)
    assert batch("--remake", output=output) == 0
    assert expected.items() <= contents().items()
    asked = [*model.sizes]
    assert batch("--resume", output=output) == 0 and batch("--check", output=output) == 0 and model.sizes == asked


def test_check_names_and_counts_what_is_missing(caplog):
    caplog.set_level(logging.INFO)
    assert batch() == 0 and batch("--check") == 0
    assert "5 clips are there, and each is what was made." in caplog.text
    Path("out/cat_1.wav").unlink()
    put("dog_1.wav", b"")()
    put("bell_1.wav", lambda data: data, forget=True)()
    write([*SCENES, {"captoin": "A cat."}])
    assert batch("--check") == 1
    for said in (
        "Of 5 clips 2 are missing or are in no line of the manifest",
        "out/cat_1.wav (scenes.jsonl:1): it is missing",
        "out/bell_1.wav (scenes.jsonl:4): no line of the manifest says that it is made",
        "scenes.jsonl:5: unknown key 'captoin'",
        "and 1 differ from what was made",
    ):
        assert said in caplog.text
    assert sorted(contents()) == sorted({*FILES} - {"cat_1.wav"})


@pytest.mark.parametrize("left", ["head", "empty", "half a head", "nothing"])
def test_files_of_a_killed_run_that_no_line_knows_say_themselves_what_they_are(left, model, caplog):
    """The run died before it wrote their lines down; in the later cases even before the head."""
    assert batch() == 0
    whole, text, known = contents(), lines(), [*model.sizes]
    head = json.dumps(text[0]) + "\n"
    MANIFEST.unlink()
    if left != "nothing":
        MANIFEST.write_text({"head": head, "empty": "", "half a head": head[:20]}[left])
    if left != "head":
        assert batch("--resume", seed="") == 1
        there = "is not there" if left == "nothing" else "says nothing of a run"
        assert f"There is no run to resume from, since scenes.manifest.jsonl {there}" in caplog.text
    assert batch("--resume") == 0
    assert model.sizes == known and contents() == whole and lines()[0] == text[0]
    measured = {(line["file"], line["sha256"], line["peak"], line["loudness"]) for line in text[1:]}
    assert {(line["file"], line["sha256"], line["peak"], line["loudness"]) for line in lines()[1:]} == measured


def test_a_drawn_seed_is_resumed_and_nothing_is_loaded_for_nothing(monkeypatch):
    write([FOUR[0], {"sfx": "no caption"}])
    assert batch(seed="") == 0
    before, text = contents(), MANIFEST.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(worker, "load_model", None)
        assert batch("--resume", seed="") == 0
    assert MANIFEST.read_bytes() == text, "a refusal is written down once"
    Path("out/0_1.wav").unlink()
    assert batch("--resume", seed="") == 0 and contents() == before


def test_a_manifest_of_the_first_form_is_read(model, caplog):
    assert batch() == 0
    new = ("manifest", "version", "model", "asked", "bytes", "sha256", "clipped")
    text = [{key: value for key, value in line.items() if key not in new} for line in lines()]
    del text[0]["settings"]["zero_star"]
    MANIFEST.write_text("".join(json.dumps(line) + "\n" for line in text))
    known = sum(model.sizes)
    assert batch("--resume") == 0 and batch("--check") == 0 and sum(model.sizes) == known
    assert batch("--resume", "--zero-star") == 1 and "whose zero_star was False, not True" in caplog.text
    for case in ("caption", "seed", "seconds"):
        scenes, _, sentence = DIFFERENT[case]
        write(scenes)
        assert batch("--resume") == 1 and sentence in caplog.text
    write(SCENES)
    for data in (b"", Path("out/dog_1.wav").read_bytes(), Path("out/cat_1.wav").read_bytes()[:500]):
        put("cat_1.wav", data)()
        assert batch("--resume") == 1 and "it is not the whole sound that was made" in caplog.text
        caplog.clear()
    assert batch("--remake") == 0 and batch("--check") == 0 and sum(model.sizes) == known + 1


HEADS = [
    {"settings": [], "seed": 1},
    {"settings": {}, "seed": "1"},
    {"settings": {}, "seed": -1},
    {"settings": {}},
    "settings seed",
    {"settings": {}, "seed": 1, "model": [1]},
    {"settings": {}, "seed": 1, "manifest": "x"},
]
LINES = ["5", '{"file": 5}', '{"scene": []}', "[" * 100_000, '{"scene": ', "\0"]


@pytest.mark.parametrize("number, line", [(1, json.dumps(head)) for head in HEADS] + [(7, line) for line in LINES])
def test_what_is_no_line_of_a_manifest_is_named(number, line, caplog):
    if number > 1:
        assert batch() == 0
    with open(MANIFEST, "a") as file:
        file.write(f"{line}\n")
    assert batch("--resume") == 1
    assert f"scenes.manifest.jsonl:{number} is not of a manifest of dasheng batch: name another file" in caplog.text


def test_a_last_line_that_lost_power_is_as_none():
    """The disk knew how long the file was, and not yet what was in its last block."""
    assert batch() == 0
    whole = MANIFEST.read_bytes()
    MANIFEST.write_bytes(whole + bytes(300))
    assert batch("--resume") == 0 and MANIFEST.read_bytes() == whole


def test_a_manifest_of_another_version_is_refused_and_one_that_is_no_file(caplog):
    assert batch() == 0
    newer = MANIFEST.read_text().replace('"manifest": 2, "version": "', '"manifest": 3, "version": "9.\\u001b')
    MANIFEST.write_text(newer)
    assert batch("--resume") == 1
    assert "is of form 3, this version reads up to 2" in caplog.text and "(9.\\x1b" in caplog.text
    os.mkfifo("pipe")
    assert batch("--resume", "--manifest", "pipe") == 1
    assert "pipe cannot be read (it is a pipe, expected a regular file)" in caplog.text


@contextmanager
def full_disk(monkeypatch, first: int, last: float):
    """Of all writes, those of these numbers fail in their middle; counted from 1."""
    count = 0

    def fails() -> bool:
        nonlocal count
        count += 1
        return first <= count <= last

    whole = audio_file.atomic_write

    def atomic_write(path, write, replace=False):
        def half(temporary):
            write(temporary)
            if fails():
                os.truncate(temporary, temporary.stat().st_size // 2)
                raise OSError(errno.ENOSPC, "No space left on device")

        whole(path, half, replace)

    class Full(io.FileIO):
        def write(self, data):
            if fails():
                super().write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    def open_file(path, mode="r", **more):
        return Full(path, mode.replace("b", "")) if "buffering" in more else open(path, mode, **more)

    with monkeypatch.context() as patched:
        patched.setattr(audio_file, "atomic_write", atomic_write)
        patched.setattr("dasheng_core.batch.manifest.open", open_file, raising=False)
        yield lambda: count


@pytest.mark.parametrize("how", ["made", "remade"])
@pytest.mark.parametrize("last", [0, float("inf")], ids=["once", "from there on"])
def test_whichever_write_fails_the_resumed_folder_is_that_of_an_undisturbed_run(monkeypatch, how, last):
    expected = whole_run(SCENES, "out/{name}_{take}.wav")
    options = ["--remake"] if how == "remade" else []
    failed = number = 0
    while failed == number:
        number += 1
        shutil.rmtree("out", ignore_errors=True)
        MANIFEST.unlink(missing_ok=True)
        if options:
            write(changed(0, caption="A cow."))
            assert batch() == 0
            put("dog_1.wav", b"")()
            write(SCENES)
        with full_disk(monkeypatch, number, max(last, number)) as writes:
            code = batch(*options)
        failed += code != 0
        assert (code == 1) == (writes() >= number), number
        assert batch(*(options or ["--resume"])) == 0, number
        assert contents() == expected and not [name for name in contents() if name.startswith(".")], number
        made = [line["file"] for line in lines()[1:]]
        assert sorted(set(made)) == [f"out/{name}" for name in FILES], number
        assert options or len(made) == len(FILES), number
        assert batch("--check") == 0
    # The note of the run, the head, and two for each clip.
    assert number - 1 == (1 + 2 * 2 if options else 2 + 2 * len(FILES))


def with_model(folder: str, *options: str) -> int:
    parts = ["--text-encoder", f"{folder}/text_encoder", "--audio-tokenizer", f"{folder}/audio_tokenizer"]
    return batch(*parts, *options, audiogen=f"{folder}/audiogen")


def test_another_model_is_refused_by_name(caplog, model):
    for name in "ab":
        shutil.copytree(GOLDEN / "tiny", name)
    assert with_model("a") == 0
    head = lines()[0]
    assert (head["manifest"], head["version"]) == (2, __version__)
    Path("out/cat_1.wav").unlink()
    # Other places and times of the same files are the same model.
    assert with_model("b", "--resume") == 0
    known = sum(model.sizes)
    for part in ("audiogen", "text_encoder", "audio_tokenizer"):
        path, option = Path("b", part, "model.safetensors"), part.replace("_", "-")
        tensors = load_file(path)
        max(tensors.values(), key=torch.numel).view(-1)[-1] += 1
        save_file(tensors, path, {"format": "pt"})
        assert with_model("b", "--resume") == 1
        assert f"is of a run whose model of --{option} was {head['model'][option]}, not " in caplog.text
        shutil.copy(GOLDEN / "tiny" / part / "model.safetensors", path)
    assert sum(model.sizes) == known
    # Its files do not lie on this machine: workers on others may have them.
    assert batch("--resume") == 0


def test_a_fingerprint_reads_little_of_a_large_file_and_sees_its_whole_length():
    """8 GB, of which nothing but these bytes is on the disk: reading all would take longer than the suite."""
    Path("a").mkdir()
    path, size = Path("a/model.safetensors"), 2**33
    path.touch()
    os.truncate(path, size)
    seen = {_digest(Path("a"))}
    for place in (0, READ_WHOLE // 64, size - 1, size - SAMPLE_BYTES):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"x")
        seen.add(_digest(Path("a")))
    os.truncate(path, size + 1)
    seen.add(_digest(Path("a")))
    Path("a/config.json").write_text("{}")
    seen.add(_digest(Path("a")))
    assert len(seen) == 7


# ---- stopped


def fails_while_it_stops(*_):
    """As Ray Data, where other threads go on while it shuts down."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("dictionary changed size during iteration") from None
    yield


def does_not_hear(*_):
    """As C code that calls Python."""
    with suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    yield from ({"scene": number, "error": "made no clip"} for number in (1, 2))


def is_stopped_twice(*_):
    """As by ``timeout``; what Ray has to clean up takes seconds."""
    try:
        signal.raise_signal(signal.SIGTERM)
        yield
    finally:
        signal.raise_signal(signal.SIGINT)
        Path("cleaned").touch()


@pytest.mark.parametrize("run, code", [(fails_while_it_stops, 130), (does_not_hear, 130), (is_stopped_twice, 143)])
def test_a_run_stopped_before_its_first_clip_resumes_with_its_seed(run, code, monkeypatch, caplog):
    """On Ray a worker may have written files that the run never heard of: the drawn seed must not be lost."""
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        patched.setattr("dasheng_core.cli.batch.make_here", run)
        assert batch(seed="") == code
    assert caplog.messages[-1] == "Stopped." and "the same command with --resume makes the others" in caplog.text
    assert Path("cleaned").exists() == (run is is_stopped_twice)
    if run is does_not_hear:
        assert [entry["scene"] for entry in lines()[1:]] == [1]
        return
    head = MANIFEST.read_text("utf-8")
    assert len(head.splitlines()) == 1 and batch("--resume", seed="") == 0
    assert MANIFEST.read_text("utf-8").startswith(head) and sorted(contents()) == FILES


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_stopped_and_killed_at_random_loses_and_doubles_nothing(tmp_path, tiny, real):
    """Two runs end in the middle, the third at its end. On Ray, workers die too: test_batch_on_ray.py."""
    scenes = [{"caption": f"Bell {i}.", "seconds": 0.2 + 0.2 * (i % 3), "name": f"{i}", "seed": i} for i in range(30)]
    options = ["batch", str(tmp_path / write(scenes)), *REAL, "-o", str(tmp_path / "out" / "{name}.flac"),
               "--manifest", str(tmp_path / "m.jsonl"), "--batch-frames", "40"]  # fmt: skip
    there = lambda: len(list(Path("out").glob("*.flac")))  # noqa: E731
    for more, stop, code in (([], signal.SIGKILL, -signal.SIGKILL), (["--resume"], signal.SIGINT, 130)):
        moment = there() + random.randint(1, 8)
        returned, errors = stop_command([*options, *more], lambda moment=moment: there() >= moment, stop)
        assert returned == code and "Traceback" not in errors, errors
    made = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.flac")}
    assert len(made) < 30 and main([*options, "--resume"]) == 0
    assert made == {path: path.stat().st_mtime_ns for path in made}
    files = [entry["file"] for entry in lines(Path("m.jsonl"))[1:]]
    assert there() == 30 and sorted(files) == sorted(f"{tmp_path}/out/{i}.flac" for i in range(30))
    for scene in scenes[::7]:
        prompt = f"<|caption|> {scene['caption']}"
        expected = tiny.generate(prompt, num_steps=2, seed=scene["seed"], duration=scene["seconds"])[0]
        assert (sound(Path(f"out/{scene['name']}.flac")) - expected.clamp(-1, 1)).abs().max() <= TOLERANCE


# ---- two runs at once


TWO = """
import json, logging, multiprocessing, os, shutil, sys, time
from pathlib import Path
import torch
from dasheng_core.batch import worker
from dasheng_core.cli import main
from dasheng_core.batch.jobs import Clip
from dasheng_core.batch.manifest import Manifest

class Slow:
    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)
    def generate(self, prompts, seed, duration, **options):
        time.sleep(0.02)
        return torch.stack([torch.full([round(duration * 16000)], number / 100) for number in seed])

worker.load_model = lambda args: Slow()
MANIFEST = Path("scenes.manifest.jsonl")
command = ["batch", "scenes.jsonl", "--audiogen", "nowhere", "-o", "out/{name}_{take}.wav", "--seed", "3", "--batch-frames", "1"]

def killed():
    add = Manifest.add
    Manifest.add = lambda self, entry: os._exit(9) if entry.get("file", "").startswith("out/b1_") else add(self, entry)
    main(command)

def resume(start, name):
    sys.stderr = sys.__stderr__ = open(f"said.{name}", "w")
    for handler in logging.getLogger().handlers:
        handler.setStream(sys.stderr)
    start.wait()
    os._exit(main([*command, "--resume"]))

fork = multiprocessing.get_context("fork")
def run(target, *arguments):
    child = fork.Process(target=target, args=arguments)
    child.start()
    return child

for turn in range(20):
    shutil.rmtree("out", ignore_errors=True)
    MANIFEST.unlink(missing_ok=True)
    first = run(killed); first.join()
    assert first.exitcode == 9 and os.path.exists("out/.dasheng-batch.json"), "its lock is left over"
    start = fork.Event()
    two = [run(resume, start, name) for name in "ab"]
    start.set()
    for child in two:
        child.join()
    codes, said = sorted(child.exitcode for child in two), [Path(f"said.{name}").read_text() for name in "ab"]
    assert codes in ([0, 0], [0, 1]), (codes, said)
    named = ("The folder out is held by another run, process ", "Another run has just taken")
    assert codes[1] == 0 or any(sentence in text for text in said for sentence in named), said
    files = [json.loads(line)["file"] for line in MANIFEST.read_text().splitlines()[1:]]
    assert len(files) == len(set(files)) == 8 == len(os.listdir("out")), (turn, files, said)
    print(*codes, flush=True)
last = run(resume, start, "c"); last.join()
assert last.exitcode == 0
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot fork")
def test_of_two_resumes_at_once_one_is_refused_by_name():
    write([{"caption": f"{i}", "name": f"b{i}", "seconds": 0.04, "seed": i} for i in range(8)])
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", TWO], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    turns = done.stdout.split("\n")[:-1]
    assert len(turns) == 20 and "0 1" in turns, "they never met"


HERE = platform.node()


@pytest.mark.parametrize(
    "note, named",
    [
        ({"host": "far", "pid": 7, "since": "then"}, ", process 7 on far since then: wait"),
        ({"host": "far\x1b\n", "pid": "7" * 500, "since": []}, r"on far\x1b\n since []: wait"),
        ({"host": HERE, "pid": 7, "since": "then"}, None),
        ({"host": HERE, "pid": os.getpid(), "since": "then"}, None),
        (
            [],
            ": wait until it has ended, or choose another -o; if it has ended without releasing it, lift its lock by --b",
        ),
        (b"[" * 4000, ": wait"),
    ],
    ids=["far", "acting", "ended", "own", "no note", "brackets"],
)
def test_a_lock_that_was_left_over(note, named, caplog):
    """That of a process of this machine has ended with it; any other one is lifted by the user alone."""
    Path("out").mkdir()
    Path("out", NOTE).write_bytes(note if isinstance(note, bytes) else json.dumps(note).encode())
    assert batch() == (1 if named else 0)
    if named:
        assert "The folder out is held by another run" in caplog.text and named in caplog.text
        assert not MANIFEST.exists() and Path("out", NOTE).exists()
        assert batch("--break-lock") == 0
    assert sorted(contents()) == FILES


def test_a_run_that_is_going_on_is_not_broken(caplog):
    Path("out").mkdir()
    hold = (
        f"from filelock import FileLock\nlock = FileLock('out/{LOCK}')\nlock.acquire()\nopen('out/{NOTE}', 'w').write("
        '\'{"host": "here", "pid": 5, "since": "then"}\')\nprint("held", flush=True)\ninput()'
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        # With another manifest, too: the folder is held.
        for options in ([], ["--break-lock"], ["--manifest", "other.jsonl"], ["--check"]):
            assert batch(*options) == 1
            assert "The folder out is held by another run, process 5 on here since then: wait" in caplog.text
            caplog.clear()
        assert batch("--manifest", "other.jsonl", output="elsewhere/{name}_{take}.wav") == 0
    finally:
        holder.kill()
        holder.communicate()
    assert sorted(contents()) == [NOTE, LOCK]
    # The process is gone, and so is its lock; its note is of another machine.
    assert batch() == 1 and batch("--break-lock") == 0 and sorted(contents()) == FILES


def test_a_manifest_that_another_program_writes_is_not_written_over(monkeypatch, caplog):
    """As two runs do that have one manifest and, started elsewhere, other folders."""
    add = Manifest.add

    def meanwhile(self, entry):
        add(self, entry)
        with suppress(FileNotFoundError), open(MANIFEST, "a") as file:
            file.write('{"scene": 1, "error": "of another run"}\n')

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "add", meanwhile)
        assert batch() == 1
    assert "scenes.manifest.jsonl was changed by another program meanwhile: end the other run" in caplog.text
    assert batch("--resume") == 0 and sorted(contents()) == FILES


# ---- beside Ray and ComfyUI


def test_nothing_of_ray_is_needed(monkeypatch):
    for name in ("ray", "pyarrow", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    assert batch() == 0 and sorted(contents()) == FILES


@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
@pytest.mark.full
def test_on_ray(tmp_path):
    """Ray in an environment of its own, on top of this one."""
    venv.create(tmp_path / "ray")
    packages = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "ray")})
    # This one may stand on top of others itself.
    Path(packages, "these.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    python = tmp_path / "ray" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "ray[data]"], check=True)
    tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_batch_on_ray.py"]
    result = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "skipped" not in result.stdout, result.stdout[-3000:]


def test_the_script_of_the_page_queues_each_scene_and_resumes(server):
    """docs/batch.md, From ComfyUI, as it stands there, on the first template as it was exported."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "batch.md").read_text("utf-8"), re.S)
    Path("queue_scenes.py").write_text(script, "utf-8")
    scenes = [{"caption": "A rising sweep.", "name": f"sweep {i}", "seed": i} for i in range(3)]
    write([*scenes[:2], {"name": "bad", "caption": ""}, scenes[2]])
    graph = ROOT / "workflows" / "api" / "01 Rain and a voice.json"
    command = [sys.executable, "queue_scenes.py", server.address, str(graph), "scenes.jsonl", "done.txt"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("bad: "), run.stderr
    folder = server.output / "scenes"
    assert sorted(path.name for path in folder.glob("*.wav")) == ["sweep 0_00001.wav", "sweep 1_00001.wav"]
    # The bad line is mended, and a stop came while a name was written: ComfyUI has that sound cached.
    write(scenes)
    Path("done.txt").write_text("sweep 0\nswee")
    assert subprocess.run(command).returncode == 0
    files = sorted(folder.glob("*.wav"))
    assert [path.name for path in files] == [f"sweep {i}_00001.wav" for i in range(3)]
    assert not torch.equal(sound(files[0]), sound(files[2])), "each has its seed"
