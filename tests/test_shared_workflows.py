"""Workflows that users shared keep working: those of commit 3721cb9, with the small model of that day, as fixtures.

``shared_workflows/latents.safetensors`` holds what each sampler of each of them gave there, on a processor with AVX512.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import PUBLISHED_MULTILINGUAL_NAMES, PUBLISHED_NAMES, deviation, make_lone_files
from graphs import Graph, run

SHARED = Path(__file__).parent / "shared_workflows"
LATENTS = load_file(SHARED / "latents.safetensors")


@pytest.fixture(scope="module")
def folder(server) -> Path:
    """Where the models of that day are, as a user's sub-folder."""
    for published in (PUBLISHED_NAMES, PUBLISHED_MULTILINGUAL_NAMES):
        names = {kind: str(Path("3721cb9") / name) for kind, name in published.items()}
        make_lone_files(SHARED / "mini", server.base / "models", names)
    return Path("3721cb9")


@pytest.mark.parametrize("path", sorted((SHARED / "api").glob("*.json")), ids=lambda path: path.stem)
def test_it_gives_the_latents_it_gave(server, folder, path):
    graph = Graph(json.loads(path.read_text("utf-8")))
    samplers = [node_id for node_id, node in graph.nodes.items() if node["class_type"] == "DashengSampler"]
    for node in graph.nodes.values():
        for name in ("model_name", "text_encoder_name", "vae_name"):
            if name in node["inputs"]:
                node["inputs"][name] = str(folder / node["inputs"][name])
    for node_id in samplers:
        save = {"class_type": "SaveLatent", "inputs": {"samples": [node_id, 0], "filename_prefix": "shared"}}
        graph.nodes[saved_by(node_id)] = save
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    for node_id in samplers:
        (item,) = result.outputs[saved_by(node_id)]["latents"]
        latent = load_file(result.folder / item["subfolder"] / item["filename"])["latent_tensor"]
        assert deviation(latent, LATENTS[f"{path.stem}.{node_id}"]) <= 1e-4


def saved_by(node_id: str) -> str:
    return str(1000 + int(node_id))
