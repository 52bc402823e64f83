"""The shared workflows: each runs as it is, and its API form and picture belong to it."""

import json

import pytest

from graphs import Graph, run
from mini.judges import JUDGES
from mini.listening import Sound
from tools.comfyui import PACK, ROOT

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
BATCH = {"ten_takes": 10}
SOUNDS = {"latent_kept_and_varied": 2}


def ui_nodes(path):
    return json.loads(path.read_text("utf-8"))["nodes"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_it_runs_as_it_is(server, path):
    graph = Graph(json.loads((path.parent / "api" / path.name).read_text("utf-8")))
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    sounds = result.audio()
    assert len(sounds) == BATCH.get(path.stem, 1) * SOUNDS.get(path.stem, 1)
    assert all(rate == 16000 and samples.shape[1] == 1 and samples.abs().max() > 0 for samples, rate in sounds)


def test_the_sound_follows_the_scene(server):
    """Other aspects typed into the nodes of text_to_audio, as a user types them."""
    graph = Graph(json.loads((ROOT / "workflows" / "api" / "text_to_audio.json").read_text("utf-8")))
    (scene,) = [node["inputs"] for node in graph.nodes.values() if node["class_type"] == "DashengScenePrompt"]
    for direction in ("rising", "falling"):
        sweep = f"A {direction} sweep"
        scene.update(dict.fromkeys(scene, ""), caption=f"{sweep}, about two seconds long.", sfx=f"{sweep}.")
        ((samples, rate),) = run(server, graph).audio()
        assert abs(len(samples) / rate - 2) < 0.3
        assert JUDGES["direction"](Sound(samples[:, 0].numpy())) == direction


def test_all_are_listed_by_the_template_browser(server):
    assert sorted(server.get("/api/workflow_templates")[PACK]) == NAMES
    assert len(NAMES) == 6
    for name in NAMES:
        assert (ROOT / "workflows" / f"{name}.jpg").read_bytes()[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("path", WORKFLOWS, ids=NAMES)
def test_nodes_say_where_they_and_their_models_come_from(path):
    for node in ui_nodes(path):
        if node["type"] == "MarkdownNote":
            continue
        properties = node["properties"]
        assert properties["cnr_id"] == ("dasheng-audiogen" if "Dasheng" in node["type"] else "comfy-core")
        assert properties["ver"] and properties["Node name for S&R"] == node["type"]
        for model in properties.get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(".safetensors")
            assert model["directory"] in ("diffusion_models", "text_encoders", "vae")
    loaders = [node for node in ui_nodes(path) if node["type"].endswith("Loader")]
    assert len(loaders) == 3 and all(node["properties"].get("models") for node in loaders)
    assert [
        node
        for node in ui_nodes(path)
        if node["type"] == "MarkdownNote" and "ComfyUI/models/" in node["widgets_values"][0]
    ]
