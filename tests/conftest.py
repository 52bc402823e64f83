"""Golden data: small random checkpoints and what the published model computed from them."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dasheng_core import DashengAudioGen
from graphs import TINY_NAME
from tools import comfyui
from tools.comfyui import MODEL_FOLDERS, ROOT, SMALL, Server, link_folder, write_model_paths
from tools.example_inputs import write_inputs

# Whatever started the tests, a shell with & for one, may have had them ignore the signal that some send to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"
SETS = ("tiny", "tiny_multilingual")
PUBLISHED_NAMES = {
    "diffusion_models": "dasheng_audiogen.safetensors",
    "text_encoders": "flan_t5_large.safetensors",
    "vae": "dashengtokenizer.safetensors",
}
PUBLISHED_MULTILINGUAL_NAMES = {
    "diffusion_models": "dasheng_audiogen_multilingual.safetensors",
    "text_encoders": "mt5_large.bin",
}


@dataclass
class Golden:
    folder: Path
    prompts: list[str]
    long_prompt: str
    cases: list[dict]
    tensors: dict[str, torch.Tensor]
    model: DashengAudioGen

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def load_model(folder: Path, **options) -> DashengAudioGen:
    return DashengAudioGen.from_pretrained(
        folder / "audiogen", folder / "text_encoder", folder / "audio_tokenizer", **options
    )


@pytest.fixture(scope="session", params=SETS)
def golden(request) -> Golden:
    folder = GOLDEN / request.param
    tensors = load_file(folder / "golden.safetensors")
    return Golden(
        folder, **json.loads((folder / "golden.json").read_text("utf-8")), tensors=tensors, model=load_model(folder)
    )


@pytest.fixture(scope="session")
def tiny() -> DashengAudioGen:
    return load_model(GOLDEN / "tiny")


@pytest.fixture(scope="session")
def hand(tiny):
    """The golden model's computation, spelt out."""
    from by_hand import Hand

    return Hand(tiny)


@pytest.fixture(scope="session")
def library(tiny):
    """The golden model's sampling by the library."""
    from by_hand import Library

    return Library(tiny)


@pytest.fixture(scope="session")
def mini() -> DashengAudioGen:
    """The trained model of the repository."""
    return load_model(SMALL)


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, each relative to max(1, |expected|)."""
    assert actual.shape == expected.shape, f"shape {list(actual.shape)}, expected {list(expected.shape)}"
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max().item()


def same_weights(a: DashengAudioGen, b: DashengAudioGen) -> bool:
    """Whether all weights of ``a`` are those of ``b``, bit for bit; ``b`` may have parts that ``a`` never uses.

    Where weights lie in memory decides on some processors how their products are rounded: sounds are only close.
    """
    for part in ("text_encoder", "adapter", "backbone", "decoder"):
        ours, theirs = (getattr(model, part).state_dict() for model in (a, b))
        same = ours.keys() <= theirs.keys() and all(
            ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
        )
        if not same:
            return False
    return True


@pytest.fixture(autouse=True)
def same_threads():
    """No test changes how many threads the next one has: on some processors sums are then rounded otherwise."""
    threads = torch.get_num_threads()
    yield
    left, _ = torch.get_num_threads(), torch.set_num_threads(threads)
    assert left == threads, f"the test left {left} threads, and had {threads}"


@pytest.fixture
def bfloat16_everywhere(monkeypatch):
    """bfloat16 is computed in bfloat16 on processors too that are faster in float32."""
    monkeypatch.setattr("dasheng_core.pipeline.has_fast_bfloat16", lambda device: True)


@pytest.fixture(scope="session")
def deviations():
    """Compare one kind of tensor with the published model's."""

    def check(golden: Golden, kind: str, actual, expected, tolerance: float):
        found = deviation(actual, expected)
        assert found <= tolerance, f"{kind}: deviation {found:.2e}, tolerance {tolerance:.0e}"

    return check


@contextmanager
def small_disk(folder: Path, size: int):
    """A real file system of ``size`` bytes at ``folder``; only root can mount one."""
    with comfyui.small_disk(folder, size) as disk:
        if disk is None:
            pytest.skip("a small disk can only be mounted by root on Linux")
        yield disk


@contextmanager
def unprivileged():
    """Root may write anywhere: give that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def hear_signals() -> None:
    """For a child: whatever started the tests, nohup for one, may have told its children to ignore them."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def stop_command(arguments: list[str], when: Callable[[], bool], stop: signal.Signals) -> tuple[int, str]:
    """Run the command line in a process of its own, send it ``stop`` as soon as ``when()``; exit code and messages."""
    if os.name == "nt":
        pytest.skip("Windows has no signals to send")
    command = [sys.executable, "-m", "dasheng_core", *arguments]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    try:
        while run.poll() is None and not when():
            time.sleep(0.01)
        run.send_signal(stop)
        messages = run.communicate(timeout=120)[1]
    finally:
        run.kill()
    return run.returncode, messages


