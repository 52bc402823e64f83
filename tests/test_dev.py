"""The README's commands, run as a newcomer runs them (the environment is there already: these tests run in it)."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import soundfile

from dev import DEV, ROOT, SMALL_PROMPT
from mini.judges import JUDGES
from mini.listening import Sound
from mini.words import beyond

pytestmark = pytest.mark.skipif(
    not (DEV / "venv" / "installed").exists() or "COMFYUI_PATH" not in os.environ,
    reason="run the tests by python3 dev.py test",
)
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


def alive(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/system_stats", timeout=5)
    except (urllib.error.URLError, ConnectionError):
        return False
    return True


def run(*options: str) -> tuple[str, np.ndarray]:
    """What ``dev.py run`` says, and the sound it makes."""
    command = [sys.executable, "dev.py", "run", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "sampling" in result.stderr
    (file,) = re.findall(r"Made (.+\.flac)", result.stdout)
    waveform, rate = soundfile.read(file, dtype="float32")
    assert f"{len(waveform) / rate:.2f} s, 16000 Hz, 1 channel(s)" in result.stdout
    assert "mini model: a small" in result.stdout and "not Dasheng-AudioGen" in result.stdout
    return result.stdout, waveform


def test_run_makes_the_sound_it_was_asked_for():
    said, waveform = run()
    assert f"* {SMALL_PROMPT}\n" in said and "no idea" not in said
    sound = Sound(waveform)
    assert (JUDGES["count"](sound), JUDGES["ambience"](sound)) == (3, "rain")
    assert beyond(SMALL_PROMPT) == []


@pytest.mark.parametrize("option", ["--prompt", "--caption"])
def test_run_says_what_the_mini_model_does_not_know(option):
    said, _ = run(option, "A dog barks in the rain.", "--seed", "3")
    assert "* <|caption|> A dog barks in the rain.\n" in said and "no idea of: dog, barks." in said
    assert f"run --prompt '{SMALL_PROMPT}'" in said


def test_run_takes_a_tagged_prompt():
    prompt = "<|caption|> A low beep, about one second long. <|sfx|> A low beep."
    said, waveform = run("--prompt", prompt)
    assert f"* {prompt}\n" in said and "Its world" not in said
    assert JUDGES["pitch"](Sound(waveform)) == "low"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_serves_until_it_is_stopped_and_leaves_no_process(end):
    command = [sys.executable, "-u", "dev.py", "serve", "--no-browser"]
    serving = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in serving.stdout if (found := ADDRESS.search(line)))
        assert alive(address)
        serving.send_signal(end)
        assert serving.wait(timeout=30) == {signal.SIGINT: 130, signal.SIGTERM: 143}[end]
        assert not alive(address)
    finally:
        serving.kill()


def test_a_wrong_comfyui_path_is_refused():
    environment = {**os.environ, "COMFYUI_PATH": str(ROOT / "tests")}
    command = [sys.executable, "dev.py", "run"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and "which has no main.py: set it to ComfyUI's folder" in result.stderr


def test_bench_measures_and_keeps_what_it_found(tmp_path):
    command = [sys.executable, "dev.py", "bench", "--quick", "--size", "tiny", "--json", str(tmp_path / "found.json")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "`python3 dev.py bench --quick --size tiny`" in result.stdout and "in turns" in result.stderr
    assert (tmp_path / "found.json").stat().st_size > 1000
