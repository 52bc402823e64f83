"""Workflows that users shared keep working: the templates of 1.0 in both forms, as fixtures, on the golden checkpoints.

``shared_workflows/latents.safetensors`` holds what each sampler of each of them gave at 1.0, on a processor with AVX512. They
never change; what later versions make of them must not either.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import deviation
from graphs import TINY_NAME, Graph, complete, in_few_steps, run
from tools.comfyui import Problem

SHARED = Path(__file__).parent / "shared_workflows"
MODELS = ("model_name", "text_encoder_name", "vae_name")
SAMPLERS = ("DashengSampler", "SamplerCustomAdvanced")


def latents(server, path: Path) -> dict:
    """What the samplers of a graph in API form give in a few steps, by "name.node"."""
    nodes = json.loads(path.read_text("utf-8"))
    samplers = [node_id for node_id, node in nodes.items() if node["class_type"] in SAMPLERS]
    kept = {node_id: nodes[node_id] for node_id in before(nodes, samplers)}
    for node in kept.values():
        node["inputs"].update((name, TINY_NAME) for name in MODELS if name in node["inputs"])
    in_few_steps(server, kept)
    for node_id in samplers:
        save = {"class_type": "SaveLatent", "inputs": {"samples": [node_id, 0], "filename_prefix": "shared"}}
        kept[saved_by(node_id)] = save
    result = complete(server, Graph(kept))
    found = {}
    for node_id in samplers:
        (item,) = result.outputs[saved_by(node_id)]["latents"]
        file = result.folder / item["subfolder"] / item["filename"]
        found[f"{path.stem}.{node_id}"] = load_file(file)["latent_tensor"]
    return found


def before(nodes: dict, ends: list[str]) -> set[str]:
    """The nodes that these need, and they themselves."""
    found = set()
    while ends:
        node_id, *ends = ends
        if node_id not in found:
            found.add(node_id)
            ends += [value[0] for value in nodes[node_id]["inputs"].values() if isinstance(value, list)]
    return found


def saved_by(node_id: str) -> str:
    return str(1000 + int(node_id))


@pytest.mark.parametrize("path", sorted((SHARED / "api").glob("*.json")), ids=lambda path: path.stem[:2])
def test_it_gives_the_latents_it_gave(server, path):
    kept = load_file(SHARED / "latents.safetensors")
    # Newer versions of ComfyUI weigh the frames that its context windows share another way.
    newer = not server.get("/system_stats")["system"]["comfyui_version"].startswith("0.3.")
    most = 0.1 if newer and "ContextWindows" in path.read_text("utf-8") else 1e-4
    for name, latent in latents(server, path).items():
        assert deviation(latent, kept[name]) <= most, name


@pytest.mark.parametrize(
    "node, name, value", [("DashengOptimize", "mode", "auto"), ("DashengEmphasis", "sfx", 8.0)], ids=["mode", "fader"]
)
def test_a_value_that_was_there_before_1_0_is_refused_by_its_name(server, node, name, value):
    graph = Graph()
    model, clip, _ = graph.loaders()
    faders = dict.fromkeys(("speech", "asr", "sfx", "music", "env"), 0.0)
    if node == "DashengOptimize":
        made = graph.add(node, model=model, mode=value)
    else:
        made = graph.add(node, clip=clip, prompt="<|caption|> Rain.", **{**faders, name: value})
    graph.add("PreviewAny", source=made)
    try:
        said = run(server, graph).error()
    except Problem as problem:
        # Of ComfyUI, before anything runs.
        said = str(problem)
    assert name in said and str(value) in said
