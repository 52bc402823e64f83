"""``python -m dasheng_core generate``: prompt files, names, interruptions, and what it says when it cannot."""

import argparse
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
import torch

from conftest import GOLDEN, deviation, small_disk, stop_command, unprivileged
from dasheng_core import Timeline
from dasheng_core.batch.jobs import make_scene, plan_jobs, read_scenes
from dasheng_core.cli import generate, main
from dasheng_core.cli.arguments import add_download, add_generate, add_repack
from dasheng_core.delivery.audio_file import write_audio
from dasheng_core.delivery.formats import FORMATS
from dasheng_core.options import SamplingOptions
from riff import markers_of, tags_of
from tools.comfyui import ROOT

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
STORM = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."
FOLDER = GOLDEN / "tiny"
FILES = [
    "--audiogen", str(FOLDER / "audiogen"), "--text-encoder", str(FOLDER / "text_encoder"),
    "--audio-tokenizer", str(FOLDER / "audio_tokenizer"),
]  # fmt: skip
SHORT = ["--steps", "2", "--seconds", "0.2"]


def read(path) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix, subtype", [(".wav", "FLOAT"), (".flac", "PCM_24")])
def test_takes_are_numbered_in_the_order_of_the_prompt_file(tiny, tmp_path, suffix, subtype):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"# two scenes\n{CAT}\n\n{STORM}\n")
    output = tmp_path / "takes" / f"scene{suffix}"
    options = ["--seed", "5", "--steps", "3", "--seconds", "0.4", "--takes", "2", "--prompts", str(prompts)]
    assert main(["generate", *FILES, *options, "-o", str(output)]) == 0
    files = sorted(output.parent.iterdir())
    assert [file.name for file in files] == [f"scene_00{i}{suffix}" for i in (1, 2, 3, 4)]
    expected = tiny.generate([CAT, CAT, STORM, STORM], num_steps=3, seed=[5, 6, 5, 6], duration=0.4)
    for file, waveform in zip(files, expected, strict=True):
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, subtype)
        assert deviation(read(file), waveform if suffix == ".wav" else waveform.clamp(-1, 1)) <= 5e-6


def test_a_negative_is_an_option_and_a_key_of_a_line(tiny, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "{CAT}"}}\n{{"prompt": "{CAT}", "negative": "{CAT}"}}\n')
    options = [*SHORT, "--seed", "1", "--prompts", str(tmp_path / "a.jsonl"), "--negative", STORM]
    assert main(["generate", *FILES, *options, "-o", str(tmp_path / "{index}.wav")]) == 0
    for number, negative in ((1, STORM), (2, CAT)):
        expected = tiny.generate(CAT, num_steps=2, seed=1, duration=0.2, negative=negative)[0]
        assert deviation(read(tmp_path / f"00{number}.wav"), expected) <= 5e-6


