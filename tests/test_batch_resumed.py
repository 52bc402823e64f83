"""``dasheng batch`` resumed: one run in a folder, and what is there is what was asked. A stand-in makes the sounds."""

import errno
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN
from dasheng_core import __version__
from dasheng_core.batch.manifest import Manifest
from dasheng_core.batch.model import READ_WHOLE, SAMPLE_BYTES, _digest
from dasheng_core.batch.one_run import NOTE
from dasheng_core.batch.storage import LOCK, LocalDisk
from dasheng_core.cli import main
from dasheng_core.delivery.file_notes import read_about
from riff import loops_of, markers_of, tags_of
from tools.comfyui import ROOT

SCENES = [
    {"caption": "A cat.", "name": "cat", "seconds": 0.2},
    {"caption": "A dog.", "name": "dog", "seconds": 0.04},
    {"timeline": [[0, "<|caption|> Rain."], [0.1, "<|caption|> Wind."]], "name": "sky", "seconds": 0.2},
    {"caption": "A bell.", "name": "bell", "seconds": 0.2, "takes": 2},
]
FILES = ["bell_1.wav", "bell_2.wav", "cat_1.wav", "dog_1.wav", "sky_1.wav"]


class Noise:
    """In the model's place: noise of each clip's seed, and how many clips it was asked for."""

    asked = 0

    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)

    def generate(self, prompts, seed, duration, **options):
        self.asked += len(prompts)
        each = [torch.Generator().manual_seed(number) for number in seed]
        return torch.stack([0.1 * torch.randn(round(duration * 16000), generator=one) for one in each])


@pytest.fixture(autouse=True)
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = Noise()
    monkeypatch.setattr("dasheng_core.batch.worker.load_model", lambda args: noise)
    write()
    return noise


def write(scenes: list[dict] = SCENES, path: str = "scenes.jsonl") -> None:
    Path(path).write_text("".join(json.dumps(scene) + "\n" for scene in scenes))


def batch(*options: str, seed: str = "3", output: str = "out/{name}_{take}.wav", audiogen: str = "nowhere") -> int:
    return main(
        ["batch", "scenes.jsonl", "--audiogen", audiogen, "-o", output, *(["--seed", seed] if seed else []), *options]
    )


