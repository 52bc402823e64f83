"""``dasheng batch`` in one process; what needs Ray is in test_batch_on_ray.py, which the last test here runs."""

import io
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import GOLDEN, small_disk, stop_command
from dasheng_core import DashengAudioGen
from dasheng_core.batch import rows
from dasheng_core.batch.jobs import Clip
from dasheng_core.batch.survey import plan
from dasheng_core.batch.worker import group_clips
from dasheng_core.cli import main
from dasheng_core.cli.arguments import build_parser
from dasheng_core.delivery.measures import decibels, loudness
from dasheng_core.progress import progress_bar
from tools.comfyui import ROOT

FOLDER = GOLDEN / "tiny"
FILES = [
    "--audiogen", str(FOLDER / "audiogen"), "--text-encoder", str(FOLDER / "text_encoder"),
    "--audio-tokenizer", str(FOLDER / "audio_tokenizer"), "--steps", "2",
]  # fmt: skip
SCENES = [
    {"caption": "A cat meowing softly.", "name": "cat", "seconds": 0.4, "takes": 2},
    {"caption": "Thunder rolls, and a dog barks at it for a long time.", "name": "storm", "seconds": 0.4, "seed": 9},
    {"caption": "Rain."},
    {"caption": "A bell rings.", "name": "bell", "seconds": 0.2},
]
# Two sums of one clip in batches of other sizes, in float32; and what 24 bits add to it.
TOLERANCE, STEP = 1e-5, 2**-23


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(scenes: list[dict], path: str = "scenes.jsonl") -> str:
    Path(path).write_text("".join(json.dumps(scene) + "\n" for scene in scenes))
    return path


def batch(*options: str, scenes: str = "scenes.jsonl") -> int:
    options = options if "-o" in options else ("-o", "out/{name}_{take}.flac", *options)
    return main(["batch", scenes, *FILES, "--seed", "3", *options])


