"""Bad input in a real graph: refused before work starts, by a sentence that names the value, what was expected, and the remedy."""

import importlib.util
import json
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from conftest import PUBLISHED_NAMES
from graphs import TINY_NAME, Graph, refusal, run, text_to_sound
from tools.comfyui import ROOT

PROMPT = "<|caption|> A cat meowing softly."


def load(kind: str, name: str) -> Graph:
    """A graph that loads one file of a kind and uses it; its other files are good."""
    return text_to_sound(0, **{kind: name})


@pytest.fixture
def bad_file(server):
    """Write a file among the models of a kind; it is removed afterwards."""
    written = []

    def write(kind: str, name: str, content) -> str:
        path = server.base / "models" / kind / name
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        written.append(path)
        return name

    yield write
    for path in written:
        path.unlink()


@pytest.mark.parametrize(
    "kind, other, said",
    [
        (
            "diffusion_models",
            "vae",
            "is an audio tokenizer, expected another part of the model: Load Dasheng Audio Tokenizer takes it",
        ),
        (
            "text_encoders",
            "diffusion_models",
            "is an audio generator, expected another part of the model: Load Dasheng AudioGen takes it",
        ),
        (
            "vae",
            "text_encoders",
            "is a text encoder, expected another part of the model: Load Dasheng Text Encoder takes it",
        ),
        ("text_encoders", None, "stable_diffusion.safetensors is not a T5"),
        ("vae", None, "is not the checkpoint it is loaded as (tensor upsampler.weight is missing"),
    ],
)
def test_a_file_of_another_loader_is_named_with_its_loader(server, bad_file, kind, other, said):
    if other:
        file, name = (server.base / "models" / other / PUBLISHED_NAMES[other]).read_bytes(), "swapped.safetensors"
    else:
        file, name = (
            save({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 4)}),
            "stable_diffusion.safetensors",
        )
    assert said in refusal(server, load(kind, bad_file(kind, name, file)))


def scene(graph: Graph):
    model, clip, vae = graph.loaders()
    return model, graph.encode(clip, PROMPT), vae


@pytest.mark.parametrize(
    "inputs, sentence",
    [
        (dict(caption=" ", sfx="a bell"), "The caption is empty: say in one English sentence"),
        (dict(caption="a <|sfx|> b"), "The caption text contains the tag <|sfx|>: write plain text there"),
    ],
    ids=str,
)
def test_a_scene_without_a_proper_caption(server, inputs, sentence):
    graph = Graph()
    graph.add("PreviewAny", source=graph.add("DashengScenePrompt", **{**dict.fromkeys(ASPECTS, ""), **inputs}))
    assert sentence in refusal(server, graph)


ASPECTS = ("caption", "speech", "asr", "sfx", "music", "env")


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("a cat", "The prompt starts with 'a cat', expected <|caption|>"),
        # Stable Audio's template leaves its negative empty; the widget of a node has the tag alone.
        ("", "The prompt is empty, expected <|caption|> and what the whole scene sounds like"),
        ("<|caption|> ", "connect Dasheng Scene Prompt, which gives nothing while it is bypassed or muted"),
    ],
    ids=str,
)
@pytest.mark.parametrize("node", ["DashengTextEncode", "CLIPTextEncode", "DashengEmphasis"])
def test_a_prompt_the_model_cannot_read(server, node, prompt, sentence):
    graph = Graph()
    _, clip, _ = graph.loaders()
    inputs = {"text" if node == "CLIPTextEncode" else "prompt": prompt}
    if node == "DashengEmphasis":
        inputs |= dict.fromkeys(ASPECTS[1:], 0.0)
    model = graph.add("DashengModelLoader", model_name=TINY_NAME, dtype="auto")
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    sampled = graph.sample(model, graph.add(node, clip=clip, **inputs), latent)
    graph.add("SaveLatent", samples=sampled, filename_prefix="test")
    assert sentence in refusal(server, graph)


