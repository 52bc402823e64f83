"""Graphs for a real ComfyUI server: build them, run them over HTTP and websocket, read what they made."""

import asyncio
import json
import os
import struct
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from dasheng_core.repack import repack_checkpoint
from tools.comfyui import MODEL_FOLDERS, ROOT, Problem, Server, run_in_comfyui

# The golden checkpoint, where the server of conftest.py has it.
TINY_NAME = os.path.join("dasheng-tiny", "model.safetensors")
# What the pack refuses with.
REFUSALS = ("ValueError", "FileNotFoundError")
# The first bytes of a binary websocket message that is a text for a node, and the length of that node's id.
NODE_TEXT = struct.Struct(">II")
# As the frontend announces, but for the one that would change what previews look like.
FEATURES = {"supports_manager_v4_ui": True}


@dataclass
class Graph:
    """An API-format graph; ``add`` returns a function that names one of the node's outputs."""

    nodes: dict = field(default_factory=dict)

    def add(self, class_type: str, **inputs):
        node_id = str(len(self.nodes) + 1)
        inputs = {name: value(0) if callable(value) else value for name, value in inputs.items()}
        self.nodes[node_id] = {"class_type": class_type, "inputs": inputs}
        return lambda output=0: [node_id, output]

    def loaders(self, name: str = TINY_NAME, dtype: str = "auto"):
        """MODEL, CLIP and VAE of a small checkpoint: the golden one, or SMALL_NAME for the mini model."""
        return (
            self.add("DashengModelLoader", model_name=name, dtype=dtype),
            self.add("DashengTextEncoderLoader", text_encoder_name=name, model_name=name),
            self.add("DashengAudioTokenizerLoader", vae_name=name),
        )

    def encode(self, clip, prompt: str):
        return self.add("DashengTextEncode", clip=clip, prompt=prompt)

    def sample(self, model, positive, latent, **options):
        defaults = dict(
            seed=0, steps=25, guidance=5.0, sway=-1.0, denoise=1.0, keep_on_gpu=False, noise="as KSampler", grid="full"
        )
        return self.add("DashengSampler", model=model, positive=positive, latent=latent, **{**defaults, **options})

    def value(self, name: str):
        """A value of probe_pack/values.py."""
        return self.add("ProbeValue", name=name)

    def save(self, *latents):
        for i, latent in enumerate(latents):
            self.add("SaveLatent", samples=latent, filename_prefix=f"test_{i:02}_")
        return self

    def show(self, *sources):
        for source in sources:
            self.add("PreviewAny", source=source)
        return self


def text_to_sound(seed: int, seconds: float = 0.2, steps: int = 1, **files: str) -> Graph:
    """A short clip by the golden checkpoint, some of its files others: models folder -> name."""
    names = dict.fromkeys(MODEL_FOLDERS, TINY_NAME) | files
    graph = Graph()
    model = graph.add("DashengModelLoader", model_name=names["diffusion_models"], dtype="fp32")
    clip = graph.add("DashengTextEncoderLoader", text_encoder_name=names["text_encoders"], model_name=TINY_NAME)
    vae = graph.add("DashengAudioTokenizerLoader", vae_name=names["vae"])
    latent = graph.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=1)
    positive = graph.encode(clip, "<|caption|> A cat meowing softly.")
    latent = graph.sample(model, positive, latent, seed=seed, steps=steps)
    graph.add("SaveAudio", audio=graph.add("DashengDecode", vae=vae, latent=latent), filename_prefix="test")
    return graph


def in_few_steps(server: Server, nodes: dict, steps: int | None = 4) -> None:
    """A graph in API form takes four steps, or with None those it has; and what newer versions of ComfyUI require of their own nodes is in it."""
    for node in nodes.values():
        inputs = node["inputs"]
        if steps and "steps" in inputs and inputs.get("grid") != "epss":
            inputs["steps"] = steps
        required = server.get(f"/object_info/{node['class_type']}")[node["class_type"]]["input"]["required"]
        for name, (_, *options) in required.items():
            if options and "default" in options[0]:
                inputs.setdefault(name, options[0]["default"])