def manifest(path: str = "scenes.manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()][1:]


def sounds(folder: str) -> dict[str, torch.Tensor]:
    return {path.name: torch.from_numpy(soundfile.read(path)[0]) for path in sorted(Path(folder).iterdir())}


def check_same(made: dict, expected: dict, tolerance: float = TOLERANCE + STEP) -> None:
    assert made.keys() == expected.keys()
    for name, sound in made.items():
        assert (sound - expected[name]).abs().max() <= tolerance, name


def evaluations(monkeypatch, change=lambda sounds: sounds) -> list[int]:
    """The sizes of the batches evaluated from now on; ``change`` may spoil what they make."""
    sizes, whole = [], DashengAudioGen.generate

    def generate(self, prompts, **more):
        sizes.append(len(prompts))
        return change(whole(self, prompts, **more))

    monkeypatch.setattr(DashengAudioGen, "generate", generate)
    return sizes


@pytest.mark.parametrize("suffix, tolerance", [("wav", TOLERANCE), ("flac", TOLERANCE + STEP)])
def test_names_seeds_and_sounds_are_those_of_generate_in_fewer_evaluations(monkeypatch, suffix, tolerance):
    write(SCENES)
    template = "{name}_{take}_{seed}_{index}." + suffix
    assert main(["generate", "--prompts", "scenes.jsonl", *FILES, "--seed", "3", "-o", f"one/{template}"]) == 0
    sizes = evaluations(monkeypatch)
    assert batch("-o", f"out/{template}") == 0
    assert sorted(sizes) == [1, 1, 3]
    check_same(sounds("out"), sounds("one"), tolerance)


def test_the_manifest_says_what_became_of_each_clip():
    write([*SCENES, {"sfx": "no caption"}, {"caption": "x", "seconds": 3600}, {"caption": "\U0001f642"}])
    assert batch() == 0
    entries = manifest()
    made = {entry["file"]: entry for entry in entries if "file" in entry}
    assert sorted(made) == [f"out/{name}.flac" for name in ("Rain_1", "bell_1", "cat_1", "cat_2", "storm_1")]
    storm = made["out/storm_1.flac"]
    assert (storm["scene"], storm["seed"], storm["seconds"]) == (2, 9, 0.4)
    assert storm["prompt"].startswith("<|caption|> Thunder") and storm["worker"].endswith(f":{os.getpid()}")
    assert storm["took"] > 0
    sound = sounds("out")["storm_1.flac"]
    assert storm["peak"] == round(decibels(sound.abs().max().item()), 2)
    assert storm["loudness"] == round(loudness(sound[None].float(), 16000), 2)
    assert made["out/bell_1.flac"]["loudness"] is None, "it is too short"
    errors = {entry["scene"]: entry["error"] for entry in entries if "error" in entry}
    assert sorted(errors) == [5, 6, 7] and len(entries) == 8
    assert "scenes.jsonl:5: The caption is empty" in errors[5]
    assert "3600, expected a number from 0 to 600" in errors[6]
    assert "has nothing that the model can read" in errors[7]


def test_a_refused_scene_keeps_its_number_free():
    write([{"caption": "a", "seconds": 0.2}, {"sfx": "b"}, {"caption": "c", "seconds": 0.2}])
    assert batch("-o", "out/x.flac") == 0
    assert sorted(sounds("out")) == ["x_001.flac", "x_003.flac"]


@pytest.mark.parametrize("scene", [{"sfx": "b"}, {"caption": "\U0001f642", "seconds": 0.2}])
def test_strict_ends_at_the_first_scene_that_cannot_be_made(scene, caplog):
    caplog.set_level(logging.INFO)
    write([scene, {"caption": "c", "seconds": 0.2}])
    assert batch("--strict") == 1
    planned = "sfx" in scene
    assert ("scenes.jsonl:1: The caption is empty" if planned else "has nothing that the model can read") in caplog.text
    assert caplog.text.endswith("--strict ends the run here: correct that scene, or leave --strict out.\n")
    assert ("with --resume makes the others" in caplog.text) is not planned
    assert not Path("out").exists()
    assert batch("--resume") == 0
    assert ("--resume tries what failed once more" in caplog.text) is not planned
    assert len(sounds("out")) == 1


def test_a_sound_that_fails_in_company_is_found_and_the_others_are_made(monkeypatch):
    write([{"caption": f"clip {i}", "seconds": 0.2, "name": f"{i}"} for i in range(4)])
    whole = DashengAudioGen.generate

    def fail(self, prompts, **more):
        if any("2" in prompt for prompt in prompts):
            raise ValueError("The sampled latent has values that are not numbers.")
        return whole(self, prompts, **more)

    monkeypatch.setattr(DashengAudioGen, "generate", fail)
    assert batch() == 0
    assert sorted(sounds("out")) == ["0_1.flac", "1_1.flac", "3_1.flac"]
    (error,) = [entry for entry in manifest() if "error" in entry]
    assert error["scene"] == 3 and "not numbers" in error["error"] and "file" not in error


def test_only_the_sound_that_cannot_be_written_fails(monkeypatch):
    """Of one evaluation, one sound is spoilt, and the files of two have appeared: a worker lost from sight made one of them."""
    write([{"caption": f"clip {i}", "seconds": 0.2, "name": f"{i}"} for i in range(4)])
    assert batch("-o", "lost/{name}_{take}.flac", "--manifest", "lost.jsonl") == 0

    def spoil(made):
        made = made.clone()
        made[0] = torch.nan
        Path("out").mkdir(exist_ok=True)
        Path("out/1_1.flac").write_bytes(Path("lost/1_1.flac").read_bytes())
        soundfile.write("out/3_1.flac", [0.5] * 320, 16000)
        return made

    sizes = evaluations(monkeypatch, spoil)
    assert batch() == 0 and sizes == [4]
    bad, found, good, other = sorted(manifest(), key=lambda entry: entry["scene"])
    assert "The sound for out/0_1.flac" in bad["error"]
    assert other["error"] == "out/3_1.flac is there and is not the sound of this scene: move it away."
    before = {entry["scene"]: entry for entry in manifest("lost.jsonl")}
    for entry in (found, good):
        # The sum of another file in a batch of another size may be another.
        assert {key: entry[key] for key in ("asked", "seconds")} == {
            key: before[entry["scene"]][key] for key in ("asked", "seconds")
        }
    assert found["sha256"] == before[2]["sha256"] and found["peak"] == before[2]["peak"]


def test_resuming_makes_what_is_missing_and_nothing_else(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    write([*SCENES, {"sfx": "no caption"}])
    assert batch() == 0
    whole = sounds("out")
    for name in ("cat_2.flac", "storm_1.flac"):
        Path("out", name).unlink()
    # A run killed while it wrote a line: of one file nothing is written down, and one line is half there.
    lines = Path("scenes.manifest.jsonl").read_text().splitlines(True)
    kept = [line for line in lines if "bell" not in line]
    Path("scenes.manifest.jsonl").write_text("".join(kept) + '{"scene": 4, "prom')
    stamps = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    torn = Path("scenes.manifest.jsonl").read_bytes()
    assert batch("--resume", "--audiogen", "nowhere") == 1
    assert torn.startswith(Path("scenes.manifest.jsonl").read_bytes()) and len(manifest()) == 5
    sizes = evaluations(monkeypatch)
    assert batch("--resume") == 0 and sum(sizes) == 2
    assert "2 of 3 clips made" not in caplog.text and "3 of 3 clips made, 0 failed" in caplog.text
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    check_same(sounds("out"), whole)
    files = [entry["file"] for entry in manifest() if "file" in entry]
    assert sorted(set(files)) == sorted(f"out/{name}" for name in whole)
    assert files.count("out/bell_1.flac") == 1 and files.count("out/Rain_1.flac") == 1
    assert len([entry for entry in manifest() if "error" in entry]) == 1, "a refusal is written down once"

    before = Path("scenes.manifest.jsonl").read_bytes()
    assert batch("--resume", "--audiogen", "nowhere") == 0, "there is nothing to load a model for"
    assert Path("scenes.manifest.jsonl").read_bytes() == before


def test_a_drawn_seed_is_resumed(caplog):
    write(SCENES[3:])
    drawn = ["batch", "scenes.jsonl", *FILES, "-o", "out/{name}.wav"]
    assert main(drawn) == 0
    before = Path("out/bell.wav").read_bytes()
    Path("out/bell.wav").unlink()
    assert main([*drawn, "--resume"]) == 0
    assert Path("out/bell.wav").read_bytes() == before
    assert main([*drawn, "--resume", "--manifest", "missing"]) == 1
    assert "There is no run to resume from, since missing is not there: name its manifest by --manifest" in caplog.text


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([], "scenes.manifest.jsonl is there: go on with that run by --resume"),
        (["--manifest", "new"], "out/bell_1.flac is already there: choose another name"),
        (["--resume", "--seed", "4"], "is of a run whose seed was 3, not 4"),
        (["--resume", "--steps", "3"], "is of a run whose num_steps was 2, not 3"),
        (["--resume", "-o", "x.wav"], "is of a run whose output was out/{name}_{take}.flac, not x.wav"),
        (["--resume", "--manifest", "scenes.jsonl"], "scenes.jsonl:1 is not of a manifest of dasheng batch"),
        (["--manifest", "new", "-o", "{nme}.wav"], "{nme} is not one of the fields"),
        (["--manifest", "new", "-o", "{seed}.wav"], "Clips 1 and 2 would both be written to 3.wav"),
        (["--manifest", "new", "-o", "s3://bucket/{name}.wav"], "s3://bucket needs pyarrow: pip install 'dasheng-audiogen[ray]'"),
        (["--manifest", "new", "-o", "a{index}.wav", "--ray", "local"], "--ray needs Ray, which is not installed: pip install"),
        (["--manifest", "new", "--batch-frames", "0"], "--batch-frames is 0, expected a whole number from 1"),
        (["--manifest", "new", "-o", "a{index}.wav", "--audiogen", "nowhere"], "nowhere is neither a path nor a hub"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said(options, sentence, caplog):
    write([{"caption": "A bell rings.", "name": "bell", "seconds": 0.2}])
    assert batch() == 0
    write([{"caption": "A bell rings.", "name": "bell", "seconds": 0.2}, {"caption": "b"}])
    assert batch(*options) == 1
    assert sentence in caplog.text
    assert sorted(sounds("out")) == ["bell_1.flac"] and not Path("new").exists()


def test_names_are_told_apart_by_more_than_their_hashes(monkeypatch, caplog):
    write([{"caption": "a", "seconds": 0.2, "name": name} for name in ("bell", "Bell")])
    assert batch() == 1 and "Clips 1 and 2 would both be written to out/Bell_1.flac" in caplog.text
    monkeypatch.setattr("dasheng_core.cli.batch.hash", lambda name: 7, raising=False)
    write([{"caption": "a", "seconds": 0.2, "name": name} for name in ("bell", "horn")])
    assert batch() == 0 and sorted(sounds("out")) == ["bell_1.flac", "horn_1.flac"]


@pytest.mark.parametrize("content, sentence", [("", "has no scenes"), (None, "cannot be read (No such file")])
def test_a_file_without_scenes_is_refused(content, sentence, caplog):
    if content is not None:
        Path("scenes.jsonl").write_text(content)
    assert batch() == 1
    assert sentence in caplog.text and not Path("scenes.manifest.jsonl").exists()


def clips(path: str) -> list[Clip]:
    args = build_parser().parse_args(["batch", path, "-o", "{name}_{take}.wav"])
    return list(plan(args, 3))


def test_a_table_says_the_same_as_lines():
    lines = clips(write([*SCENES, {"audio_id": "12", "content": "<|caption|> Rain."}]))
    columns = ("caption", "name", "seconds", "takes", "seed", "audio_id", "content", "category")
    rows = [",".join(columns)]
    for scene in [*SCENES, {"audio_id": "12", "content": "<|caption|> Rain.", "category": "mix"}]:
        rows.append(",".join(f'"{scene[key]}"' if key in scene else "" for key in columns))
    Path("scenes.csv").write_text("\n".join(rows), "utf-8-sig")
    # A header is a line, too.
    assert [replace_scene(clip, clip.scene - 1) for clip in clips("scenes.csv")] == lines
    Path("scenes.csv").write_text("caption,seed\nRain,5.5\nRain,x\nRain,5,6\n")
    assert [row["error"].partition(": ")[2] for row in clips("scenes.csv")] == [
        'seed is "5.5", expected a whole number.',
        'seed is "x", expected a whole number.',
        "the row has 3 cells, the header 2: put a text that has ',' in it between quotes.",
    ]


def replace_scene(clip: Clip, scene: int) -> Clip:
    return replace(clip, scene=scene)


def test_scenes_are_read_one_by_one(monkeypatch):
    Path("scenes.jsonl").write_text('{"caption": "one"}\n' * 20_000)
    reader = plan(build_parser().parse_args(["batch", "scenes.jsonl", "-o", "{index}.wav"]), 3)
    with open("scenes.jsonl", "rb") as file:
        monkeypatch.setattr(rows, "open_binary", lambda name: nullcontext(file))
        assert next(reader).prompt == "<|caption|> one"
        assert file.tell() < 20_000, "of 380,000 bytes"


def test_groups_are_of_one_length_and_of_like_texts():
    sizes = {Clip(i, "", 0, None, ""): size for i, size in enumerate([(5, 3), (7, 1), (5, 1), (5, 2), (9, 1), (5, 9)])}
    groups = [[clip.scene for clip in group] for group in group_clips(sizes, 15)]
    assert groups == [[2, 3, 0], [5], [1], [4]]
    away = {
        replace(clip, negative=str(clip.scene) if clip.scene in (2, 5) else None): size for clip, size in sizes.items()
    }
    groups = [[clip.scene for clip in group] for group in group_clips(away, 15)]
    assert groups == [[3, 0], [2, 5], [1], [4]], "all of a group have a negative, or none"
    assert [len(group) for group in group_clips(sizes, 1)] == [1] * 6, "a clip longer than a batch is made alone"


def test_a_full_disk_stops_and_resumes(tmp_path, caplog):
    write([{"caption": "a", "seconds": 0.4, "takes": 3}])
    with small_disk(tmp_path / "disk", 100 << 10) as disk:
        (disk / "other").write_bytes(bytes(60 << 10))
        output = ["-o", str(disk / "{take}.wav")]
        assert batch(*output) == 1
        assert ".wav could not be written (No space left on device) and nothing of it is left" in caplog.text
        # Files are written side by side: of three that do not fit, one or none is there.
        whole = [path for path in disk.iterdir() if path.name != "other"]
        assert len(whole) < 2 and all(soundfile.info(path).frames == 6400 for path in whole)
        (disk / "other").unlink()
        assert batch(*output, "--resume") == 0
        assert sorted(path.name for path in disk.iterdir()) == ["1.wav", "2.wav", "3.wav"]
    assert len([entry for entry in manifest() if "file" in entry]) == 3


def test_a_stopped_run_resumes(tmp_path):
    scenes = [{"caption": "a", "seconds": s, "name": f"{s}"} for s in (0.2, 0.4, 30)]
    options = ["batch", str(tmp_path / write(scenes)), *FILES, "--seed", "3", "--steps", "4",
               "-o", str(tmp_path / "out" / "{name}.flac"), "--manifest", str(tmp_path / "m.jsonl")]  # fmt: skip
    written = lambda: Path("m.jsonl").exists() and len(manifest("m.jsonl")) == 2  # noqa: E731
    returned, errors = stop_command(options, written, signal.SIGINT)
    assert returned == 130 and "Traceback" not in errors
    assert "2 of 3 clips made, 0 failed: " in errors and "--resume" in errors
    assert len(manifest("m.jsonl")) == 2
    assert main([*options, "--resume"]) == 0
    assert len(manifest("m.jsonl")) == 3


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
    write(SCENES[3:])
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        patched.setattr("dasheng_core.cli.batch.make_here", run)
        assert batch() == code
    assert caplog.messages[-1] == "Stopped." and "the same command with --resume makes the others" in caplog.text
    assert Path("cleaned").exists() == (run is is_stopped_twice)
    if run is does_not_hear:
        assert [entry["scene"] for entry in manifest()] == [1]
        return
    head = Path("scenes.manifest.jsonl").read_text("utf-8")
    assert len(head.splitlines()) == 1 and batch("--resume") == 0
    assert Path("scenes.manifest.jsonl").read_text("utf-8").startswith(head)
    assert [entry["file"] for entry in manifest()] == ["out/bell_1.flac"] and list(sounds("out")) == ["bell_1.flac"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_for_people(monkeypatch):
    stderr = Terminal()
    scenes = [{"caption": "a", "seconds": 0.2}, {"caption": "\U0001f642", "seconds": 0.2}, {"caption": "b"}]
    write(scenes)
    monkeypatch.setattr("sys.stderr", stderr)
    # Each step is shown, however quick; and the handler of the command line writes to what is stderr here.
    monkeypatch.setattr("dasheng_core.cli.batch.progress_bar", partial(progress_bar, mininterval=0))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    started = time.monotonic()
    assert batch() == 0
    least = 3 * 60 / (time.monotonic() - started)
    said = stderr.getvalue()
    shown = [part for part in said.split("\r") if "|" in part]
    pace = re.search(r"batch, 2 made, 1 failed, ([\d.e+]+) per minute, 00:00 left \|.*\| 3/3", shown[-1])
    assert float(pace[1]) > 0.9 * least
    warned = [part for part in said.split("\r") if "has nothing that the model can read" in part]
    assert len(warned) == 1 and warned[0].startswith("scenes.jsonl:2: "), (
        "it stands above the bar, on a line of its own"
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_killed_at_random_loses_and_doubles_nothing(tmp_path, tiny):
    """Two runs die in the middle, the third ends. On Ray, workers die too: test_batch_on_ray.py."""
    lengths = (0.2, 0.4, 0.6)
    scenes = [{"caption": f"Bell {i}.", "seconds": lengths[i % 3], "name": f"{i}", "seed": i} for i in range(60)]
    options = ["batch", str(tmp_path / write(scenes)), *FILES, "-o", str(tmp_path / "out" / "{name}.flac"),
               "--manifest", str(tmp_path / "m.jsonl"), "--batch-frames", "40"]  # fmt: skip
    there = lambda: len(list(Path("out").glob("*.flac")))  # noqa: E731
    for more in ([], ["--resume"]):
        moment = min(there() + random.randint(1, 12), 40)
        returned, _ = stop_command([*options, *more], lambda moment=moment: there() >= moment, signal.SIGKILL)
        assert returned == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in Path("out").glob("*.flac")}
    assert len(made) < 60 and main([*options, "--resume"]) == 0
    assert made == {path: path.stat().st_mtime_ns for path in made}
    assert there() == 60 == len(manifest("m.jsonl"))
    assert {entry["file"] for entry in manifest("m.jsonl")} == {f"{tmp_path}/out/{i}.flac" for i in range(60)}
    for scene in scenes[::7]:
        prompt = f"<|caption|> {scene['caption']}"
        expected = tiny.generate(prompt, num_steps=2, seed=scene["seed"], duration=scene["seconds"])[0]
        sound = torch.from_numpy(soundfile.read(f"out/{scene['name']}.flac", dtype="float32")[0])
        assert (sound - expected.clamp(-1, 1)).abs().max() <= TOLERANCE + STEP


def test_a_manifest_that_lost_power_is_resumed_or_its_line_named(caplog):
    write(SCENES[3:])
    assert batch() == 0
    path = Path("scenes.manifest.jsonl")
    whole = path.read_bytes()
    # The disk knew how long the file was, and not yet what was in its last block.
    path.write_bytes(whole + bytes(300))
    assert batch("--resume") == 0 and path.read_bytes() == whole
    path.write_bytes(whole + bytes(300) + b"\n")
    assert batch("--resume") == 1
    assert f"{path}:3 is not of a manifest of dasheng batch: name another file, or delete that line" in caplog.text


def test_a_pool_of_no_size_is_refused(capsys):
    for size in ("3,1", "0", "x", "1,", "1,2,3"):
        with pytest.raises(SystemExit):
            batch("--workers", size)
        assert f"'{size}' is no number of workers, expected one, or the least and the most" in capsys.readouterr().err
    read = lambda size: build_parser().parse_args(["batch", "x", "-o", "y", "--workers", size]).workers  # noqa: E731
    assert [read("3"), read("1,64")] == [(3, 3), (1, 64)]


def test_nothing_of_ray_is_imported():
    write(SCENES[3:])
    code = (
        "import sys\nfrom dasheng_core.cli import main\n"
        f"assert main(['batch', 'scenes.jsonl', *{FILES}, '-o', 'out/x.flac']) == 0\n"
        "assert not {'ray', 'pyarrow', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


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
    assert len([line for line in script.splitlines()[1:] if line]) <= 34
    Path("queue_scenes.py").write_text(script, "utf-8")
    scenes = [{"caption": "A rising sweep.", "name": f"sweep {i}", "seed": i} for i in range(3)]
    write([*scenes[:2], {"name": "bad", "caption": ""}, scenes[2]])
    graph = ROOT / "workflows" / "api" / "01 Rain and a voice.json"
    command = [sys.executable, "queue_scenes.py", server.address, str(graph), "scenes.jsonl", "done.txt"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("bad: "), run.stderr
    folder = server.output / "scenes"
    assert sorted(path.name for path in folder.glob("*.wav")) == ["sweep 0_00001_.wav", "sweep 1_00001_.wav"]
    # The bad line is mended, and a stop came while a name was written: ComfyUI has that sound cached.
    write(scenes)
    Path("done.txt").write_text("sweep 0\nswee")
    assert subprocess.run(command).returncode == 0
    assert sorted(path.name for path in folder.glob("*.wav")) == [f"sweep {i}_00001_.wav" for i in range(3)]
    first, _, third = (torch.from_numpy(soundfile.read(path)[0]) for path in sorted(folder.glob("*.wav")))
    assert first.shape == third.shape and not torch.equal(first, third), "each has its seed"
