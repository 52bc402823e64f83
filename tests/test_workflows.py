"""The templates: each runs as it is, and its API form and picture belong to it."""

import json
import re
import sys
from pathlib import Path

import pytest

from graphs import Graph, run
from mini.judges import JUDGES
from mini.levels import Sound
from tools.comfyui import PACK, ROOT, SMALL_NAME

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
TITLES = [name.partition(" ")[2] for name in NAMES]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
GROUPS = ["Models", "Scene", "Sampling", "Delivery"]
FEW_STEPS = 4
# Rate and channels of what is saved, where that is not what the model makes.
DELIVERED = {
    "Under a video": (48000, 2),
    "A wide ambience": (48000, 2),
    "A one-shot for a game": (48000, 1),
    "A scene in stereo": (16000, 2),
    "Stems of a recording": (44100, 2),
}
SAVED = {"Ten takes, keep two": 2, "Keep it, vary it": 2, "A scene in four stems": 4, "Stems of a recording": 2}


def read(path) -> dict:
    return json.loads(path.read_text("utf-8"))


def api_form(path) -> Graph:
    return Graph(read(path.parent / "api" / path.name))


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_it_runs_as_it_is(server, path):
    """In a few steps, for the tests' time."""
    graph, title = api_form(path), path.stem.partition(" ")[2]
    for node in graph.nodes.values():
        if "steps" in node["inputs"] and node["inputs"].get("grid") != "epss":
            node["inputs"]["steps"] = FEW_STEPS
        if node["inputs"].get("seconds") == 60:
            # Several windows still.
            node["inputs"]["seconds"] = 20
        # Newer versions of ComfyUI require more of their own nodes.
        required = server.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]["required"]
        for name, (_, *options) in required.items():
            if options and "default" in options[0]:
                node["inputs"].setdefault(name, options[0]["default"])
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    sounds = result.audio()
    assert len(sounds) == SAVED.get(title, 1)
    for (samples, rate), file in zip(sounds, result.files("audio"), strict=True):
        assert (rate, samples.shape[1]) == DELIVERED.get(title, (16000, 1)) and samples.abs().max() > 0
        # The scene and at least one seed.
        scene, seed, *_ = file.stem.rstrip("_").rsplit("_", 2)
        assert scene and seed.isdigit() and "%" not in file.name
    if title == "Under a video":
        (video,) = [
            item for output in result.outputs.values() for item in output.get("images", []) if "mp4" in str(item)
        ]
        assert (result.folder / video["subfolder"] / video["filename"]).stat().st_size > 1000
    files, previews = written(server, result)
    played = {".flac"} if any(node["class_type"] == "PreviewAudio" for node in graph.nodes.values()) else set()
    assert {".wav", ".json", ".png"} | played <= {file.suffix for file in files}
    for file in files:
        # What ComfyUI notes of a loader's files, where there is a place for it.
        assert file.suffix == ".json" or b"is_changed" in file.read_bytes(), file.name
    for file in (*files, *previews):
        held = file.read_bytes()
        assert not [place for place in places(server) if place in held], file.name


def written(server, result) -> tuple[list[Path], list[Path]]:
    """The files of a run, the graphs beside WAV files among them; and the previews of takes, which hold no graph."""
    saved = [item for node in result.outputs.values() for kind in node.values() for item in kind]
    rows = [
        row for node in result.outputs.values() for text in node.get("dasheng_takes", []) for row in json.loads(text)
    ]
    folders = {"output": server.output, "temp": server.temp}
    files, previews = (
        [folders[item["type"]] / item["subfolder"] / item["filename"] for item in items]
        for items in (
            [item for item in saved if isinstance(item, dict) and "filename" in item],
            [row["file"] for row in rows],
        )
    )
    return [*files, *(file.with_suffix(".json") for file in files if file.suffix == ".wav")], previews


def places(server) -> list[bytes]:
    """Folders of this machine, as they stand in text and in JSON."""
    folders = {str(folder) for folder in (server.base, server.comfyui, ROOT, Path.home(), sys.prefix)}
    return [form.encode() for folder in folders for form in (folder, json.dumps(folder)[1:-1])]


def test_the_first_needs_no_download():
    names = [name for node in read(WORKFLOWS[0])["nodes"] for name in node.get("widgets_values") or []]
    loaded = [name for name in names if str(name).endswith(".safetensors")]
    assert loaded == [SMALL_NAME.replace("\\", "/")] * 4


