"""Environments that users really have: transformers 5, and a torchaudio that does not load.

Each is made for real by pip, in a folder that comes before the test environment's packages.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from graphs import Graph, run
from tools.comfyui import ROOT, SMALL_NAME, Problem, Server, link_folder
from tools.environments import ENVIRONMENTS, missing_pairs, moved_by, needed

PROMPT = "<|caption|> A cat meowing softly."


@pytest.fixture(scope="module")
def transformers_5(tmp_path_factory):
    return install(tmp_path_factory.mktemp("transformers5"), "transformers>=5")


@pytest.fixture(scope="module")
def broken_torchaudio(tmp_path_factory):
    """A torchaudio built for another torch: installed, and failing on import."""
    folder = install(tmp_path_factory.mktemp("torchaudio"), "torchaudio==2.8.0", "--no-deps")
    assert python(folder, "import torchaudio").returncode != 0
    return folder


@pytest.fixture(params=["transformers 4", "transformers 5"])
def without_torchaudio(request, broken_torchaudio):
    """transformers 5 imports the torchaudio that does not load, and fails with it."""
    if request.param == "transformers 4":
        return broken_torchaudio
    return os.pathsep.join(map(str, (broken_torchaudio, request.getfixturevalue("transformers_5"))))


def install(folder: Path, *what: str) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", folder, *what]
    subprocess.run([str(part) for part in pip], check=True)
    return folder


def python(folder: Path | str, *arguments: str) -> subprocess.CompletedProcess:
    """``python -c`` code, or ``python -m`` module and arguments, with ``folder`` (or several) before everything else."""
    how = ["-c", *arguments] if len(arguments) == 1 else ["-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *how], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def server_with(tmp_path, monkeypatch):
    """A ComfyUI whose Python finds the packages of a folder first."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")

    def start(folder: Path | str) -> Server:
        monkeypatch.setenv("PYTHONPATH", str(folder))
        (tmp_path / "custom_nodes").mkdir()
        link_folder(tmp_path / "custom_nodes" / "probe_pack", ROOT / "tests" / "probe_pack")
        return Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), tmp_path)

    return start


def text_to_audio() -> Graph:
    graph = Graph()
    model, clip, vae = graph.loaders(SMALL_NAME)
    positive = graph.encode(clip, PROMPT)
    latent = graph.add("EmptyDashengLatentAudio", seconds=positive(1), batch_size=1)
    latent = graph.sample(model, positive, latent, steps=4, seed=1)
    audio = graph.add("DashengDecode", vae=vae, latent=latent)
    graph.add("ProbeAudio", audio=audio)
    return graph.save(latent, graph.add("DashengEncode", vae=vae, audio=audio))


def check_latents(mini, made: list) -> None:
    """The one sampled, and the one encoded from its sound."""
    sampled, encoded = made
    assert (sampled - expected_latent(mini)).abs().max() < 1e-4
    expected = mini.encode(mini.decode(sampled))
    assert (encoded - expected).abs().max() < 1e-3 * expected.abs().max()


def expected_latent(mini):
    return mini.sample(*mini.encode_text(PROMPT), seed=1, num_steps=4, noise_kind="plain")


@pytest.mark.full
def test_text_to_sound_and_sound_to_latent_without_a_working_torchaudio(without_torchaudio):
    result = python(without_torchaudio, "pytest", "-q", "-p", "no:cacheprovider", "tests/test_golden.py")
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.full
def test_text_to_audio_in_a_graph_without_a_working_torchaudio(server_with, without_torchaudio, mini):
    """ComfyUI's own audio nodes are missing then; the pack's are there and work."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(server_with(without_torchaudio))
        except Problem:
            pytest.skip("this version of ComfyUI does not start without torchaudio")
        result = run(server, text_to_audio())
    assert result.events[-1][0] == "execution_success"
    check_latents(mini, result.latents())
    (text,) = result.texts()
    assert json.loads(text)[:3] == [640 * expected_latent(mini).shape[-1], 16000, "torch.float32"]


def test_every_pair_of_versions_occurs_in_the_environments_run_by_hand():
    assert not missing_pairs(ENVIRONMENTS)
    assert missing_pairs(ENVIRONMENTS[1:]), "none of them is superfluous"


@pytest.mark.full
def test_the_readmes_line_moves_nothing_whatever_is_there(transformers_5, broken_torchaudio):
    """What the library asks for, alone, moves what docs/environments.md says."""
    pages = (ROOT / "README.md", ROOT / "README.zh.md")
    lines = [re.findall(r"python -m pip install (.+)", page.read_text("utf-8")) for page in pages]
    assert lines == [["-r requirements.txt"]] * 2
    assert moved_by(sys.executable, *needed()) == {}
    for folder, moves in ((transformers_5, "transformers"), (broken_torchaudio, "torch")):
        assert moved_by(sys.executable, *lines[0][0].split(), PYTHONPATH=str(folder)) == {}
        assert moved_by(sys.executable, *needed(), PYTHONPATH=str(folder)).keys() & {"torch", "transformers"} == {moves}


def test_each_package_of_the_library_comes_by_comfyui_or_by_the_requirements():
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    names = lambda text: {re.split("[^a-z-]", line)[0] for line in text.lower().splitlines()} - {""}  # noqa: E731
    six = names("\n".join(needed()))
    ours = (ROOT / "requirements.txt").read_text("utf-8")
    brought = names((Path(os.environ["COMFYUI_PATH"]) / "requirements.txt").read_text("utf-8"))
    # What torch and transformers bring with them is asked for by its own name too.
    within = {"filelock", "regex"}
    assert len(six - within) == 6 and names(ours) == six - within - brought == {"soundfile"}
    assert not [name for name in six if name not in ours], "its comment says who brings each"