def test_a_jsonl_line_says_what_differs_from_the_options(tiny, tmp_path):
    lines = [
        {"caption": "A cat meowing softly.", "sfx": "Soft cat meow.", "seed": 9, "seconds": 0.4, "name": "../Cat: 1"},
        {"prompt": STORM, "takes": 2, "name": "storm", "seed": None},
    ]
    prompts = tmp_path / "prompts.jsonl"
    # U+2028 ends a line for Python's splitlines, and may stand in a JSON text.
    texts = [json.dumps(line) for line in lines] + ['{"caption": "A bell\u2028rings"}']
    prompts.write_text("# scenes\n\n" + "\n".join(texts), encoding="utf-8-sig")
    options = ["--seed", "5", *SHORT, "--prompts", str(prompts)]
    assert main(["generate", *FILES, *options, "-o", str(tmp_path / "out" / "{name}" / "{take}_{seed}.wav")]) == 0
    assert sorted(contents(tmp_path / "out")) == [
        "A_bell_rings/1_5.wav",
        "_Cat_ 1/1_9.wav",
        "storm/1_5.wav",
        "storm/2_6.wav",
    ]
    for path, prompt, seed, seconds in (
        ("_Cat_ 1/1_9.wav", CAT, 9, 0.4),
        ("storm/2_6.wav", STORM, 6, 0.2),
        ("A_bell_rings/1_5.wav", "<|caption|> A bell\u2028rings", 5, 0.2),
    ):
        expected = tiny.generate(prompt, num_steps=2, seed=seed, duration=seconds)[0]
        assert deviation(read(tmp_path / "out" / path), expected) <= 5e-6


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("{", "not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
        ('["a"]', '["a"] is not a JSON object'),
        ("[" * 100000, "not valid JSON (too many brackets"),
        ('{"seed": %s}' % ("7" * 5000), "has 5000 digits, expected fewer: no number here is that long."),
        ('{"caption": "\\ud83d"}', "The caption text has half a character ('\\ud83d')"),
        ('{"caption": "a", "seed": -1}', "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        ('{"content": "a"}', "The prompt starts with 'a', expected <|caption|>"),
        ('{"content": "<|caption|> a", "prompt": "<|caption|> a"}', "content and prompt mean the same"),
        ('{"caption": "<|caption|> a", "music": "b"}', "a ready-made prompt or aspects, not both"),
        ('{"caption": "None"}', "The caption is empty"),
        ('{"caption": "a", "step": 3}', "unknown key 'step': expected caption, speech"),
        ('{"caption": "a", "caption": "b"}', "'caption' stands twice"),
        ('{"caption": 3}', "caption is 3, expected a text"),
        ('{"caption": "a", "seed": true}', "seed is true, expected a whole number"),
        ('{"caption": "a", "seconds": [1]}', "seconds is [1], expected a number"),
        ('{"caption": "a", "seconds": 3600}', "A duration in seconds is 3600, expected a number from 0 to 600"),
        ('{"caption": "a", "takes": 0}', "takes is 0, expected a whole number from 1 to 100000"),
        ('{"caption": "a", "name": "../.."}', "has nothing in it that a file name can have"),
        (json.dumps({"caption": "a", "name": 81 * "x"}), "has 81 characters, expected at most 80"),
        ('{"caption": "a", "negative": "rain"}', "negative: The prompt starts with 'rain', expected <|caption|>"),
    ],
    ids=str,
)
def test_a_bad_jsonl_line_is_refused_by_file_and_number(tmp_path, caplog, line, sentence):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"caption": "fine"}}\n# a comment\n{line}\n')
    assert main(["generate", "--audiogen", "nowhere", "--prompts", str(prompts), "-o", str(tmp_path / "x.wav")]) == 1
    assert f"{prompts}:3: " in caplog.text and sentence in caplog.text
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize(
    "content, sentence",
    [
        (f"{CAT}\na cat".encode(), ":2: The prompt starts with 'a cat'"),
        (b"# nothing\n", "has no prompts"),
        ("<|caption|> Café".encode("latin-1"), ":1: this line is not UTF-8 text after '<|caption|> Caf'"),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=str,
)
def test_a_prompt_file_that_cannot_be_read_is_refused(tmp_path, caplog, content, sentence):
    prompts = tmp_path / "prompts.txt"
    if content is not None:
        prompts.write_bytes(content)
    assert main(["generate", "--audiogen", "nowhere", "--prompts", str(prompts), "-o", str(tmp_path / "x.wav")]) == 1
    assert f"{prompts}" in caplog.text and sentence in caplog.text


@pytest.mark.parametrize(
    "output, takes, names",
    [
        ("x.wav", 1, ["x.wav"]),
        ("x.wav", 2, ["x_001.wav", "x_002.wav"]),
        ("a/{index}.flac", 2, ["a/001.flac", "a/002.flac"]),
        ("{index:d}.wav", 2, ["1.wav", "2.wav"]),
        ("{take:02}_{seed}.wav", 2, ["01_7.wav", "02_8.wav"]),
        ("{name}.wav", 1, ["Thunder_rolling_in_the_distance.wav"]),
        ("{{name}}.wav", 2, ["{name}_001.wav", "{name}_002.wav"]),
    ],
)
def test_names(output, takes, names):
    jobs = plan_jobs([make_scene({"prompt": STORM}, seed=7, takes=takes)], output, seed=0)
    assert [str(job.path) for job in jobs] == [str(Path(name)) for name in names]


@pytest.mark.parametrize(
    "given, safe",
    [
        ("Regen 1", "Regen 1"),
        ("a/b\\c:d", "a_b_c_d"),
        ("../x", "_x"),
        ("雨の音", "雨の音"),
        ("con", "_con"),
        ("Cafe\u0301", "Caf\u00e9"),
        (" .x. ", "x"),
    ],
)
def test_names_of_prompts_are_one_part_of_a_path(given, safe):
    assert make_scene({"caption": "a"}, name=given).name == safe


@pytest.mark.parametrize(
    "output, sentence",
    [
        ("{nme}.wav", "{nme} is not one of the fields {name}, {index}, {take}, {seed}"),
        ("{name.__class__}.wav", "{name.__class__} is not one of the fields"),
        ("{take.wav", "a brace that is part of the name is written twice"),
        ("{take:x{seed}}.wav", "Invalid format specifier"),
        ("{name}.wav", "Clips 1 and 2 would both be written to a.wav"),
        ("{take}.wav", "Clips 1 and 3 would both be written to 1.wav"),
        ("x.mp3", "expected a name that ends in .wav or .flac"),
        ("{take:300}{index}.wav", "longer than the 255 bytes"),
    ],
)
def test_names_that_cannot_be_are_refused(output, sentence):
    scenes = [make_scene({"caption": "one"}, takes=2, name="a"), make_scene({"caption": "two"}, takes=2, name="A")]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        plan_jobs(scenes, output, seed=0)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--sfx", "a bell"], "The caption is empty"),
        (["--caption", "a", "--prompts", "taken.wav"], "give no other prompt beside it"),
        (["-o", "x.mp3"], "expected a name that ends in .wav or .flac"),
        (["-o", "taken.wav"], "taken.wav already there: choose another name"),
        (["-o", "folder.wav", "--resume", "--seed", "1"], "folder.wav is there and is not a file"),
        (["-o", "taken.wav/x.wav"], "taken.wav is a file, but the output taken.wav needs a folder there"),
        (["--steps", "0"], "The number of steps is 0, expected a whole number from 1 to 10000"),
        (["--seconds", "-1"], "A duration in seconds is -1.0, expected a number from 0 to 600"),
        (["--sway", "2"], "The sway coefficient is 2.0, expected a number from -1 to 1.75"),
        (["--guidance", "nan"], "The guidance scale is nan, expected a number"),
        (["--takes", "0"], "takes is 0, expected a whole number from 1 to 100000"),
        (["--seed", "-1"], "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        (["--guidance-interval", "nan", "1"], "A bound of the guidance interval is nan, expected a number from 0 to 1"),
        (["--format", "flac"], "x.wav: the format flac needs a name that ends in .flac"),
        (["--device", "gpu"], "The device 'gpu' cannot be used"),
        (["--device", "meta"], "The device 'meta' cannot be used (Tensor.item() cannot be called on meta tensors)"),
        (["-o", "{index:999999999}.wav"], "{index:999999999}.wav: 999999999 is wider than any file name"),
        (["--timeline", "taken.wav"], "taken.wav has no lines, expected a second and a prompt in each"),
        (["--resume"], "--resume needs the --seed of the first run"),
        ([], "nowhere is neither a path nor a hub repository"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_the_model_loads(tmp_path, monkeypatch, caplog, options, sentence):
    monkeypatch.chdir(tmp_path)
    Path("taken.wav").touch()
    Path("folder.wav").mkdir()
    scene = [] if {"--sfx", "--caption", "--timeline"} & set(options) else ["--caption", "a"]
    output = [] if "-o" in options else ["-o", "x.wav"]
    # Were the model loaded first, its path would be what is wrong.
    assert main(["generate", "--audiogen", "nowhere", *scene, *output, *options]) == 1
    assert sentence in caplog.text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder.wav", "taken.wav"]


@pytest.mark.skipif(os.name == "nt", reason="folders have no modes on Windows")
@pytest.mark.parametrize("mode, output", [(0o555, "x.wav"), (0o555, "new/x.wav"), (0o000, "x.wav")])
def test_a_folder_that_cannot_be_written_to_is_refused(caplog, mode, output):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(mode)
        with unprivileged():
            code = main(["generate", "--audiogen", "nowhere", "--caption", "a", "-o", str(folder / output)])
        folder.chmod(0o755)
        assert code == 1
        assert f"The output folder {(folder / output).parent} cannot be written to (Permission denied)" in caplog.text
        assert not list(folder.iterdir())


def test_a_full_disk_is_said_and_leaves_whole_files_only(tmp_path, caplog):
    options = [*FILES, "--caption", "a", "--seed", "1", "--takes", "3", "--steps", "1", "--seconds", "0.4"]
    with small_disk(tmp_path / "disk", 40 << 10) as disk:
        assert main(["generate", *options, "-o", str(disk / "x.wav")]) == 1
        assert [path.name for path in disk.iterdir()] == ["x_001.wav"]
        assert len(read(disk / "x_001.wav")) == 6400
        assert f"{disk / 'x_002.wav'} could not be written (No space left on device)" in caplog.text
        assert "1 of 3 clips are there" in caplog.text and "--resume" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_closed_terminal_leaves_whole_files(tmp_path):
    """The window is gone: nothing that is written to it arrives, and the system sends SIGHUP."""
    import pty

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"caption": "short", "seconds": 0.2}\n{"caption": "long", "seconds": 30}\n')
    folder = tmp_path / "made"
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(ROOT)
        command = [*FILES, "--prompts", str(prompts), "--seed", "3", "--steps", "4", "-o", str(folder / "x.wav")]
        os.execv(sys.executable, [sys.executable, "-m", "dasheng_core", "generate", *command])
    said = b""
    while not (folder / "x_001.wav").exists():
        # Reading keeps the program from waiting for room.
        said += os.read(terminal, 10_000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129, said
    assert [path.name for path in folder.iterdir()] == ["x_001.wav"]


@pytest.mark.parametrize("stop, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupted_run_leaves_whole_files_and_resumes_to_the_same(tmp_path, caplog, monkeypatch, stop, code):
    # The third clip is long: the signal comes while it is made.
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"caption": "clip {i}", "seconds": {s}}}\n' for i, s in enumerate([0.2, 0.2, 30, 0.2]))
    )

    def options(folder):
        command = ["generate", *FILES, "--prompts", str(prompts), "--seed", "3", "--steps", "4"]
        return [*command, "-o", str(folder / "x.wav")]

    folder = tmp_path / "stopped"
    returned, errors = stop_command(options(folder), (folder / "x_002.wav").exists, getattr(signal, stop, None))
    assert returned == code and "Traceback" not in errors
    assert "2 of 4 clips are there" in errors and "--resume" in errors
    made = contents(folder)
    assert sorted(made) == ["x_001.wav", "x_002.wav"]

    caplog.set_level(logging.INFO)
    assert main([*options(folder), "--resume"]) == 0
    assert "2 of 4 clips are there already." in caplog.text
    assert main(options(tmp_path / "whole")) == 0
    resumed, whole = contents(folder), contents(tmp_path / "whole")
    assert len(whole) == 4 and resumed == whole and made.items() <= resumed.items()

    # All there: nothing to load.
    monkeypatch.setattr("dasheng_core.batch.model.DashengAudioGen", None)
    assert main([*options(folder), "--resume"]) == 0
    assert contents(folder) == whole


def test_an_interruption_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    assert main(["generate", *FILES, "--caption", "a", *SHORT, "-o", str(tmp_path / "x.wav")]) == 130
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_encoding_leaves_the_clip_whole(tmp_path, monkeypatch):
    """libsndfile calls Python back: an exception that is raised there is lost, and has broken the file or the process."""

    def interrupted(*given, **options):
        if list(tmp_path.iterdir()):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        write_sound(*given, **options)

    command = ["generate", *FILES, "--caption", "a", *SHORT, "--takes", "3", "-o", str(tmp_path / "x.wav")]
    write_sound = soundfile.write
    with monkeypatch.context() as patched:
        patched.setattr(soundfile, "write", interrupted)
        assert main(command) == 130
    assert {len(read(path)) for path in tmp_path.iterdir()} == {3200}
    assert sorted(contents(tmp_path)) == ["x_001.wav", "x_002.wav"]


def test_progress_shows_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    options = ["generate", *FILES, "--caption", "a", *SHORT, "--takes", "2", "-o", str(tmp_path / "x.wav")]
    assert main(options) == 0
    assert "2/2 x_002.wav:   0%" in capsys.readouterr().err


def test_a_drawn_seed_is_printed_and_makes_the_same_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = ["generate", *FILES, "--prompt", CAT, *SHORT, "-o"]
    assert main([*options, str(tmp_path / "drawn.wav")]) == 0
    (seed,) = re.findall(r"seed \d+, drawn: --seed (\d+) makes the same again", caplog.text)
    assert f"drawn.wav: 0.20 s, seed {seed}" in caplog.text
    assert main([*options, str(tmp_path / "again.wav"), "--seed", seed]) == 0
    assert (tmp_path / "drawn.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()


@pytest.mark.parametrize("data", [b"", "other scene", "last byte"], ids=str)
def test_a_file_that_is_not_the_clip_is_not_resumed(data, tmp_path, caplog):
    first, second = tmp_path / "x_001.flac", tmp_path / "x_002.flac"
    command = ["generate", *FILES, *SHORT, "--caption", "a", "--takes", "2", "--seed", "1"]
    options = [*command, "-o", str(tmp_path / "x.flac")]
    assert main(options) == 0 and main([*options, "--resume"]) == 0
    whole = first.read_bytes()
    changed = {"other scene": second.read_bytes(), "last byte": whole[:-1]}
    first.write_bytes(data if isinstance(data, bytes) else changed[data])
    before = contents(tmp_path)
    caplog.clear()
    assert main([*options, "--resume"]) == 1 and contents(tmp_path) == before
    assert "x_001.flac already there, and not what is asked for now" in caplog.text and "x_002" not in caplog.text
    first.write_bytes(whole)
    for other in (["--steps", "3"], ["--seconds", "0.4"], ["--caption", "b"], ["--seed", "2"], ["--zero-star"]):
        assert main([*options, *other, "--resume"]) == 1, other
    assert main([*options, "--format", "flac", "--resume"]) == 0 and contents(tmp_path) == before | {first.name: whole}


def test_resuming_needs_no_seed_where_every_line_has_its_own(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"caption": "a", "seed": 1}\n{"caption": "b", "seed": 2}\n')
    options = ["generate", *FILES, *SHORT, "--prompts", str(prompts), "-o", str(tmp_path / "out" / "x.wav")]
    assert main([*options, "--resume"]) == 0
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "x_001.wav").unlink()
    assert main([*options, "--resume"]) == 0
    assert contents(tmp_path / "out") == whole


def test_nothing_is_overwritten_not_even_what_appears_meanwhile(tmp_path):
    (tmp_path / "x.wav").write_text("mine")
    with pytest.raises(FileExistsError, match="x.wav has appeared meanwhile"):
        write_audio(tmp_path / "x.wav", torch.zeros(10), 16000)
    assert contents(tmp_path) == {"x.wav": b"mine"}


def test_the_same_waveform_is_the_same_file(tmp_path):
    write_audio(tmp_path / "x.wav", torch.ones(10), 16000)
    data = (tmp_path / "x.wav").read_bytes()
    stamp = data.index(b"PEAK") + 12
    assert data[stamp : stamp + 4] == bytes(4), "no time of writing"
    assert read(tmp_path / "x.wav").tolist() == [1.0] * 10


def test_only_float_files_keep_peaks_beyond_full_scale(tmp_path, caplog):
    loud = torch.tensor([0.0, 2.0])
    write_audio(tmp_path / "loud.wav", loud, 16000)
    assert not caplog.text and soundfile.read(tmp_path / "loud.wav")[0][1] == 2.0
    for name in ("flac", "wav16", "wav24"):
        path = tmp_path / f"{name}{FORMATS[name][0]}"
        write_audio(path, loud, 16000, name)
        assert "The peak is 2.00 times full scale and is clipped" in caplog.text and str(path) in caplog.text
        assert soundfile.read(path)[0][1] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    # Dither moves a 16-bit sample by up to one step more than rounding does.
    "name, subtype, step",
    [("wav16", "PCM_16", 1.5 * 2**-15), ("wav24", "PCM_24", 2**-23), ("wav32", "FLOAT", 0)],
)
def test_formats(tiny, tmp_path, name, subtype, step):
    path = tmp_path / "x.WAV"
    assert main(["generate", *FILES, "--caption", "a", "--seed", "1", *SHORT, "--format", name, "-o", str(path)]) == 0
    assert soundfile.info(path).subtype == subtype
    expected = tiny.generate("<|caption|> a", num_steps=2, seed=1, duration=0.2)[0].clamp(-1, 1)
    assert (read(path).clamp(-1, 1) - expected).abs().max() <= step + 5e-6