@pytest.fixture(scope="session")
def rates(pytestconfig) -> dict[str, float]:
    """Question to the mini model -> share of right answers, printed when the session ends."""
    return pytestconfig.stash.setdefault(RATES, {})


RATES = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="run the long forms too, which need an hour and the package index"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "full: a long form, which --full runs")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    long = [item for item in items if item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def full(pytestconfig) -> bool:
    """Whether the long forms are run."""
    return pytestconfig.getoption("--full")


def pytest_sessionfinish(session):
    """A worker of pytest-xdist hands on what the session's end prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["rates"] = session.config.stash.get(RATES, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash.setdefault(RATES, {}).update(getattr(node, "workeroutput", {}).get("rates", {}))


def pytest_report_header(config) -> list[str]:
    """What these tests run on."""
    ours = "none: COMFYUI_PATH is not set"
    if path := os.environ.get("COMFYUI_PATH"):
        dynamic = ", layers as under dynamic VRAM" if os.environ.get("DYNAMIC_VRAM") else ""
        found = re.search(r'__version__ = "(.+)"', (Path(path) / "comfyui_version.py").read_text("utf-8"))
        ours = f"{found[1]}, in {path}{dynamic}"
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return [
        f"ComfyUI: {ours}",
        f"libraries: torch {torch.__version__}, transformers {version('transformers')}",
        f"processor: {platform.machine()}, {capability}, {threads} threads; GPUs: {torch.cuda.device_count()}",
    ]


def pytest_terminal_summary(terminalreporter, config):
    if rates := config.stash.get(RATES, None):
        terminalreporter.section("how often the mini model was right")
        for question, rate in rates.items():
            terminalreporter.line(f"{question:30} {rate:.2f}")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI with the pack; needs what ``python3 dev.py test`` sets up."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    if (
        os.environ.get("DYNAMIC_VRAM")
        and not (Path(os.environ["COMFYUI_PATH"]) / "comfy/memory_management.py").exists()
    ):
        pytest.fail("DYNAMIC_VRAM is set, which ComfyUI knows from 0.30 on: set COMFYUI_PATH to a newer one.")
    with open_server(tmp_path_factory.mktemp("comfyui")) as server:
        yield server


@pytest.fixture(scope="session")
def flagged(server, tmp_path_factory):
    """Another one: it writes no graphs, draws previews, and computes in float16."""
    flags = ("--disable-metadata", "--preview-method", "latent2rgb", "--force-fp16", "--fp16-vae")
    with open_server(tmp_path_factory.mktemp("flagged"), *flags) as server:
        yield server


@contextmanager
def open_server(base: Path, *flags: str):
    """A ComfyUI with the pack, the probe nodes, and the golden and the mini checkpoints in its folders."""
    for name in ("custom_nodes", "input"):
        (base / name).mkdir()
    link_folder(base / "custom_nodes" / "probe_pack", Path(__file__).parent / "probe_pack")
    write_inputs(base / "input")

    multilingual = dict.fromkeys(MODEL_FOLDERS, "tiny_multilingual.safetensors")
    make_lone_files(GOLDEN / "tiny_multilingual", base / "elsewhere", multilingual)
    for kind, folder in MODEL_FOLDERS.items():
        shutil.copytree(GOLDEN / "tiny" / folder, (base / "models" / kind / TINY_NAME).parent)
    # The workflows' own file names, so that they run as they are.
    make_lone_files(SMALL, base / "models", PUBLISHED_NAMES)
    make_lone_files(SMALL, base / "models", PUBLISHED_MULTILINGUAL_NAMES)
    paths = base / "elsewhere" / "extra_model_paths.yaml"
    write_model_paths(paths, base / "elsewhere")
    # How each sampling call was evaluated is a debug message.
    flags = ("--extra-model-paths-config", str(paths), "--verbose", "DEBUG", *flags)
    # Another frontend than the version's own: a folder of the package index.
    if frontend := os.environ.get("COMFYUI_FRONTEND"):
        flags = ("--front-end-root", frontend, *flags)
    with Server(Path(os.environ["COMFYUI_PATH"]), Path(sys.executable), base, flags) as server:
        yield server


def make_lone_files(published: Path, models: Path, names: dict[str, str]) -> None:
    """Each checkpoint of a published folder as one file of a flat models folder, its side files named after it."""
    for kind, name in names.items():
        source, target = published / MODEL_FOLDERS[kind], models / kind / name
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = load_file(source / "model.safetensors")
        if target.suffix == ".bin":
            torch.save(tensors, target)
        else:
            save_file(tensors, target, {"format": "pt"})
        for side_file in ("config.json", "tokenizer.json"):
            if (source / side_file).exists():
                shutil.copy(source / side_file, target.with_name(f"{target.stem}.{side_file}"))
