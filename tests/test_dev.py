"""The README's commands, run as a newcomer runs them (the environment is there already: these tests run in it)."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import soundfile

from dev import DEV, ROOT

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


def test_run_makes_a_sound_and_says_what_it_is():
    command = [sys.executable, "dev.py", "run", "--caption", "A bell rings once.", "--seed", "3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (file,) = re.findall(r"Made (.+\.flac)", result.stdout)
    info = soundfile.info(file)
    assert f"{info.duration:.2f} s, 16000 Hz, 1 channel(s)" in result.stdout
    assert "small random checkpoint" in result.stdout and "sampling" in result.stderr


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