def test_a_node_for_pictures_is_named(server):
    """The same of every function that a node can hang into a MODEL."""
    graph = Graph()
    model, positive, _ = scene(graph)
    operation = graph.add("LatentOperationTonemapReinhard", multiplier=1.0)
    model = graph.add("LatentApplyOperationCFG", model=model, operation=operation)
    latent = graph.sample(model, positive, graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1))
    graph.add("SaveLatent", samples=latent, filename_prefix="test")
    if (result := run(server, graph)).events[-1][0] == "execution_success":
        # Newer versions of ComfyUI map the tones of latents of any shape.
        assert result.latents()[0].isfinite().all()
        return
    sentence = refusal(server, graph)
    assert sentence.startswith("LatentApplyOperationCFG, which changes the MODEL, fails on this model's latents")
    assert "(Dimension out of range" in sentence and sentence.endswith("it is made for pictures; take it out.")


@pytest.mark.parametrize(
    "node, inputs, place",
    [
        ("ConditioningSetArea", dict(width=64, height=64, x=0, y=0, strength=1.0), "area"),
        ("ConditioningSetMask", dict(strength=1.0, set_cond_area="mask bounds"), "mask"),
    ],
)
def test_places_of_pictures_are_refused(server, node, inputs, place):
    """An area was heard in the first frames alone, and nothing behind it."""
    graph = Graph()
    model, positive, _ = scene(graph)
    more = {"mask": graph.add("SolidMask", value=1.0, width=8, height=8)} if place == "mask" else {}
    placed = graph.add(node, conditioning=positive, **more, **inputs)
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.4, batch_size=1)
    options = dict(sampler_name="euler", scheduler="simple", seed=1, steps=1, cfg=2.0, denoise=1.0, latent_image=latent)
    for sampled in (
        graph.sample(model, placed, latent, steps=1),
        graph.add("KSampler", model=model, positive=placed, negative=positive, **options),
    ):
        one = Graph(dict(graph.nodes))
        one.add("SaveLatent", samples=sampled, filename_prefix="test")
        assert f"positive has the {place} of a picture, from a node such as Conditioning (Set" in refusal(server, one)


def test_tiles_without_a_frame_are_refused(server):
    graph = Graph()
    model, positive, vae = scene(graph)
    latent = graph.sample(model, positive, graph.add("EmptyDashengLatentAudio", seconds=1.0, batch_size=1), steps=1)
    small, large = (
        graph.add(
            "VAEDecodeTiled", samples=latent, vae=vae, tile_size=size, overlap=64, temporal_size=64, temporal_overlap=8
        )
        for size in (512, 4096)
    )
    graph.add("PreviewImage", images=large)
    assert run(server, graph).events[-1][0] == "execution_success"
    graph.add("PreviewImage", images=small)
    assert "A tile has 0 frames and shares 0 with the next, expected fewer shared" in run(server, graph).error()


EMPTY = "latent is empty, expected one that a sampler has filled: connect Dasheng Sampler or another one, and switch it on if it is"


@pytest.mark.parametrize("node", ["DashengDecode", "DashengDecode, loop", "DashengListen", "VAEDecodeAudio"])
def test_a_bypassed_sampler_hands_on_an_empty_latent(server, node):
    graph = Graph()
    model, positive, vae = scene(graph)
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    if node == "DashengListen":
        heard = graph.add(node, model=model, conditioning=positive, latent=latent, words=False)
        graph.add("PreviewImage", images=heard)
    else:
        kind, _, loop = node.partition(", ")
        inputs = dict(samples=latent) if kind == "VAEDecodeAudio" else dict(latent=latent, loop=bool(loop))
        graph.add("PreviewAudio", audio=graph.add(kind, vae=vae, **inputs))
    assert EMPTY in refusal(server, graph)