def test_command_line_options_are_defaults_of_lines(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"caption": "a", "seed": 1, "seconds": 2, "takes": 3}\n{"caption": "b"}\n')
    said, unsaid = read_scenes(prompts, seed=7, seconds=0.5, takes=2)
    assert (said.seed, said.seconds, said.takes) == (1, 2, 3)
    assert (unsaid.seed, unsaid.seconds, unsaid.takes) == (7, 0.5, 2)


def test_the_published_prompt_files_are_read(tmp_path):
    lines = [
        {"audio_id": "a", "content": "<|caption|> Rain."},
        {"audio_id": 12, "caption": "<|caption|> Rain. <|music|> piano", "category": "mix"},
        {"audio_id": "c", "caption": "Rain.", "speech": "None", "asr": "None", "music": "piano", "category": None},
        {"audio_id": "d", "caption": "<|caption|> Rain.", "music": "None", "env": None, "category": True},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    scenes = read_scenes(prompts, seed=None, seconds=None, takes=1)
    rain, piano = "<|caption|> Rain.", "<|caption|> Rain. <|music|> piano"
    assert [(scene.name, scene.prompt) for scene in scenes] == [("a", rain), ("12", piano), ("c", piano), ("d", rain)]


def test_what_the_tokenizer_cannot_read_stops_before_the_first_clip(tmp_path, caplog):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{CAT}\n<|caption|> \U0001f642\n", "utf-8")
    assert main(["generate", *FILES, *SHORT, "--prompts", str(prompts), "-o", str(tmp_path / "x.wav")]) == 1
    assert "has nothing that the model can read" in caplog.text
    assert list(tmp_path.iterdir()) == [prompts]


def test_too_many_clips_are_refused_before_they_are_counted_out():
    scenes = [make_scene({"caption": "a"}, takes=100_000)] * 1000
    tracemalloc.start()
    with pytest.raises(ValueError, match="100000000 clips: expected at most 100000 in one run"):
        plan_jobs(scenes, "x.wav", seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_text_is_read_as_typed_in_any_terminal_and_a_doubt_is_said_once(tmp_path):
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = [*FILES, "--caption", "Rain on a roof, 雨", *SHORT, "--seed", "1", "--takes", "2"]
    options += ["-o", str(tmp_path / "x.wav")]
    done = subprocess.run(
        [sys.executable, "-m", "dasheng_core", "generate", *options],
        cwd=ROOT, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(contents(tmp_path)) == ["x_001.wav", "x_002.wav"]
    assert done.stderr.count("has pieces that the model does not know (") == 1 and "\\u96e8" in done.stderr


def test_a_stop_while_libraries_are_imported_is_one_line():
    if os.name == "nt":
        pytest.skip("Windows has no signals to send")
    default = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    # Each module is named on stderr as soon as it is imported.
    command = [sys.executable, "-X", "importtime", "-m", "dasheng_core", "generate", "--caption", "a", "-o", "x.wav"]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=default)
    while "torch" not in (line := run.stderr.readline()):
        assert line, "torch was imported before the first line"
    run.send_signal(signal.SIGINT)
    rest = run.communicate(timeout=120)[1].splitlines()
    assert run.returncode == 130
    assert [line for line in rest if not line.startswith("import time:")] == ["Stopped."]


def test_timelines_in_files(tiny, tmp_path):
    entries = [[0, CAT], [0.2, STORM]]
    lines = tmp_path / "scenes.txt"
    lines.write_text(f"# cat, then storm\n0 {CAT}\n\n0.2 {STORM}\n")
    objects = tmp_path / "scenes.jsonl"
    objects.write_text(json.dumps({"timeline": entries, "fade": 0.1, "name": "a"}) + "\n")
    expected = tiny.generate(Timeline(entries, fade=0.1), num_steps=2, seed=1, duration=0.4)[0]
    for number, given in enumerate((["--timeline", str(lines), "--fade", "0.1"], ["--prompts", str(objects)])):
        path = tmp_path / f"{number}.wav"
        assert main(["generate", *FILES, *SHORT, *given, "--seed", "1", "--seconds", "0.4", "-o", str(path)]) == 0
        assert deviation(read(path), expected) <= 1e-6
        assert markers_of(path) == [(0, "A cat meowing softly."), (3200, "Thunder rolling in the distance.")]
    flac = tmp_path / "2.flac"
    assert main(["generate", *FILES, *SHORT, *given, "--seed", "1", "--seconds", "0.4", "-o", str(flac)]) == 0
    assert read(flac).shape == expected.shape
    tags = tags_of(flac)
    assert [tags[f"CHAPTER00{i}"] for i in (0, 1)] == ["00:00:00.000", "00:00:00.200"]
    assert tags["CHAPTER001NAME"] == "Thunder rolling in the distance."
    parser = argparse.ArgumentParser()
    add_generate(parser)

    def refused(sentence: str, *given: str) -> None:
        options = ["--timeline", str(lines), "--seconds", "0.4", "-o", "x.wav", *given]
        with pytest.raises(ValueError, match=sentence):
            generate.scenes_to_make(parser.parse_args(options))

    for text, sentence in (
        (f"soon {CAT}", "scenes.txt:1: 'soon .* a second from 0 to 600"),
        (f"# a\n-1 {CAT}", "scenes.txt:2: '-1 .* a second from 0 to 600"),
        ("0 rain", r"scenes.txt:1: The prompt starts with 'rain', expected <\|caption\|>"),
        (f"0 {CAT}\n2 <|caption|>", r"scenes.txt:2: Nothing follows <\|caption\|>"),
        (f"0.3 {CAT}\n0.3 {STORM}", "scenes.txt:2: a prompt from 0.3 s on, .* from 0.3 s on"),
        ("", "scenes.txt has no lines"),
        (f"0 {CAT}\n0.5 {STORM}", "scenes.txt: .* the time 0.5 s, .* clip of 0.4 s"),
    ):
        lines.write_text(text)
        refused(sentence)
    lines.write_text(f"0 {CAT}")
    refused("A timeline has its own prompts", "--caption", "a")


# Each option with another value than its default, and what it changes in what is asked of the library.
GENERATE = {
    "caption": (["--caption", "b"], "prompt"),
    "speech": (["--speech", "b"], "prompt"),
    "asr": (["--asr", "b"], "prompt"),
    "sfx": (["--sfx", "b"], "prompt"),
    "music": (["--music", "b"], "prompt"),
    "env": (["--env", "b"], "prompt"),
    "prompt": (["--prompt", "<|caption|> b"], "prompt"),
    "prompts": (["--prompts", "b.txt"], "prompt"),
    "audiogen": (["--audiogen", "b"], "load 0"),
    "text_encoder": (["--text-encoder", "b"], "load 1"),
    "audio_tokenizer": (["--audio-tokenizer", "b"], "load 2"),
    "device": (["--device", "cpu:0"], "load 3"),
    "dtype": (["--dtype", "bf16"], "load 4"),
    "compile": (["--compile"], "load 5"),
    "num_steps": (["--steps", "5"], "num_steps"),
    "guidance_scale": (["--guidance", "3"], "guidance_scale"),
    "sway_sampling_coef": (["--sway", "0"], "sway_sampling_coef"),
    "grid": (["--grid", "epss"], "grid"),
    "guidance_interval": (["--guidance-interval", "0.5", "1"], "guidance_interval"),
    "skip_cache": (["--skip-cache", "2"], "skip_cache"),
    "timeline": (["--timeline", "t.txt"], "prompt"),
    "negative": (["--negative", "<|caption|> b"], "negative"),
    "fade": (["--timeline", "t.txt", "--fade", "1"], "prompt"),
    "emphasis": (["--sfx", "b", "--emphasis", "sfx=2"], "emphasis"),
    "loop": (["--loop"], "loop"),
    "window": (["--window", "4"], "window"),
    "guidance_rescale": (["--guidance-rescale", "0.7"], "guidance_rescale"),
    "apg": (["--apg", "0", "0", "-0.5"], "apg"),
    "zero_star": (["--zero-star"], "zero_star"),
    "noise_kind": (["--noise", "plain"], "noise_kind"),
    "seed": (["--seed", "8"], "seed"),
    "seconds": (["--seconds", "2"], "duration"),
    "takes": (["--takes", "2"], "files"),
    "output": (["-o", "b.wav"], "files"),
    "format": (["--format", "wav16"], "bytes"),
    "resume": (["--resume"], "code"),
    "stems": (["--stems"], "files"),
}


def test_every_option_of_generate_reaches_what_it_is_for(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    add_generate(parser)
    assert set(GENERATE) == {action.dest for action in parser._actions} - {"help"}, "each option needs its line above"
    for field in fields(SamplingOptions):
        assert GENERATE[field.name][1] == field.name and parser.get_default(field.name) == field.default
    asked = {}

    class Asked:
        """The library's class, which notes what it is asked for."""

        tokenizer = staticmethod(lambda prompts: None)

        @classmethod
        def from_pretrained(cls, *arguments):
            asked.update({f"load {i}": argument for i, argument in enumerate(arguments)})
            return cls()

        def generate(self, prompt, callback, **options):
            asked.update(options, prompt=prompt)
            return torch.zeros(1, 640)

        def stems(self, prompt, **given):
            return {"sfx": torch.zeros(1, 640)}

    monkeypatch.setattr("dasheng_core.batch.model.DashengAudioGen", Asked)

    def ask(case: str, *changed: str) -> dict:
        asked.clear()
        (folder := tmp_path / case).mkdir()
        monkeypatch.chdir(folder)
        if case.startswith("resume"):
            assert main(["generate", "--steps", "10", "--seed", "7", "--caption", "a", "-o", "taken.wav"]) == 0
            asked.clear()
        Path("b.txt").write_text(STORM)
        Path("t.txt").write_text(f"0 {STORM}\n0.2 {CAT}")
        scene = [] if {"--caption", "--prompt", "--prompts", "--timeline"} & set(changed) else ["--caption", "a"]
        output = ["-o", "taken.wav"] if case.startswith("resume") else ["-o", "a.wav"]
        base = ["--steps", "10", "--seed", "7"]
        code = main(["generate", *base, *scene, *output, *changed])
        made = {name: data for name, data in contents(folder).items() if name.endswith(".wav")}
        return {**asked, "code": code, "files": sorted(made), "bytes": sorted(map(len, made.values()))}

    plain = ask("plain")
    assert plain["code"] == 0
    # What an option needs beside it.
    needed = {"resume": (), "fade": ("--timeline", "t.txt"), "emphasis": ("--sfx", "b"), "stems": ("--sfx", "b")}
    for option, (changed, place) in GENERATE.items():
        before = ask(f"{option} off", *needed[option]) if option in needed else plain
        after = ask(option, *changed)
        assert after.get(place) != before.get(place), option
        # The file says what was asked for, and marks a loop.
        expected = {place} | ({"bytes"} if place in ("files", "prompt", "loop") else set())
        expected |= {"seed"} if option == "takes" else set()
        assert {key for key in after | before if after.get(key) != before.get(key)} <= expected, option


def test_every_option_of_download_and_repack_reaches_what_it_is_for(monkeypatch):
    asked = []
    monkeypatch.setattr("dasheng_core.cli.download.download_models", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("dasheng_core.cli.repack.repack_checkpoint", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr("dasheng_core.cli.repack.locate", Path)
    for options in (
        ["download", "--models", "a"],
        ["download", "--models", "b"],
        ["download", "--models", "a", "--multilingual"],
        ["download", "--models", "a", "--multilingual", "--english"],
        ["download", "--models", "a", "--endpoint", "http://localhost:1"],
        ["repack", "a", "-o", "a"],
        ["repack", "b", "-o", "a"],
        ["repack", "a", "-o", "b"],
        ["repack", "a", "-o", "a", "--dtype", "fp32"],
    ):
        assert main(options) == 0
    assert len(set(asked)) == len(asked)
    options = {"models", "english", "multilingual", "endpoint"}, {"audiogen", "output", "dtype"}
    for add, expected in zip((add_download, add_repack), options, strict=True):
        add(parser := argparse.ArgumentParser())
        assert {action.dest for action in parser._actions} - {"help"} == expected, "each option needs its line above"
