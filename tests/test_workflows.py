"""The templates: each runs as it is, without a warning and unclipped, and its API form and picture belong to it."""

import json
import re
import sys
from pathlib import Path

import pytest

from graphs import Graph, complete, in_few_steps, run
from mini.judges import JUDGES
from mini.levels import Sound
from tools.comfyui import PACK, ROOT, SMALL_NAME

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
TITLES = [name.partition(" ")[2] for name in NAMES]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
WARNING = "\u26a0"
# The highest sample of 16 bits, and a little less.
FULL_SCALE = 0.9999
# Boxes on opening of the first eight, which are to begin with.
MOST_BOXES, TO_BEGIN_WITH = 8, 8
# Rate and channels of what is saved, where that is not what the model makes.
DELIVERED = {
    "Under a video": (48000, 2),
    "A wide ambience": (48000, 2),
    "A one-shot for a game": (48000, 1),
    "A scene in stereo": (16000, 2),
    "Stems of a recording": (44100, 2),
}
SAVED = {
    "Ten takes, keep two": 2,
    "Keep it, vary it": 2,
    "A scene in four stems": 4,
    "Stems of a recording": 2,
    "Eight footsteps for a game": 8,
}
# At fewer steps than the template's these say otherwise what is above full scale.
AS_IT_IS = {"An effect at a time"}


def read(path) -> dict:
    return json.loads(path.read_text("utf-8"))


def api_form(path) -> Graph:
    return Graph(read(path.parent / "api" / path.name))


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_it_runs_as_it_is(server, path):
    """In a few steps, for the tests' time: a sound in each file, nothing clipped, and no warning of ours."""
    graph, title = api_form(path), path.stem.partition(" ")[2]
    in_few_steps(server, graph.nodes, None if title in AS_IT_IS else 4)
    for node in graph.nodes.values():
        if node["inputs"].get("seconds") == 60:
            # Several windows still.
            node["inputs"]["seconds"] = 20
    result = complete(server, graph)
    shown = [text for output in result.outputs.values() for text in output.get("dasheng_text", [])]
    shown += [data["text"] for kind, data in result.events if kind == "dasheng.warning"]
    assert not [text for text in shown if WARNING in text or "WOULD CLIP" in text]
    sounds = result.audio()
    assert len(sounds) == SAVED.get(title, 1)
    for (samples, rate), file in zip(sounds, result.files("audio"), strict=True):
        assert (rate, samples.shape[1]) == DELIVERED.get(title, (16000, 1)) and samples.abs().max() > 0
        # What is beyond full scale is written as full scale, or by floats as it is.
        assert samples.abs().max() < FULL_SCALE, file.name
        # The scene, at least one seed, and a number.
        scene, seed, number = file.stem.rsplit("_", 2)
        assert scene and seed.isdigit() and number.isdigit() and "%" not in file.name
    if title == "Under a video":
        (video,) = [
            item for output in result.outputs.values() for item in output.get("images", []) if "mp4" in str(item)
        ]
        assert (result.folder / video["subfolder"] / video["filename"]).stat().st_size > 1000
        # Sound and pictures of one length, to a frame of the model.
        ((samples, rate),) = sounds
        assert abs(len(samples) / rate - 2) <= 1 / 25
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
    names = [value for node in api_form(WORKFLOWS[0]).nodes.values() for value in node["inputs"].values()]
    loaded = [name for name in names if str(name).endswith(".safetensors")]
    assert loaded == [SMALL_NAME.replace("\\", "/")] * 4