@pytest.fixture(scope="module")
def muted():
    spec = importlib.util.spec_from_file_location("muted", ROOT / "nodes" / "muted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("links", [None, [5], [[]], [{"id": []}], ["ab"], [[1, 9, 0]], [[1, 1, 0]]], ids=str)
def test_a_workflow_of_any_form_says_nothing_of_mutes(muted, links):
    inputs = [{"name": "timeline", "type": "CONDITIONING", "link": 1}]
    workflow = {"nodes": [{"id": 1, "type": "DashengTimeline", "mode": 4, "inputs": inputs}], "links": links}
    hidden = SimpleNamespace(extra_pnginfo={"workflow": workflow}, unique_id="1")
    assert muted.muted_before(hidden) is None and muted.switched_off(hidden, "prompt") is None


def in_circles(kind: str, count: int) -> dict:
    """A workflow in which what stands before a node never ends."""
    plain = [{"id": i, "type": kind, "mode": 4} for i in range(1, count + 1)]
    for node in plain:
        node["inputs"] = [{"name": "timeline", "type": "CONDITIONING", "link": node["id"]}]
        node["outputs"] = [{"type": "CONDITIONING"}]
        node["mode"] = 4 if kind == "DashengTimeline" else 0
    links = [[node["id"], node["id"] % count + 1, 0, node["id"], 0] for node in plain]
    # A subgraph whose output is that of itself.
    out = {"id": 9, "origin_id": 1, "origin_slot": 0, "target_id": -20, "target_slot": 0}
    inner = {"id": "box", "nodes": [{**plain[0], "type": "box"}], "links": [out], "inputs": []}
    return {"nodes": plain, "links": links, "definitions": {"subgraphs": [inner]}}


@pytest.mark.parametrize("kind, count", [("DashengTimeline", 1), ("DashengTimeline", 20_000), ("box", 2)])
def test_a_workflow_that_goes_round_in_circles_ends(muted, kind, count):
    workflow = in_circles(kind, count)
    hidden = SimpleNamespace(extra_pnginfo={"workflow": workflow}, unique_id="1")
    started = time.process_time()
    assert muted.muted_before(hidden) is None
    muted.switched_off(hidden, "timeline")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("mode, state", [(0, None), (2, "muted"), (4, "bypassed")])
@pytest.mark.parametrize("asks, name, off", [("7", "prompt", 6), ("10", "latent", 9)])
def test_the_node_that_is_switched_off_is_named(muted, mode, state, asks, name, off):
    """In the first template, whose encoder and decoder are in a subgraph: the scene outside of it, and the sampler in it."""
    workflow = json.loads(next((ROOT / "workflows").glob("01*.json")).read_text("utf-8"))
    (subgraph,) = workflow["definitions"]["subgraphs"]
    (box,) = [node["id"] for node in workflow["nodes"] if node["type"] == subgraph["id"]]
    (node,) = [node for node in (*workflow["nodes"], *subgraph["nodes"]) if node["id"] == off]
    node["mode"] = mode
    hidden = SimpleNamespace(extra_pnginfo={"workflow": workflow}, unique_id=f"{box}:{asks}")
    named = f"{node.get('title') or node['type']} (node {off}) is {state}"
    assert muted.switched_off(hidden, name) == (named if state else None)


def test_an_error_names_the_node_that_is_switched_off(server):
    graph = json.loads(next((ROOT / "workflows" / "api").glob("01*.json")).read_text("utf-8"))
    workflow = json.loads(next((ROOT / "workflows").glob("01*.json")).read_text("utf-8"))
    (scene,) = [node for node in workflow["nodes"] if node["type"] == "DashengScenePrompt"]
    scene["mode"] = 4
    del graph[str(scene["id"])]
    for node in graph.values():
        if node["class_type"] == "DashengTextEncode":
            node["inputs"]["prompt"] = "<|caption|> "
    extra = {"extra_pnginfo": {"workflow": workflow}}
    prompt_id = server.post("/prompt", {"prompt": graph, "extra_data": extra})["prompt_id"]
    while prompt_id not in (history := server.get("/history")):
        time.sleep(0.1)
    said = [
        body["exception_message"]
        for kind, body in history[prompt_id]["status"]["messages"]
        if kind == "execution_error"
    ]
    assert [text.strip() for text in said] == [
        "The prompt is empty, because What to hear (node 6) is bypassed: switch it on."
    ]


def test_a_timeline_whose_prompt_is_switched_off(server):
    graph = Graph()
    model, positive, _ = scene(graph)
    timeline = graph.add("DashengTimeline", timeline=positive, start=0.0, end=0.0, fade=0.0, overlap="replace")
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    graph.add("SaveLatent", samples=graph.sample(model, timeline, latent), filename_prefix="test")
    assert "conditioning has nothing connected that is switched on, expected a prompt" in refusal(server, graph)