def test_the_first_is_a_form_too():
    """Newer apps show these widgets, and what comes out, without the graph."""
    workflow = read(WORKFLOWS[0])
    form, nodes = workflow["extra"]["linearData"], {node["id"]: node for node in workflow["nodes"]}
    shown = [(nodes[node_id]["type"], widget) for node_id, widget in form["inputs"]]
    aspects = ("caption", "speech", "asr", "sfx", "music", "env")
    assert shown == [*(("DashengScenePrompt", aspect) for aspect in aspects), ("DashengSampler", "seed")]
    assert all(widget in [i["name"] for i in nodes[node_id]["inputs"]] for node_id, widget in form["inputs"])
    assert [nodes[node_id]["type"] for node_id in form["outputs"]] == ["PreviewAudio"]


def test_the_sound_follows_the_scene(server):
    """Other aspects typed into the nodes of the first one, as a user types them."""
    graph = api_form(WORKFLOWS[0])
    (scene,) = [node["inputs"] for node in graph.nodes.values() if node["class_type"] == "DashengScenePrompt"]
    for direction in ("rising", "falling"):
        sweep = f"A {direction} sweep"
        scene.update(dict.fromkeys(scene, ""), caption=f"{sweep}, about two seconds long.", sfx=f"{sweep}.")
        ((samples, rate),) = run(server, graph).audio()
        assert abs(len(samples) / rate - 2) < 0.3
        assert JUDGES["direction"](Sound(samples[:, 0].numpy())) == direction


def test_all_are_listed_by_the_template_browser(server):
    assert sorted(server.get("/api/workflow_templates")[PACK]) == NAMES
    assert [int(name[:2]) for name in NAMES] == list(range(1, len(NAMES) + 1))
    for path in WORKFLOWS:
        assert path.with_suffix(".jpg").read_bytes()[:3] == b"\xff\xd8\xff"
    for folder, kind in (("workflows", "*.jpg"), ("workflows/api", "*.json")):
        assert sorted(path.stem for path in (ROOT / folder).glob(kind)) == NAMES


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_lists_them(readme):
    rows = re.findall(r"^\| (\d+) (?:to|至) (\d+)", (ROOT / readme).read_text("utf-8"), re.MULTILINE)
    listed = [number for first, last in rows for number in range(int(first), int(last) + 1)]
    assert listed == [int(name[:2]) for name in NAMES]


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_its_graph_reads_from_the_models_to_the_file(path):
    workflow = read(path)
    assert [group["title"] for group in sorted(workflow["groups"], key=lambda group: group["bounding"][0])] == GROUPS
    assert 1 <= len(workflow["extra"]["task"].replace("-", " ").split()) <= 2
    types = [node["type"] for node in workflow["nodes"]]
    assert {"PreviewAudio", "DashengTakes"} & {*types} and {"DashengSaveWAV", "DashengSpectrogram"} <= {*types}
    (note,) = [node for node in workflow["nodes"] if node.get("title") == "What to do"]
    # The classic canvas does not name a field that is filled.
    assert "**whole scene**, **speaker**, **spoken words**" in note["widgets_values"][0]
    assert note["widgets_values"][0].startswith(f"## {int(path.stem[:2])} {path.stem[3:]}\n")


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_nodes_say_where_they_and_their_models_come_from(path):
    nodes = [node for node in read(path)["nodes"] if node["type"] != "MarkdownNote"]
    for node in nodes:
        properties = node["properties"]
        assert properties["cnr_id"] == ("dasheng-audiogen" if "Dasheng" in node["type"] else "comfy-core")
        assert properties["ver"] and properties["Node name for S&R"] == node["type"]
        for model in properties.get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(".safetensors")
            assert model["directory"] in ("diffusion_models", "text_encoders", "vae")
    loaders = [node for node in nodes if node["type"].startswith("Dasheng") and node["type"].endswith("Loader")]
    assert len(loaders) == 3 and all(node["properties"].get("models") or path == WORKFLOWS[0] for node in loaders)
    assert "ComfyUI/models/" in path.read_text("utf-8")


def test_the_blueprint_is_listed(server):
    listed = [entry for entry in server.get("/global_subgraphs").values() if entry["info"]["node_pack"].endswith(PACK)]
    assert [entry["name"] for entry in listed] == [path.stem for path in BLUEPRINTS] == ["Scene to sound"]
    # ComfyUI 0.3.75 reads it in the machine's own encoding.
    assert BLUEPRINTS[0].read_bytes().isascii()