def ways_of(script: str, folder: Path) -> tuple[dict[str, dict], str]:
    """What a script of the tests prints in a real ComfyUI, a line of JSON for each way, by way; and its log.

    It is given the tiny model and, made in ``folder``, the same in fp8.
    """
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    tiny, quantised = ROOT / "tests" / "golden" / "tiny" / "audiogen", folder / "fp8.safetensors"
    repack_checkpoint(tiny, quantised, "fp8")
    model = tiny / "model.safetensors"
    done = run_in_comfyui(ROOT / "tests" / script, model, quantised, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {one["way"]: one for one in found}, done.stderr


def save_lora(server: Server, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """A LoRA among the server's, pickled: with dynamic VRAM, ComfyUI reads safetensors by a library that needs a GPU."""
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    torch.save({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, folder / name)


@dataclass
class Run:
    """What a graph did: its websocket events in order, and the files its output nodes made."""

    events: list[tuple[str, dict]]
    outputs: dict
    folder: Path

    def latents(self) -> list[torch.Tensor]:
        return [load_file(path)["latent_tensor"] for path in self.files("latents")]

    def audio(self) -> list[tuple[torch.Tensor, int]]:
        """``[samples, channels]`` and rate of each saved sound."""
        sounds = [soundfile.read(path, dtype="float32", always_2d=True) for path in self.files("audio")]
        return [(torch.from_numpy(samples), rate) for samples, rate in sounds]

    def texts(self) -> list[str]:
        """What each Preview as Text and each probe got, in the order of the nodes."""
        shown = [self.outputs[node].get("text") for node in sorted(self.outputs, key=int)]
        return [text for (text,) in filter(None, shown)]

    def files(self, kind: str) -> list[Path]:
        # In the order of the nodes: ComfyUI may run branches in any.
        items = [item for node in sorted(self.outputs, key=number_of) for item in self.outputs[node].get(kind, [])]
        # What previews show lies in another folder.
        kept = [item for item in items if item.get("type") != "temp"]
        return [self.folder / item["subfolder"] / item["filename"] for item in kept]

    def progress(self, node) -> list[str]:
        """The progress texts for a node, in order."""
        return [data["text"] for kind, data in self.events if kind == "node_text" and data["node"] == node()[0]]

    def said(self, node) -> list[str]:
        """What stays at a node after the run, line by line: its warnings, then what it found."""
        return "\n".join(self.outputs.get(node()[0], {}).get("dasheng_text", [])).splitlines()

    def warned(self, node) -> list[str]:
        """The last warnings that were sent for a node of ComfyUI's own, line by line."""
        sent = [data["text"] for kind, data in self.events if kind == "dasheng.warning" and data["node"] == node()[0]]
        return sent[-1].splitlines() if sent else []

    def error(self) -> str:
        """The message of the node that failed."""
        (message,) = [data["exception_message"] for kind, data in self.events if kind == "execution_error"]
        return message.strip()


def number_of(node_id: str) -> list[int]:
    """A key to sort node ids by: ``3``, or ``7:3`` for node 3 of the subgraph that node 7 is."""
    return [int(part) for part in node_id.split(":")]


def run(server: Server, graph: Graph, on_event=lambda kind, data: None) -> Run:
    """Queue a graph and wait for its end; ``on_event`` sees each websocket event as it comes."""
    return asyncio.run(_run(server, graph.nodes, on_event))


@asynccontextmanager
async def connect(server: Server, client_id: str, features: dict | None = FEATURES):
    """A websocket of a client; ``features``: what it announces, as the frontend does; None: nothing."""
    async with aiohttp.ClientSession(f"http://{server.address}") as session:
        async with session.ws_connect("/ws", params={"clientId": client_id}) as websocket:
            if features is not None:
                await websocket.send_json({"type": "feature_flags", "data": features})
                # The answer says that the server knows them.
                while json.loads((await websocket.receive()).data)["type"] != "feature_flags":
                    pass
            yield websocket


async def _run(server: Server, nodes: dict, on_event) -> Run:
    client_id = uuid.uuid4().hex
    events = []
    async with connect(server, client_id) as websocket:
        try:
            reply = server.post("/prompt", {"prompt": nodes, "client_id": client_id})
        except Problem as problem:
            refused = {"exception_type": "ValueError", "exception_message": refused_in_queue(problem)}
            return Run([("execution_error", refused)], {}, server.output)
        async for message in websocket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, length = NODE_TEXT.unpack_from(message.data)
                if kind == 3:
                    node, text = message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()
                    events.append(("node_text", {"node": node, "text": text}))
                elif kind == 1:
                    # Behind the number of the picture's format.
                    events.append(("preview", {"image": message.data[8:]}))
                continue
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if event["type"] != "dasheng.warning" and event["data"].get("prompt_id") != reply["prompt_id"]:
                continue
            events.append((event["type"], event["data"]))
            on_event(event["type"], event["data"])
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                break
    outputs = {data["node"]: data["output"] for kind, data in events if kind == "executed" and data["output"]}
    return Run(events, outputs, server.output)


def complete(server: Server, graph: Graph) -> Run:
    """Run a graph that has no fault."""
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    return result


def refused_in_queue(problem: Problem) -> str:
    """What the nodes' own checks said of a graph that was not queued; another problem is raised."""
    nodes = json.loads(str(problem).partition(": ")[2]).get("node_errors", {}).values()
    said = [
        error["details"] for node in nodes for error in node["errors"] if error["type"] == "custom_validation_failed"
    ]
    if not said:
        raise problem
    return " ".join(said)


def refusal(server: Server, graph: Graph) -> str:
    """The sentence a graph fails with: a ValueError of one line, before anything was sampled."""
    result = run(server, graph)
    assert result.events[-1][0] == "execution_error", "the graph ran"
    assert not [kind for kind, _ in result.events if kind == "progress"]
    # The app shows the type before the sentence: a name, and no module's path.
    assert result.events[-1][1]["exception_type"] in REFUSALS, result.error()
    assert "\n" not in result.error()
    return result.error()
