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

from conftest import GOLDEN, deviation, stop_command, unprivileged
from dasheng_core import Timeline
from dasheng_core.batch.jobs import make_scene, plan_jobs, read_scenes
from dasheng_core.cli import generate, main
from dasheng_core.cli.arguments import add_generate, build_parser
from dasheng_core.delivery.audio_file import write_audio
from dasheng_core.delivery.formats import FORMATS
from dasheng_core.options import DEFAULT_OPTIONS, DRAFT, SamplingOptions
from riff import markers_of
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


@pytest.mark.parametrize(
    # Dither moves a 16-bit sample by up to one step more than rounding does.
    "name, options, subtype, step",
    [
        ("x.wav", [], "FLOAT", 0),
        ("x.flac", [], "PCM_24", 2**-23),
        ("x.WAV", ["--format", "wav16"], "PCM_16", 1.5 * 2**-15),
        ("x.wav", ["--format", "wav24"], "PCM_24", 2**-23),
    ],
)
def test_takes_are_numbered_in_the_order_of_the_prompt_file(tiny, tmp_path, name, options, subtype, step):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "takes" / name
    prompts.write_text(f"# two scenes\n{CAT}\n\n{STORM}\n")
    options = [*options, *SHORT, "--seed", "5", "--takes", "2", "--prompts", str(prompts)]
    assert main(["generate", *FILES, *options, "-o", str(output)]) == 0
    files = sorted(output.parent.iterdir())
    assert [file.name for file in files] == [f"x_00{i}{output.suffix}" for i in (1, 2, 3, 4)]
    expected = tiny.generate([CAT, CAT, STORM, STORM], num_steps=2, seed=[5, 6, 5, 6], duration=0.2)
    for file, waveform in zip(files, expected, strict=True):
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, subtype)
        assert (read(file).clamp(-1, 1) - waveform.clamp(-1, 1)).abs().max() <= step + 5e-6


def test_only_float_files_keep_peaks_beyond_full_scale(tmp_path, caplog):
    loud = torch.tensor([0.0, 2.0])
    write_audio(tmp_path / "loud.wav", loud, 16000)
    assert not caplog.text and read(tmp_path / "loud.wav")[1] == 2.0
    assert b"PEAK" not in (data := (tmp_path / "loud.wav").read_bytes()) or data[data.index(b"PEAK") + 12 :][
        :4
    ] == bytes(4)
    for name in ("flac", "wav16", "wav24"):
        path = tmp_path / f"{name}{FORMATS[name][0]}"
        write_audio(path, loud, 16000, name)
        assert "The peak is 2.00 times full scale and is clipped" in caplog.text and str(path) in caplog.text
        assert read(path)[1] == pytest.approx(1, abs=1e-4)


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
        ("[" * 100000, "not valid JSON (too many brackets"),
        ('{"seed": %s}' % ("7" * 5000), "has 5000 digits, expected fewer: no number here is that long."),
        ('["a"]', '["a"] is not a JSON object'),
        ('{"caption": "a", "seed": -1}', "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        ('{"content": "a"}', "The prompt starts with 'a', expected <|caption|>"),
        ('{"content": "<|caption|> a", "prompt": "<|caption|> a"}', "content and prompt mean the same"),
        ('{"caption": "None"}', "The caption is empty"),
        ('{"caption": "a", "secnds": 3}', "unknown key 'secnds', expected caption, speech"),
        ('{"caption": "a", "caption": "b"}', "'caption' stands twice"),
        ('{"caption": 3}', "caption is 3, expected a text"),
        ('{"caption": "a", "seconds": [1]}', "seconds is [1], expected a number"),
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
        ("कि", "कि"),
        ("a\u202eb\u200bc", "a_b_c"),
        (" .x. ", "x"),
    ],
)
def test_names_of_prompts_are_one_part_of_a_path(given, safe):
    assert make_scene({"caption": "a"}, name=given).name == safe


