"""What newer versions of ComfyUI ask of a pack, in a real server of any version."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from by_hand import FRAMES, GUIDANCE, Scene, close, latents
from conftest import GOLDEN
from dasheng_core.backbone import load_backbone
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from graphs import Graph, complete, run


def test_models_can_be_loaded_again(server):
    """As SelectModelDevice, SelectCLIPDevice, SelectVAEDevice, SetClipHooks and TorchCompileModel do."""
    scene = Scene()
    again = scene.add("ProbeLoadedAgain", model=scene.model, clip=scene.clip, vae=scene.vae)
    parts = [(scene.model, scene.clip, scene.vae)]
    parts.append(tuple((lambda _, output=output: again(output)) for output in range(3)))
    for model, clip, vae in parts:
        sampled = scene.ours(scene.encode(clip, "<|caption|> Rain."), model=model)
        audio = scene.add("DashengDecode", vae=vae, latent=sampled)
        scene.add("SaveAudio", audio=audio, filename_prefix="test")
        scene.add("SaveLatent", samples=scene.add("DashengEncode", vae=vae, audio=audio), filename_prefix="test")
    result = run(server, scene)
    (first, _), (second, _) = result.audio()
    assert first.abs().max() > 0 and torch.equal(first, second)
    assert torch.equal(*result.latents())
    # ComfyUI's VAE of no weights says so, and ours has some.
    assert "VAE not init" not in server.log.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def other(server):
    """A model of the same sizes among the server's, with other weights in its middle."""
    tensors = load_file(GOLDEN / "tiny" / "audiogen" / "model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith("backbone.mid_block.") and tensor.is_floating_point():
            tensors[name] = tensor.flip(0)
    path = server.base / "models" / "diffusion_models" / "other.safetensors"
    save_file(tensors, path, {"format": "pt"})
    shutil.copy(GOLDEN / "tiny" / "audiogen" / "config.json", path.with_name("other.config.json"))
    return path


def test_two_backbones_in_one_sampling_call(server, tiny, hand, other):
    """ComfyUI's multi-GPU nodes give each GPU a backbone of its own: what is kept for one never answers for the other."""
    backbones = [tiny.backbone, load_backbone(open_checkpoint(other, AUDIOGEN_TYPES))]

    @torch.inference_mode()
    def velocity(latent, sigma):
        both = torch.cat([hand.cat, torch.zeros_like(hand.cat)])
        found = []
        for backbone in backbones:
            # The time-aligned context is the sampling call's, from its own model.
            time_aligned = tiny.backbone.dummy_ta_embed * torch.tensor([1.0, 0.0])[:, None, None]
            modulation, conditions = backbone.modulation(sigma * 1000), [backbone.condition(both, time_aligned)]
            v, base = backbone.step(latent.expand(2, -1, -1), modulation, conditions).split(1)
            found.append(base + GUIDANCE * (v - base))
        return sum(found) / 2

    scene = Scene()
    second = scene.add("DashengModelLoader", model_name=other.name, dtype="auto")
    (latent,) = latents(
        server, scene, scene.ours(model=scene.add("ProbeTwoBackbones", model=scene.model, other=second))
    )
    close(latent, hand.euler(velocity))


def told(server, graph: Graph, *samples) -> list[tuple[dict, list[int]]]:
    """What each LATENT says of itself beside its samples, and the samples' shape."""
    for latent in samples:
        graph.add("ProbeLatent", latent=latent)
    return [tuple(json.loads(text)[:2]) for text in complete(server, graph).texts()]


def test_an_unsampled_latent_tells_its_frame_rate(server):
    """At 44.1 kHz, as ComfyUI counts it: a model of another rate then samples as many seconds."""
    scene = Scene()
    sound = scene.add("DashengDecode", vae=scene.vae, latent=scene.ours())
    encoded = scene.add("DashengEncode", vae=scene.vae, audio=sound)
    found = told(server, scene, scene.empty(), encoded, scene.ours(), scene.ours(latent=encoded))
    kinds = [{key: value for key, value in kind.items() if key != "seeds"} for kind, _ in found]
    # Core's samplers leave it out as well.
    assert kinds == [{"type": "audio", "downscale_ratio_temporal": 44100 // 25}] * 2 + [{"type": "audio"}] * 2
    assert {shape[-1] for _, shape in found} == {FRAMES}


def test_our_sampler_takes_an_empty_latent_of_another_model_as_core_does(server):
    scene = Scene()
    foreign = scene.add("EmptyLatentAudio", seconds=2.0, batch_size=1)
    (_, empty), (_, core), (_, ours) = told(
        server, scene, foreign, scene.ksampler(latent=foreign, steps=1), scene.ours(latent=foreign, steps=1)
    )
    assert ours == core and empty[1] != core[1]
    if not server.get("/system_stats")["system"]["comfyui_version"].startswith("0.3."):
        # Two seconds, rounded up to core's own frames first.
        assert abs(ours[-1] - 50) <= 2


def test_no_kind_of_models_is_added(server):
    """ComfyUI's Model Library shows every kind."""
    server.choices("DashengModelLoader", "model_name")
    kinds = [*server.get("/models"), *(kind["name"] for kind in server.get("/experiment/models"))]
    assert "diffusion_models" in kinds and not [kind for kind in kinds if "dasheng" in kind or "gguf" in kind]