def test_the_first_is_a_form_too():
    """Newer apps show these widgets, and the saved sound, without the graph."""
    workflow = read(WORKFLOWS[0])
    form, nodes = workflow["extra"]["linearData"], {node["id"]: node for node in workflow["nodes"]}
    shown = [(nodes[node_id]["title"], widget) for node_id, widget in form["inputs"]]
    aspects = ("caption", "speech", "asr", "sfx", "music", "env")
    made = ("seed", "model_name", "text_encoder_name", "vae_name")
    assert shown == [*(("What to hear", name) for name in aspects), *(("Make the sound", name) for name in made)]
    assert all(widget in [i["name"] for i in nodes[node_id]["inputs"]] for node_id, widget in form["inputs"])
    assert [nodes[node_id]["type"] for node_id in form["outputs"]] == ["DashengSaveWAV"]


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
def test_it_opens_with_few_boxes_and_one_note(path):
    workflow = read(path)
    assert len(workflow["nodes"]) <= MOST_BOXES or int(path.stem[:2]) > TO_BEGIN_WITH
    types = [node["type"] for node in all_nodes(workflow)]
    assert {"DashengSaveWAV", "DashengSpectrogram"} <= {*types}
    # Ids that are used twice would be changed by newer apps, and with them the API form.
    assert len(types) == len({node["id"] for node in all_nodes(workflow)})
    (note,) = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    (text,) = note["widgets_values"]
    # The classic canvas does not name a field that is filled.
    assert "**whole scene**, **speaker**, **spoken words**" in text
    # Nodes 2.0 writes code blue on blue.
    assert "`" not in text
    number = int(path.stem[:2])
    assert text.startswith(f"## {number} {path.stem[3:]}\n")
    chinese = text.partition(f"\n## {number} ")[2]
    assert len(re.findall("[\u4e00-\u9fff]", chinese)) > 90 and "\u6574\u4f53\u573a\u666f" in chinese
    # Text of 14 pixels is readable at this share of its size.
    assert workflow["extra"]["ds"]["scale"] >= (0.8 if number <= TO_BEGIN_WITH else 0.6)


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_nothing_is_baked_into_its_api_form(path):
    """Neither a seed into a name, nor a widget of the app's own."""
    nodes = read(path.parent / "api" / path.name).values()
    for node in nodes:
        assert not {"audioUI", "preview", "video-preview"} & {*node["inputs"]}, node["class_type"]
        prefix = node["inputs"].get("filename_prefix", "")
        assert not re.search(r"\d", prefix) and "_." not in prefix, prefix


def all_nodes(workflow: dict) -> list[dict]:
    """The nodes of a workflow but for boxes of subgraphs, and those in the subgraphs."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    nodes = [*workflow["nodes"], *(node for subgraph in subgraphs for node in subgraph["nodes"])]
    return [node for node in nodes if node["type"] not in {subgraph["id"] for subgraph in subgraphs}]


@pytest.mark.parametrize("path", WORKFLOWS, ids=TITLES)
def test_nodes_say_where_they_and_their_models_come_from(path):
    nodes = [node for node in all_nodes(read(path)) if node["type"] != "MarkdownNote"]
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
    # Badges of missing files make each taller.
    tops = sorted((node["pos"][1] - 30, node["pos"][1] + node["size"][1]) for node in loaders)
    columns = {node["pos"][0] for node in loaders}
    assert len(columns) == 3 or all(above[1] + 50 <= below[0] for above, below in zip(tops, tops[1:], strict=False))
    assert "ComfyUI/models/" in path.read_text("utf-8")


def test_the_blueprint_is_listed_by_a_designer_s_words_and_runs_at_once(server):
    """The app finds a pack's blueprint by its name alone."""
    listed = [entry for entry in server.get("/global_subgraphs").values() if entry["info"]["node_pack"].endswith(PACK)]
    assert [entry["name"] for entry in listed] == [path.stem for path in BLUEPRINTS]
    (name,) = (path.stem for path in BLUEPRINTS)
    words = re.fullmatch(r"Scene to sound \((.*)\)", name)[1].split(", ")
    assert {"sfx", "game audio", "voice over"} <= {*words} and len(words) <= 6
    # ComfyUI 0.3.75 reads it in the machine's own encoding.
    assert BLUEPRINTS[0].read_bytes().isascii()
    blueprint = read(BLUEPRINTS[0])
    loaded = [value for node in all_nodes(blueprint) for value in node.get("widgets_values") or []]
    assert [value for value in loaded if str(value).endswith(".safetensors")] == [SMALL_NAME] * 4
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    for said in (subgraph["description"], blueprint["extra"]["BlueprintDescription"]):
        assert "mini model that comes with the pack" in said and "choose dasheng_audiogen" in said