def lines(path: str = "scenes.manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def contents(folder: str = "out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


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
            kept = [line for line in Path("scenes.manifest.jsonl").read_text().splitlines(True) if name not in line]
            Path("scenes.manifest.jsonl").write_text("".join(kept))

    return change


def noise_file(samples: int = 3200) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, torch.rand(samples).numpy(), 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


CAT, INDEX = "out/cat_1.wav (scenes.jsonl:1): ", "out/{index}.wav"
# What was changed after a run, and what the next one says. Then what is asked for, and the naming template.
DIFFERENT = {
    "caption": (changed(0, caption="A cow."), None, f"1 scene differs from what was made: give another -o and --manifest, or --remake. {CAT}its prompt was '<|caption|> A cat.' and is '<|caption|> A cow.'."),
    "seed": (changed(0, seed=9), None, f"{CAT}its seed was 3 and is 9."),
    "seconds": (changed(0, seconds=0.4), None, f"{CAT}its length was 0.2 s and is 0.4 s."),
    "negative": (changed(0, negative="<|caption|> A dog."), None, f"{CAT}its negative was none and is '<|caption|> A dog.'."),
    "timeline": (changed(2, timeline=[[0, "<|caption|> Rain."], [0.12, "<|caption|> Wind."]]), None, "out/sky_1.wav (scenes.jsonl:3): its prompt was "),
    "row": ([{"caption": "New.", "seconds": 0.04}, *SCENES], INDEX, "5 scenes differ from what was made"),
    "empty": (SCENES, put("cat_1.wav", b""), f"{CAT}it has 0 bytes, and "),
    "half": (SCENES, put("cat_1.wav", lambda data: data[: len(data) // 2]), " were written"),
    "noise": (SCENES, put("cat_1.wav", lambda data: os.urandom(len(data))), f"{CAT}its bytes are not those that were written (another sha256)."),
    "unknown empty": (SCENES, put("cat_1.wav", b"", True), f"{CAT}neither the manifest nor its own comment says what it is."),
    "of another scene": (SCENES, put("cat_1.wav", lambda data: Path("out/bell_1.wav").read_bytes(), True), f"{CAT}neither the manifest nor"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_is_there_is_what_was_asked(case, caplog, model):
    """A change is named, nothing is touched; --check finds it too; --remake gives what an undisturbed run gives."""
    scenes, how, sentence = DIFFERENT[case]
    output = how if isinstance(how, str) else "out/{name}_{take}.wav"
    assert batch(output=output) == 0
    if callable(how):
        how()
    write(scenes)
    before, text = contents(), Path("scenes.manifest.jsonl").read_bytes()
    for option in ("--resume", "--check"):
        asked = model.asked
        assert batch(option, output=output) == 1
        assert model.asked == asked and contents() == before and Path("scenes.manifest.jsonl").read_bytes() == text
    assert sentence.rstrip(".") in caplog.text.replace("\n", " ")
    expected = whole_run(scenes, output)
    assert batch("--remake", output=output) == 0
    assert expected.items() <= contents().items()
    asked = model.asked
    assert batch("--resume", output=output) == 0 and batch("--check", output=output) == 0 and model.asked == asked


def test_a_name_that_a_folder_has_is_refused_and_not_remade(caplog):
    assert batch() == 0
    Path("out/cat_1.wav").unlink()
    Path("out/cat_1.wav").mkdir()
    assert batch("--resume") == 1 and batch("--remake") == 1
    assert caplog.text.count("out/cat_1.wav is there and is not a file: choose another name, or move it away.") == 2


def test_check_names_and_counts_what_is_missing(caplog):
    caplog.set_level(logging.INFO)
    assert batch() == 0 and batch("--check") == 0
    assert "5 clips are there, and each is what was made." in caplog.text
    Path("out/cat_1.wav").unlink()
    put("dog_1.wav", b"")()
    put("bell_1.wav", lambda data: data, forget=True)()
    write([*SCENES, {"captoin": "A cat."}])
    assert batch("--check") == 1
    assert "Of 5 clips 2 are missing or are in no line of the manifest" in caplog.text
    assert "out/cat_1.wav (scenes.jsonl:1): it is missing" in caplog.text
    assert "out/bell_1.wav (scenes.jsonl:4): no line of the manifest says that it is made" in caplog.text
    assert "scenes.jsonl:5: unknown key 'captoin'" in caplog.text
    assert "and 1 differ from what was made" in caplog.text and sorted(contents()) == sorted({*FILES} - {"cat_1.wav"})


def test_files_of_a_killed_run_that_no_line_knows_say_themselves_what_they_are(model, caplog):
    """The run died before it wrote their lines down; in the second case even before the head."""
    assert batch() == 0
    whole, text, known = contents(), lines(), model.asked
    head = json.dumps(text[0]) + "\n"
    for left in (head, "", head[:20], None):
        Path("scenes.manifest.jsonl").unlink()
        if left is not None:
            Path("scenes.manifest.jsonl").write_text(left)
        if not left or len(left) == 20:
            assert batch("--resume", seed="") == 1
            there = "is not there" if left is None else "says nothing of a run"
            assert f"There is no run to resume from, since scenes.manifest.jsonl {there}: name" in caplog.text
        assert batch("--resume") == 0
        assert model.asked == known and contents() == whole
        assert lines()[0] == text[0]
        measured = [{key: line[key] for key in line.keys() - {"took", "worker", "time"}} for line in text[1:]]
        again = [{key: line[key] for key in line.keys() - {"worker", "time"}} for line in lines()[1:]]
        assert sorted(again, key=str) == sorted(measured, key=str) or {str(sorted(a.items())) for a in again} == {
            str(sorted(m.items())) for m in measured
        }


def older(line: dict) -> dict:
    """A line as the first form of manifests had it."""
    new = ("manifest", "version", "model", "asked", "bytes", "sha256", "clipped")
    return {key: value for key, value in line.items() if key not in new}


def test_a_manifest_of_the_first_form_is_read(model, caplog):
    assert batch() == 0
    text = [older(line) for line in lines()]
    del text[0]["settings"]["zero_star"]
    save = lambda: Path("scenes.manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in text))  # noqa: E731
    save()
    known = model.asked
    assert batch("--resume") == 0 and batch("--check") == 0 and model.asked == known
    assert batch("--resume", "--zero-star") == 1 and "whose zero_star was False, not True" in caplog.text
    for scenes, sentence in (
        (changed(0, caption="A cow."), "its prompt was '<|caption|> A cat.' and is '<|caption|> A cow.'"),
        (changed(0, seed=9), "its seed was 3 and is 9"),
        (changed(0, seconds=0.4), "its length was 0.2 s and is 0.4 s"),
    ):
        write(scenes)
        assert batch("--resume") == 1 and sentence in caplog.text
    write()
    for data in (b"", noise_file(100), Path("out/cat_1.wav").read_bytes()[:500]):
        put("cat_1.wav", data)()
        assert batch("--resume") == 1 and "it is not the whole sound that was made" in caplog.text
        caplog.clear()
    assert batch("--remake") == 0 and batch("--check") == 0 and model.asked == known + 1


@pytest.mark.parametrize(
    "head",
    [{"settings": [], "seed": 1}, {"settings": {}, "seed": "1"}, {"settings": {}, "seed": True}, {"settings": {}, "seed": -1},
     {"settings": {}}, [], 5, "settings seed", None, {"settings": {}, "seed": 1, "model": [1]}, {"settings": {}, "seed": 1, "manifest": "x"}],
    ids=str,
)  # fmt: skip
def test_what_is_no_manifest_is_named(head, caplog):
    Path("scenes.manifest.jsonl").write_text(json.dumps(head) + "\n")
    assert batch("--resume") == 1
    assert "scenes.manifest.jsonl:1 is not of a manifest of dasheng batch: name another file" in caplog.text


@pytest.mark.parametrize(
    "line",
    ["[]", "5", '{"file": 5}', '"file"', '{"scene": []}', "[" * 100_000, '{"scene": ', "\0"],
    ids=lambda line: line[:12],
)
def test_a_line_that_is_none_is_named(line, caplog):
    assert batch() == 0
    with open("scenes.manifest.jsonl", "a") as file:
        file.write(f"{line}\n")
    assert batch("--resume") == 1
    assert "scenes.manifest.jsonl:7 is not of a manifest of dasheng batch: name another file" in caplog.text


def test_a_manifest_of_another_version_is_refused_and_one_that_is_no_file(caplog):
    assert batch() == 0
    text = Path("scenes.manifest.jsonl").read_text()
    Path("scenes.manifest.jsonl").write_text(
        text.replace('"manifest": 2, "version": "', '"manifest": 3, "version": "9.\\u001b')
    )
    assert batch("--resume") == 1
    assert "is of form 3, this version reads up to 2" in caplog.text and "(9.\\x1b" in caplog.text
    os.mkfifo("pipe")
    assert batch("--resume", "--manifest", "pipe") == 1
    assert "pipe cannot be read (it is a pipe, expected a regular file): name another by --manifest." in caplog.text


# ---- writes that fail


@contextmanager
def full_disk(monkeypatch, first: int, last: float):
    """Of all writes, those of these numbers fail in their middle; counted from 1."""
    count = 0

    def fails() -> bool:
        nonlocal count
        count += 1
        return first <= count <= last

    import dasheng_core.delivery.audio_file as audio_file

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
        Path("scenes.manifest.jsonl").unlink(missing_ok=True)
        if options:
            write(changed(0, caption="A cow."))
            assert batch() == 0
            put("dog_1.wav", b"")()
            write()
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


# ---- two runs at once


TWO = """
import json, multiprocessing, os, sys, time
import torch
from dasheng_core.batch import worker
from dasheng_core.cli import main
from dasheng_core.batch.manifest import Manifest

class Slow:
    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)
    def generate(self, prompts, seed, duration, **options):
        time.sleep(0.02)
        return torch.stack([torch.full([round(duration * 16000)], number / 100) for number in seed])

worker.load_model = lambda args: Slow()
command = ["batch", "scenes.jsonl", "--audiogen", "nowhere", "-o", "out/{name}_{take}.wav", "--seed", "3", "--batch-frames", "1"]

def killed():
    add = Manifest.add
    Manifest.add = lambda self, entry: os._exit(9) if entry.get("file", "").startswith("out/b1_") else add(self, entry)
    main(command)

def resume(start, name):
    sys.stderr = sys.__stderr__ = open(f"said.{name}", "w")
    import logging
    for handler in logging.getLogger().handlers:
        handler.setStream(sys.stderr)
    start.wait()
    code = main([*command, "--resume"])
    os._exit(code)

fork = multiprocessing.get_context("fork")
def run(target, *arguments):
    child = fork.Process(target=target, args=arguments)
    child.start()
    return child

for turn in range(20):
    for name in os.listdir("out") if os.path.exists("out") else ():
        os.unlink(f"out/{name}")
    if os.path.exists("scenes.manifest.jsonl"):
        os.unlink("scenes.manifest.jsonl")
    first = run(killed); first.join()
    assert first.exitcode == 9 and os.path.exists("out/.dasheng-batch.json"), "its lock is left over"
    start = fork.Event()
    two = [run(resume, start, name) for name in "ab"]
    start.set()
    for child in two:
        child.join()
    codes = sorted(child.exitcode for child in two)
    said = [open(f"said.{name}").read() for name in "ab"]
    assert codes in ([0, 0], [0, 1]), (codes, said)
    if codes == [0, 1]:
        assert any("The folder out is held by another run, process " in text or "Another run has just taken" in text for text in said), said
    files = [json.loads(line)["file"] for line in open("scenes.manifest.jsonl").read().splitlines()[1:]]
    assert len(files) == len(set(files)) == 8, (turn, files, said)
    assert len([name for name in os.listdir("out")]) == 8, os.listdir("out")
    print(*codes, flush=True)
last = run(resume, start, "c"); last.join()
assert last.exitcode == 0
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot fork")
def test_of_two_resumes_at_once_one_is_refused_by_name():
    write([{"caption": f"{i}", "name": f"b{i // 2}", "seconds": 0.04, "seed": i, "takes": 1} for i in range(0, 16, 2)])
    done = subprocess.run(
        [sys.executable, "-c", TWO], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    turns = done.stdout.split("\n")[:-1]
    assert len(turns) == 20 and "0 1" in turns, "they never met"


HERE = platform.node()


@pytest.mark.parametrize(
    "note, goes_on, named",
    [
        ({"host": "far", "pid": 7, "since": "then"}, False, "is held by another run, process 7 on far since then: wait"),
        ({"host": "far\x1b\n", "pid": "7" * 500, "since": []}, False, r"on far\x1b\n since []: wait"),
        ({"host": HERE, "pid": 7, "since": "then"}, True, ""),
        ({"host": HERE, "pid": os.getpid(), "since": "then"}, True, ""),
        ([], False, "is held by another run: wait until it has ended, or choose another -o; if it has ended without releasing it, lift its lock by --break-lock."),
        (b"", False, "is held by another run: wait"),
        (b"[" * 4000, False, "is held by another run: wait"),
    ],
    ids=["far", "acting", "ended", "own", "empty list", "empty", "brackets"],
)  # fmt: skip
def test_a_lock_that_was_left_over(note, goes_on, named, caplog):
    """That of a process of this machine has ended with it; any other one is lifted by the user alone."""
    Path("out").mkdir()
    Path("out", NOTE).write_bytes(note if isinstance(note, bytes) else json.dumps(note).encode())
    assert batch() == (0 if goes_on else 1)
    if not goes_on:
        assert f"The folder out {named}" in caplog.text or named in caplog.text
        assert not Path("scenes.manifest.jsonl").exists() and Path("out", NOTE).exists()
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


def test_where_nothing_can_be_locked_a_note_of_this_machine_stays_too(monkeypatch, caplog):
    """A bucket, or a disk without locks."""

    @contextmanager
    def unlocked(self, path):
        (self.folder / path).mkdir(exist_ok=True)
        yield None

    monkeypatch.setattr(LocalDisk, "locked", unlocked)
    Path("out").mkdir()
    Path("out", NOTE).write_text(json.dumps({"host": HERE, "pid": 7, "since": "then"}))
    assert batch() == 1 and "lift its lock by --break-lock" in caplog.text
    assert batch("--break-lock") == 0 and sorted(contents()) == FILES


def test_a_manifest_that_another_program_writes_is_not_written_over(monkeypatch, caplog):
    """As two runs do that have one manifest and, started elsewhere, other folders."""
    add, foreign = Manifest.add, '{"scene": 1, "error": "of another run"}\n'

    def meanwhile(self, entry):
        add(self, entry)
        with suppress(FileNotFoundError), open("scenes.manifest.jsonl", "a") as file:
            file.write(foreign)

    with monkeypatch.context() as patched:
        patched.setattr(Manifest, "add", meanwhile)
        assert batch() == 1
    assert "scenes.manifest.jsonl was changed by another program meanwhile: end the other run" in caplog.text
    assert batch("--resume") == 0 and sorted(contents()) == FILES


# ---- the model of a run


def copy_of_tiny(name: str) -> str:
    shutil.copytree(GOLDEN / "tiny", name)
    return name


def with_model(folder: str, *options: str) -> int:
    parts = ["--text-encoder", f"{folder}/text_encoder", "--audio-tokenizer", f"{folder}/audio_tokenizer"]
    return batch(*parts, *options, audiogen=f"{folder}/audiogen")


def test_another_model_is_refused_by_name(caplog, model):
    a, b = copy_of_tiny("a"), copy_of_tiny("b")
    assert with_model(a) == 0
    head = lines()[0]
    assert (head["manifest"], head["version"]) == (2, __version__)
    assert sorted(head["model"]) == ["audio-tokenizer", "audiogen", "text-encoder"]
    Path("out/cat_1.wav").unlink()
    # Other places and times of the same files are the same model.
    assert with_model(b, "--resume") == 0
    known = model.asked
    for part in ("audiogen", "text_encoder", "audio_tokenizer"):
        path = Path(b, part, "model.safetensors")
        tensors = load_file(path)
        name = max(tensors, key=lambda name: tensors[name].numel())
        tensors[name].view(-1)[-1] += 1
        save_file(tensors, path, {"format": "pt"})
        assert with_model(b, "--resume") == 1
        digest = head["model"][part.replace("_", "-")]
        assert f"is of a run whose model of --{part.replace('_', '-')} was {digest}, not " in caplog.text
        shutil.copy(GOLDEN / "tiny" / part / "model.safetensors", path)
    assert model.asked == known
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
    shutil.copy(GOLDEN / "tiny" / "audiogen" / "config.json", "a/config.json")
    seen.add(_digest(Path("a")))
    assert len(seen) == 7


# ---- what files and lines say


class Loud(Noise):
    """Three samples beyond full scale, whose peak is twice that."""

    def generate(self, prompts, seed, duration, **options):
        sounds = 0.01 * torch.ones(len(prompts), round(duration * 16000))
        sounds[:, 5:8] = torch.tensor([1.5, -2.0, 1.01])
        return sounds


@pytest.mark.parametrize(
    "suffix, form, clipped",
    [("flac", [], 3), ("wav", ["--format", "wav16"], 3), ("wav", [], 0)],
)
def test_peaks_are_those_before_the_file_clips_them(suffix, form, clipped, monkeypatch, caplog):
    monkeypatch.setattr("dasheng_core.batch.worker.load_model", lambda args: Loud())
    write(SCENES[:2])
    output = "out/{name}_{take}." + suffix
    assert batch(*form, output=output) == 0
    text = lines()
    assert {(line["peak"], line["clipped"]) for line in text[1:]} == {(6.02, clipped)}
    assert ("2 clips pass full scale and are clipped" in caplog.text) == bool(clipped)
    # A run that died before it wrote the lines: the files know it.
    Path("scenes.manifest.jsonl").write_text(json.dumps(text[0]) + "\n")
    assert batch("--resume", *form, output=output) == 0
    assert {(line["peak"], line["clipped"]) for line in lines()[1:]} == {(6.02, clipped)}


def test_lines_hold_what_was_asked_and_the_bytes():
    assert batch() == 0
    for line in lines()[1:]:
        data = Path(line["file"]).read_bytes()
        assert line["bytes"] == len(data) and line["sha256"] == hashlib.sha256(data).hexdigest()
        about = read_about(data)
        assert about["made_by"] == f"dasheng-audiogen {__version__}"
        assert {key: about[key] for key in ("prompt", "seed", "asked", "seconds", "peak", "clipped")} == {
            key: line[key] for key in ("prompt", "seed", "asked", "seconds", "peak", "clipped")
        }
    assert len({line["asked"] for line in lines()[1:]}) == 5


def test_a_batch_writes_loop_points_and_markers_into_every_file():
    for suffix in ("wav", "flac"):
        output = suffix + "/{name}_{take}." + suffix
        assert batch("--loop", "--manifest", f"{suffix}.jsonl", output=output) == 0
        path = Path(suffix, f"sky_1.{suffix}")
        assert len(soundfile.read(path)[0]) == 3200
        if suffix == "wav":
            assert loops_of(path) == [(0, 3199)] and markers_of(path) == [(0, "Rain."), (1600, "Wind.")]
        else:
            tags = tags_of(path)
            assert (tags["LOOPSTART"], tags["LOOPLENGTH"]) == ("0", "3200")
            assert [tags[f"CHAPTER00{i}"] for i in (0, 1)] == ["00:00:00.000", "00:00:00.100"]
            assert [tags[f"CHAPTER00{i}NAME"] for i in (0, 1)] == ["Rain.", "Wind."]
            assert json.loads(tags["COMMENT"])["prompt"]["entries"][1] == [0.1, "<|caption|> Wind."]
    assert batch("--manifest", "plain.jsonl", output="plain/{name}_{take}.flac") == 0
    assert list(tags_of(Path("plain/cat_1.flac"))) == ["COMMENT"]


def test_notes_that_no_flac_can_hold_are_refused(caplog):
    # In the comment's JSON a letter of another script takes six bytes; the line itself is not too long to be read.
    Path("scenes.jsonl").write_text('{"caption": "%s", "seconds": 0.04, "name": "a"}' % ("é" * 2**22), "utf-8")
    assert batch(output="out/{name}.flac") == 1
    assert "expected less than 16 MB" in lines()[1]["error"]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "data", [b"", b"fLaCCOMMENT=", b"INFOICMT", b"INFOICMT\xff\xff\xff\xff[" + b"[" * 99_999, b"COMMENT={}"]
)
def test_no_file_breaks_the_reader_of_comments(data):
    assert read_about(data) == {}


def test_a_line_of_the_manifest_is_found_in_memory_that_is_two_numbers_a_clip():
    count = 20_000
    with open("m.jsonl", "w") as file:
        file.write(json.dumps({"settings": {}, "seed": 1}) + "\n")
        for i in range(count):
            file.write(json.dumps({"scene": i, "prompt": "x" * 500, "file": f"out/{i}.wav", "bytes": i}) + "\n")
        file.write(json.dumps({"scene": 7, "prompt": "y", "file": "OUT/7.wav", "bytes": -7}) + "\n")
    tracemalloc.start()
    manifest = Manifest(Path("m.jsonl"), True)
    with manifest.lines() as line_of:
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert used < 100 * count
        assert [line_of(f"out/{i}.wav")["bytes"] for i in (0, 7, count - 1)] == [0, -7, count - 1], (
            "the last one counts"
        )
        assert line_of("out/x.wav") is None


@pytest.mark.parametrize("terminal", [False, True])
def test_a_log_has_a_line_a_minute(monkeypatch, caplog, terminal):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("dasheng_core.progress.LINE_SECONDS", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    assert batch() == 0
    said = [line for line in caplog.messages if line.startswith("batch: ")]
    assert len(said) == (0 if terminal else 5)
    if not terminal:
        assert re.fullmatch(r"batch: 3 of 5 clips, 3 made, 0 failed, \S+ per minute, 00:\d\d left", said[2])
        assert re.fullmatch(r"batch: 5 of 5 clips, 5 made, 0 failed, \S+ per minute", said[4])
