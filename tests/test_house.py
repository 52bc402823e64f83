"""The rules of the house, as far as a machine can check them."""

import ast
import os
import re
import subprocess
import sys
from collections import defaultdict
from fnmatch import fnmatch

import pytest

from tools.comfyui import ROOT

CORE = sorted((ROOT / "dasheng_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))


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


# Those of another ComfyUI may stand before them, and say other types.
OWN_PACKAGES = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_mypy():
    """The library's types. ComfyUI's classes, of which the nodes are made, have none that mypy could check."""
    subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, check=True, env=OWN_PACKAGES)


def test_pre_commit_checks_by_the_same_versions():
    pinned = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    found = re.findall(r"additional_dependencies: \[(.*)\]", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    assert len(found) == 2 and {*found} <= {*pinned}


def test_nothing_edits_the_path_of_modules():
    edit = re.compile(r"sys\.path(\.\w+\(|\[.*\] *[+=]|\s*\+?=)|addsitedir\(")
    assert not [path for path in PYTHON if edit.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("path", [path for path in PYTHON if path.parent.name == "tests"], ids=lambda path: path.name)
def test_no_test_imports_another_or_the_inside_of_dev_py(path):
    assert not [name for name in imports(path) if name == "dev" or name.startswith(("test_", "tests"))]


# Room -> its files, from the lowest. A file imports from its own room and from those above it in this table, never from below.
ROOMS = {
    "dasheng_core": {
        "words and numbers": ["duration", "inputs", "opening", "options", "progress", "prompt", "quoting", "tensors"],
        "files": ["weights/*"],
        "the model": [
            *("adapter", "audio_tokenizer/*", "backbone", "condition"),
            *("schedule", "step_graph", "text_encoder", "tokenizer"),
        ],
        "control": ["control/*", "guidance"],
        "the library": ["pipeline", "sampling", "separation"],
        "delivery": ["delivery/*", "repack"],
        "batch": ["batch/*"],
        "command line": ["cli/*"],
    },
    "nodes": {
        "what every node may use": ["common", "inputs", "lists", "muted", "node_text", "take_table", "versions"],
        "what ComfyUI calls": ["comfy/*"],
        "nodes": ["*"],
    },
}
# The door of the library imports on first use, __main__ the command line: they stand outside.
DOORS = {"__init__.py", "__main__.py"}


def room_of(place, name):
    rooms = list(ROOMS[place])
    fits = [room for room in rooms if any(fnmatch(name, pattern) for pattern in ROOMS[place][room])]
    assert fits, f"{name} stands in no room of {place}"
    return rooms.index(fits[0])


def own_imports(place):
    """File -> the files of ``place`` that it imports, all as "folder/name"."""
    found = {}
    for path in (ROOT / place).rglob("*.py"):
        name = path.relative_to(ROOT / place).with_suffix("").as_posix()
        if path.name in DOORS:
            continue
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            folder = path.parents[node.level - 1]
            for alias in node.names:
                module = folder.joinpath(*(node.module or "").split("."))
                for file in (module / f"{alias.name}.py", module.with_suffix(".py")):
                    if file.is_file() and (ROOT / place) in file.parents:
                        found[name].add(file.relative_to(ROOT / place).with_suffix("").as_posix())
                        break
    return found


@pytest.mark.parametrize("place, floors", [("dasheng_core", 14), ("nodes", 8)])
def test_imports_go_from_room_to_room_in_one_direction(place, floors):
    graph = own_imports(place)
    up = [
        f"{name} -> {other}" for name in graph for other in graph[name] if room_of(place, other) > room_of(place, name)
    ]
    assert not up

    def floor(name, above=()):
        assert name not in above, f"a circle: {above}"
        return 1 + max((floor(other, (*above, name)) for other in graph[name]), default=0)

    assert max(map(floor, graph)) <= floors


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_the_model_does_not_know_comfyui(path):
    strangers = {"comfy", "comfy_api", "folder_paths", "nodes", "execution", "server", "latent_preview"}
    assert not strangers & {name.split(".")[0] for name in imports(path)}
    # dasheng download fills ComfyUI's folders: the command line may name it.
    if "cli" not in path.parts:
        words = r"comfyui|ksampler|litegraph|workflow|\bwires?\b|\bsockets?\b|connect (?!ed)\w|in a graph|\bqueue (it|again)"
        assert not re.findall(words, path.read_text("utf-8"), re.IGNORECASE)


def sentences(path):
    """The texts of a module that are no docstrings, an f-string's parts joined."""
    tree = ast.parse(path.read_text("utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | inside):
            yield node.value


ON_A_LINE = [path for path in CORE if path.parent.name in ("cli", "batch")]


@pytest.mark.parametrize("path", [*CORE, *NODES], ids=lambda path: path.name)
def test_the_app_speaks_no_command_line_and_the_command_line_no_app(path):
    """By vocabulary: what a person reads names what that person has before them."""
    if path in ON_A_LINE:
        wrong = r"\b((?i:workflows?|widgets?|wires?|sockets?|canvas)|Load Dasheng|Dasheng (?!AudioGen)[A-Z]\w+)\b"
        found = [text for text in sentences(path) if re.search(wrong, text)]
    else:
        # Flags are fields of the options.
        texts = [] if path.name == "options.py" else sentences(path)
        found = [text for text in texts if re.search(r"(?<!\w)--[a-z]{2}", text)]
    assert not found


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


@pytest.mark.parametrize("path", [path for path in NODES if path.parent.name != "comfy"], ids=lambda path: path.name)
def test_only_one_folder_subclasses_comfyui_internals(path):
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
    network = {*"aiohttp ftplib http httpx requests socket urllib urllib3 websocket websockets".split()}
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


# Lines of each folder's own files; of the last three rows, with all below them. A capability raises its row in the same commit.
BUDGET = {
    "dasheng_core": 3455,
    "dasheng_core/audio_tokenizer": 440,
    "dasheng_core/batch": 2855,
    "dasheng_core/cli": 1450,
    "dasheng_core/control": 1210,
    "dasheng_core/delivery": 1555,
    "dasheng_core/weights": 1660,
    "nodes": 3725,
    "nodes/comfy": 1460,
    "benchmarks": 2440,
    "dev.py tools": 1695,
    "mini": 6520,
}
WHOLE = [*BUDGET][-3:]


@pytest.mark.parametrize("row", BUDGET)
def test_folders_stay_small(row):
    if row in WHOLE:
        places = [ROOT / name for name in row.split()]
        files = [path for path in PYTHON if {path, *path.parents} & {*places}]
    else:
        files = [path for path in [*CORE, *NODES] if path.parent == ROOT / row]
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) <= BUDGET[row]


def test_the_extension_is_small_and_shows_foreign_text_as_text():
    """Whatever makes elements or runs code of a text is not in it."""
    scripts = [path.read_text("utf-8") for path in (ROOT / "web" / "js").iterdir()]
    assert sum(len(script.splitlines()) for script in scripts) <= 250
    acting = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|DOMParser|createContextualFragment|srcdoc|\.prototype\b|fetch\("
    assert not [found for script in scripts for found in re.findall(acting, script)]


def test_every_folder_has_a_budget():
    assert {path.parent.relative_to(ROOT).as_posix() for path in [*CORE, *NODES]} == {*BUDGET} - {*WHOLE}


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
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=OWN_PACKAGES)


# Of modules that are commands.
COMMANDS = {"main", "run"}


def test_no_public_name_stands_for_two_things():
    """What one file of core, nodes or mini defines for others is defined in no other one."""
    defined, imported = defaultdict(set), set()
    for path in PYTHON:
        here = path.relative_to(ROOT)
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                imported |= {((node.module or "").split(".")[-1], alias.name) for alias in node.names}
        if here.parts[0] not in ("dasheng_core", "nodes", "mini") or "tests" in here.parts:
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = [node.name]
            else:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
                names = [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            for name in names:
                defined[name].add(here)
    twice = {
        name: sorted(map(str, files))
        for name, files in defined.items()
        if len(files) > 1
        and name not in COMMANDS
        and name[0] != "_"
        and any((file.stem, name) in imported for file in files)
    }
    assert not twice