@pytest.mark.parametrize(
    "output, sentence",
    [
        ("{nme}.wav", "{nme} is not one of the fields {name}, {index}, {take}, {seed}, {category}, {CatID}"),
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
        (["--takes", "0"], "takes is 0, expected a whole number from 1 to 100000"),
        (["--seed", "-1"], "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        (["--format", "flac"], "x.wav: the format flac needs a name that ends in .flac"),
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_text_is_read_as_typed_in_any_terminal_and_a_closed_one_leaves_whole_files(tmp_path):
    """The window is gone: nothing that is written to it arrives, and the system sends SIGHUP."""
    import pty

    own = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(ROOT)
        scene = ["--caption", "Rain on a roof, 雨", "--takes", "9", "--seconds", "5", "--seed", "3", "--steps", "4"]
        command = [*FILES, *scene, "-o", str(tmp_path / "x.wav")]
        os.execve(sys.executable, [sys.executable, "-m", "dasheng_core", "generate", *command], own)
    said = b""
    while not (tmp_path / "x_001.wav").exists():
        # Reading keeps the program from waiting for room.
        said += os.read(terminal, 10_000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 129, said
    made = sorted(tmp_path.iterdir())
    assert 1 <= len(made) < 9 and all(path.suffix == ".wav" and len(read(path)) == 80_000 for path in made)
    assert said.count(b"has pieces that the model does not know (") == 1 and b"\\u96e8" in said, "a doubt is said once"


def test_an_interrupted_run_leaves_whole_files_and_resumes_to_the_same(tmp_path, caplog, monkeypatch):
    # The third clip is long: the signal comes while it is made.
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"caption": "clip {i}", "seconds": {s}}}\n' for i, s in enumerate([0.2, 0.2, 30, 0.2]))
    )

    def options(folder):
        command = ["generate", *FILES, "--prompts", str(prompts), "--seed", "3", "--steps", "4"]
        return [*command, "-o", str(folder / "x.wav")]

    folder = tmp_path / "stopped"
    returned, errors = stop_command(options(folder), (folder / "x_002.wav").exists, signal.SIGINT)
    assert returned == 130 and "Traceback" not in errors
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


def test_a_drawn_seed_is_printed_and_makes_the_same_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = ["generate", *FILES, "--prompt", CAT, *SHORT, "-o"]
    assert main([*options, str(tmp_path / "drawn.wav")]) == 0
    (seed,) = re.findall(r"seed \d+, drawn: --seed (\d+) makes the same again", caplog.text)
    assert f"drawn.wav: 0.20 s, seed {seed}" in caplog.text
    assert main([*options, str(tmp_path / "again.wav"), "--seed", seed]) == 0
    assert (tmp_path / "drawn.wav").read_bytes() == (tmp_path / "again.wav").read_bytes()


def test_a_file_that_is_not_the_clip_is_not_resumed(tmp_path, caplog):
    first, second = tmp_path / "x_001.flac", tmp_path / "x_002.flac"
    command = ["generate", *FILES, *SHORT, "--caption", "a", "--takes", "2", "--seed", "1"]
    options = [*command, "-o", str(tmp_path / "x.flac")]
    assert main(options) == 0 and main([*options, "--resume"]) == 0
    whole = first.read_bytes()
    for data in (b"", second.read_bytes(), whole[:-1]):
        first.write_bytes(data)
        before = contents(tmp_path)
        caplog.clear()
        assert main([*options, "--resume"]) == 1 and contents(tmp_path) == before
        assert "x_001.flac already there, and not what is asked for now" in caplog.text and "x_002" not in caplog.text
    first.write_bytes(whole)
    for other in (["--steps", "3"], ["--seconds", "0.4"], ["--caption", "b"], ["--seed", "2"], ["--zero-star"]):
        assert main([*options, *other, "--resume"]) == 1, other
    assert main([*options, "--format", "flac", "--resume"]) == 0 and contents(tmp_path) == before | {first.name: whole}


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

    parser = argparse.ArgumentParser()
    add_generate(parser)
    for text, sentence in (
        (f"soon {CAT}", "scenes.txt:1: 'soon .* a second from 0 to 600"),
        ("0 rain", r"scenes.txt:1: The prompt starts with 'rain', expected <\|caption\|>"),
        (f"0 {CAT}\n2 <|caption|>", r"scenes.txt:2: Nothing follows <\|caption\|>"),
        (f"0.3 {CAT}\n0.3 {STORM}", "scenes.txt:2: a prompt from 0.3 s on, .* from 0.3 s on"),
        ("", "scenes.txt has no lines"),
        (f"0 {CAT}\n0.5 {STORM}", "scenes.txt: .* the time 0.5 s, .* clip of 0.4 s"),
    ):
        lines.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            generate.scenes_to_make(parser.parse_args(["--timeline", str(lines), "--seconds", "0.4", "-o", "x.wav"]))


# Each option with another value than its default, and what it changes in what is asked of the library.
GENERATE = {
    **{aspect: ([f"--{aspect}", "b"], "prompt") for aspect in ("caption", "speech", "asr", "sfx", "music", "env")},
    "prompt": (["--prompt", "<|caption|> b"], "prompt"),
    "prompts": (["--prompts", "b.txt"], "prompt"),
    "audiogen": (["--audiogen", "b"], "load 0"),
    "text_encoder": (["--text-encoder", "b"], "load 1"),
    "audio_tokenizer": (["--audio-tokenizer", "b"], "load 2"),
    "device": (["--device", "cpu:0"], "load 3"),
    "metadata": (["--metadata", "CatID=DOORWood"], "bytes"),
    "category": (["--category", "b", "takes=2", "--prompts", "c.jsonl"], "files"),
    "stems": (["--stems", "--prompt", "<|caption|> a <|sfx|> b"], "files"),
    "dtype": (["--dtype", "bf16"], "load 4"),
    "compile": (["--compile"], "load 5"),
    "apart": (["--apart", "0.1", "2"], "bytes"),
    "num_steps": (["--steps", "5"], "num_steps"),
    "guidance_scale": (["--guidance", "3"], "guidance_scale"),
    "sway_sampling_coef": (["--sway", "0"], "sway_sampling_coef"),
    "grid": (["--grid", "epss"], "grid"),
    "quality": (["--quality", "draft"], "num_steps"),
    "guidance_interval": (["--guidance-interval", "0.5", "1"], "guidance_interval"),
    "timeline": (["--timeline", "t.txt"], "prompt"),
    "script": (["--script", "s.txt"], "prompt"),
    "negative": (["--negative", "<|caption|> b"], "negative"),
    "fade": (["--fade", "1", "--timeline", "t.txt"], "prompt"),
    "emphasis": (["--emphasis", "sfx=2", "--sfx", "b"], "emphasis"),
    "loop": (["--loop"], "loop"),
    "graphs": (["--graphs"], "graphs"),
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
}


@pytest.mark.parametrize("beside", ["--steps 25", "--grid full"])
def test_quality_stands_for_steps_and_grid(beside, caplog):
    read = build_parser().parse_args
    of = lambda *more: [vars(read(["batch", "x", "-o", "y", *more]))[name] for name in DRAFT]  # noqa: E731
    assert of("--quality", "draft") == [*DRAFT.values()] and of() == [DEFAULT_OPTIONS[name] for name in DRAFT]
    assert main(["batch", "x", "-o", "y", *beside.split(), "--quality", "draft"]) == 1
    assert f"--quality draft stands beside {beside.split()[0]}" in caplog.text


def test_each_option_of_generate_is_in_the_table_above():
    add_generate(parser := argparse.ArgumentParser())
    assert set(GENERATE) == {action.dest for action in parser._actions} - {"help"}
    read = build_parser().parse_args(["generate", "-o", "x.wav"])
    for field in fields(SamplingOptions):
        assert GENERATE[field.name][1] == field.name and getattr(read, field.name) == field.default


@pytest.mark.parametrize("option", GENERATE)
def test_every_option_of_generate_reaches_what_it_is_for(option, tmp_path, monkeypatch):
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
            return {"sfx": given["audio"]}

    def ask(folder: str, *changed: str) -> dict:
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        Path("b.txt").write_text(STORM)
        Path("c.jsonl").write_text('{"caption": "a", "category": "b"}')
        Path("t.txt").write_text(f"0 {STORM}\n0.2 {CAT}")
        Path("s.txt").write_text("env: wind\n0.2 sfx: thunder")
        steps = [] if option == "quality" else ["--steps", "10"]
        base = ["generate", *steps, "--seed", "7", "-o", "a.wav"]
        assert option != "resume" or main([*base, "--caption", "a"]) == 0
        asked.clear()
        scene = (
            []
            if {"--caption", "--prompt", "--prompts", "--timeline", "--script"} & set(changed)
            else ["--caption", "a"]
        )
        code = main([*base, *scene, *changed])
        made = {name: data for name, data in contents(Path()).items() if name.endswith(".wav")}
        return {**asked, "code": code, "files": sorted(made), "bytes": sorted(map(len, made.values()))}

    monkeypatch.setattr("dasheng_core.batch.model.DashengAudioGen", Asked)
    changed, place = GENERATE[option]
    # What an option needs beside it stands behind it.
    needed = changed[{"fade": 2, "emphasis": 2, "stems": 1, "category": 3}.get(option, len(changed)) :]
    before, after = ask("off", *needed), ask("on", *changed)
    # The file says what was asked for, and marks a loop.
    expected = {place, "bytes"} | {"takes": {"seed"}, "category": {"seed"}, "script": {"duration"}}.get(option, set())
    different = {key for key in after | before if after.get(key) != before.get(key)}
    assert place in different <= expected


def test_every_option_of_download_and_repack_reaches_what_it_is_for(monkeypatch):
    asked = []
    for name in ("download.download_models", "repack.repack_checkpoint"):
        monkeypatch.setattr(f"dasheng_core.cli.{name}", lambda *arguments: asked.append(arguments))
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
