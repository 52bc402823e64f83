"""The rules of the house, as far as a machine can check them."""

import ast
import re
import subprocess
import sys

import pytest
import torch

from conftest import pytest_report_header
from tools.comfyui import ROOT

CORE = sorted((ROOT / "dasheng_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").glob("*.py"))


PYTHON = [path for path in ROOT.rglob("*.py") if ".dev" not in path.parts]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_ruff():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=ROOT, check=True)


def test_mypy():
    """The library's types. ComfyUI's classes, of which the nodes are made, have none that mypy could check."""
    subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, check=True)


def test_pre_commit_checks_by_the_same_versions():
    pinned = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    found = re.findall(r"additional_dependencies: \[(.*)\]", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert len(found) == 2 and {*found} <= {*pinned}


def test_nothing_edits_the_path_of_modules():
    edit = re.compile(r"sys\.path(\.\w+\(|\[.*\] *[+=]|\s*\+?=)|addsitedir\(")
    assert not [path for path in PYTHON if edit.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_no_test_imports_another_or_the_inside_of_dev_py(path):
    assert not [name for name in imports(path) if name == "dev" or name.startswith(("test_", "tests"))]


def test_there_is_one_progress_bar_and_one_table_of_dtypes():
    texts = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in [*CORE, *NODES]}
    assert [name for name, text in texts.items() if "tqdm" in text] == ["dasheng_core/progress.py"]
    assert [name for name, text in texts.items() if '"fp16":' in text] == ["dasheng_core/inputs.py"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_model_does_not_know_comfyui(path):
    strangers = {"comfy", "comfy_api", "folder_paths", "nodes", "execution", "server", "latent_preview"}
    assert not strangers & {name.split(".")[0] for name in imports(path)}


# What torch makes on its default device and in its default dtype; arange and tensor of whole numbers are int64.
MADE = set("arange empty eye full hann_window linspace logspace ones rand randint randn randperm tensor zeros".split())


@pytest.mark.parametrize("path", [*CORE, *NODES], ids=lambda path: path.name)
def test_nothing_is_made_with_a_default_dtype_or_device(path):
    text = path.read_text("utf-8")
    # Where ComfyUI itself makes our sound, it must not do so in another one.
    assert path.name == "vae.py" or not [name for name in ("default_dtype", "default_device") if name in text]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("torch."):
            continue
        made, named = ast.unparse(node.func).removeprefix("torch."), {keyword.arg for keyword in node.keywords}
        if made in MADE and None not in named:
            assert "device" in named, ast.unparse(node)
            assert "dtype" in named or made in ("arange", "tensor"), ast.unparse(node)


WIRES = {"model.py", "patcher.py", "clip.py", "vae.py", "guider.py"}


@pytest.mark.parametrize("path", [path for path in NODES if path.name not in WIRES], ids=lambda path: path.name)
def test_only_the_files_of_the_wires_subclass_comfyui_internals(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert not [base for base in map(ast.unparse, node.bases) if base.startswith("comfy.")], node.name


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.name)
def test_the_nodes_are_small_files_that_leave_comfyui_as_it_is(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 250
    assert not [way for way in ("__class__ =", "addFilter") if way in text]


@pytest.mark.parametrize(
    "path", [path for path in [*CORE, *NODES] if path.name != "hub.py"], ids=lambda path: path.name
)
def test_only_the_hub_uses_the_network(path):
    network = {
        "aiohttp",
        "ftplib",
        "http",
        "httpx",
        "requests",
        "socket",
        "urllib",
        "urllib3",
        "websocket",
        "websockets",
    }
    assert not network & {name.split(".")[0] for name in imports(path)}
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name.startswith("huggingface_hub")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"):
            names = {alias.name for alias in node.names}
            assert node.module == "huggingface_hub.errors" or names == {"snapshot_download"}, names
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            # The one look at the hub's cache must stay a look at the disk.
            if called.split(".")[-1] == "snapshot_download":
                assert "local_files_only=True" in [ast.unparse(keyword) for keyword in node.keywords]
            assert not called.startswith("torch.hub."), called
            if called.endswith(".from_pretrained"):
                assert called == "DashengAudioGen.from_pretrained", f"{called} can fetch from the hub"


# Lines of each folder's own files. A capability raises its folder's number in the same commit.
BUDGET = {
    "dasheng_core": 3740,
    "dasheng_core/audio_tokenizer": 440,
    "dasheng_core/cli": 3340,
    "dasheng_core/control": 600,
    "dasheng_core/weights": 1840,
    "nodes": 3830,
}


@pytest.mark.parametrize("folder", BUDGET)
def test_the_library_and_the_nodes_stay_small(folder):
    files = [path for path in [*CORE, *NODES] if path.parent == ROOT / folder]
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) <= BUDGET[folder]


def test_every_folder_has_a_budget():
    assert {path.parent.relative_to(ROOT).as_posix() for path in [*CORE, *NODES]} == {*BUDGET}


def test_dev_py_needs_the_standard_library_only():
    """Nor does what it imports: the server, the mini model's words, and how foreign text is quoted."""
    for name in ("dev", "tools.comfyui", "mini.words"):
        subprocess.run([sys.executable, "-S", "-c", f"import {name}"], cwd=ROOT, check=True)


def test_the_root_imports_nothing_before_comfyui_asks():
    assert not [
        node
        for node in ast.parse((ROOT / "__init__.py").read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]


def test_nothing_imports_torchaudio():
    modules = "dasheng_core.cli.generate, dasheng_core.audio_tokenizer.encoder, dasheng_core.audio_tokenizer.spectral"
    code = f"import sys, {modules}; sys.exit('torchaudio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_tests_say_what_they_run_on(tmp_path, monkeypatch, pytestconfig):
    (tmp_path / "comfyui_version.py").write_text('# Written by "the build".\n__version__ = "9.8.7"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    monkeypatch.setenv("DYNAMIC_VRAM", "1")
    comfyui, libraries, processor = pytest_report_header(pytestconfig)
    assert comfyui == f"ComfyUI: 9.8.7, in {tmp_path}, layers as under dynamic VRAM"
    assert f"torch {torch.__version__}" in libraries and "transformers " in libraries
    assert torch.backends.cpu.get_cpu_capability() in processor
    monkeypatch.delenv("COMFYUI_PATH")
    assert pytest_report_header(pytestconfig)[0] == "ComfyUI: none: COMFYUI_PATH is not set"
