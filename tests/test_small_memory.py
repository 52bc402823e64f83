"""Smaller files and less memory in a real ComfyUI: folded and GGUF files, quantised weights, partial loading.

Without a GPU, ComfyUI's load and offload devices are both the CPU: which layers stay off, how they get their weights
and patches at use, and what comes out is real here; the way between two devices is in test_two_devices.py.
"""

import os
import shutil
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, deviation
from dasheng_core import DashengAudioGen
from dasheng_core.backbone import load_backbone
from dasheng_core.repack import repack_checkpoint
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from dasheng_core.weights.quantized import QuantizedLinear
from graphs import TINY_NAME, Graph, run, save_lora
from tools.random_checkpoint import TINY, write_checkpoints
from tools.write_gguf import write_gguf

PROMPT = "<|caption|> A cat meowing softly."
SECONDS, STEPS, SEED = 1.2, 4, 11
QUANTIZED = ("fp8.safetensors", "Q8_0.gguf", "Q4_0.gguf")
FILES = ("plain.safetensors", "bf16.safetensors", *QUANTIZED, "F16.gguf")
LORA_LAYER = "in_blocks.1.attn.to_q"


@pytest.fixture(scope="module")
def models(server, tmp_path_factory):
    """One small model in every form, among the server's models; what the library makes of each."""
    out = tmp_path_factory.mktemp("forms") / "out"
    # Text side and decoder of the golden model, so that its other two checkpoints go with it.
    write_checkpoints(out, replace(TINY, embed_dim=64), multilingual=False, dtype=torch.float32, seed=0)
    folder = server.base / "models" / "diffusion_models"
    source = open_checkpoint(out / "audiogen", AUDIOGEN_TYPES)
    save_file(load_file(out / "audiogen" / "model.safetensors"), folder / "plain.safetensors", {"format": "pt"})
    (folder / "plain.config.json").write_text((out / "audiogen" / "config.json").read_text())
    for dtype in ("bf16", "fp8"):
        repack_checkpoint(out / "audiogen", folder / f"{dtype}.safetensors", dtype)
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_gguf(source, folder / f"{kind}.gguf", kind)
    golden = GOLDEN / "tiny"
    return {
        file: DashengAudioGen.from_pretrained(folder / file, golden / "text_encoder", golden / "audio_tokenizer")
        for file in FILES
    }


def by_hand(model: DashengAudioGen) -> torch.Tensor:
    frames = torch.tensor([round(SECONDS * 25)])
    return model.sample(*model.encode_text(PROMPT)[:2], frames, seed=SEED, num_steps=STEPS, noise_kind="plain")


class Scene(Graph):
    def __init__(self, file, dtype="auto", text_side=None):
        super().__init__()
        self.model = self.add("DashengModelLoader", model_name=file, dtype=dtype)
        clip = self.add(
            "DashengTextEncoderLoader", text_encoder_name=TINY_NAME, model_name=text_side or "plain.safetensors"
        )
        self.positive = self.encode(clip, PROMPT)

    def sampled(self, model):
        latent = self.add("EmptyDashengLatentAudio", seconds=SECONDS, batch_size=1)
        return self.sample(model, self.positive, latent, seed=SEED, steps=STEPS)


def latents(server, scene, *models) -> list[torch.Tensor]:
    for model in models:
        scene.add("SaveLatent", samples=scene.sampled(model), filename_prefix="test")
    return run(server, scene).latents()


@pytest.mark.parametrize("file", FILES)
def test_every_form_gives_what_the_library_gives(server, models, file):
    scene = Scene(file, text_side=file)
    (latent,) = latents(server, scene, scene.model)
    assert deviation(latent, by_hand(models[file])) <= 1e-4


def test_gguf_files_are_in_our_lists_and_in_nobody_elses(server, models):
    # In a sub-folder of a place that extra_model_paths.yaml names, too.
    nested = server.base / "elsewhere" / "diffusion_models" / "nested"
    nested.mkdir(exist_ok=True)
    shutil.copy(server.base / "models" / "diffusion_models" / "Q8_0.gguf", nested / "Other.GGUF")
    name = os.path.join("nested", "Other.GGUF")
    scene = Scene(name)
    (latent,) = latents(server, scene, scene.model)
    assert deviation(latent, by_hand(models["Q8_0.gguf"])) <= 1e-4
    for loader in ("DashengModelLoader", "DashengTextEncoderLoader"):
        assert {name, "Q8_0.gguf", "plain.safetensors"} <= set(server.choices(loader, "model_name"))
    assert not [name for name in server.choices("UNETLoader", "unet_name") if name.endswith(".gguf")]


def make_lora(server, model, key=LORA_LAYER) -> torch.Tensor:
    """A LoRA file; what it adds to the weight at strength 1."""
    generator = torch.Generator().manual_seed(0)
    layer = model.backbone.get_submodule(key)
    up = torch.randn(layer.out_features, 4, generator=generator)
    down = torch.randn(4, layer.in_features, generator=generator) * 0.1
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(4.0)}
    save_lora(server, "quantized.pt", {f"{key}.{name}": tensor for name, tensor in tensors.items()})
    return up @ down


def expanded(path, added=None) -> torch.nn.Module:
    """The backbone of a file with plain layers in the place of quantised ones, and ``added`` to one weight."""
    backbone = load_backbone(open_checkpoint(path, AUDIOGEN_TYPES))
    for name, layer in list(backbone.named_modules()):
        if isinstance(layer, (QuantizedLinear, torch.nn.Linear)):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            weight = layer.expanded_weight(torch.float32) if hasattr(layer, "kind") else layer.weight
            plain.weight.data = weight.clone()
            if layer.bias is not None:
                plain.bias.data = layer.bias.data
            if name == LORA_LAYER and added is not None:
                plain.weight.data += added
            owner, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(owner), child, plain)
    return backbone


@pytest.mark.parametrize("file", ["plain.safetensors", *QUANTIZED])
def test_a_lora_is_added_to_the_expanded_weight_however_much_is_loaded(server, models, file):
    model = models[file]
    added = make_lora(server, model)

    def sampled(fraction, strength):
        """One graph; the model it loads is the one of the graphs before."""
        scene = Scene(file)
        patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="quantized.pt", strength_model=strength)
        (latent,) = latents(server, scene, scene.add("ProbeSmallMemory", model=patched, fraction=fraction))
        return latent

    # The weights stay where the graph before left them, and its LoRA must not stay with them.
    partly, none, whole = (sampled(fraction, 0.5) for fraction in (0.3, 0.0, 2.0))
    gone, without = (sampled(fraction, 0.0) for fraction in (0.0, 2.0))

    original = model.backbone
    try:
        model.backbone = expanded(server.base / "models" / "diffusion_models" / file, 0.5 * added)
        expected = by_hand(model)
    finally:
        model.backbone = original
    for latent in (whole, partly, none):
        assert deviation(latent, expected) <= 1e-4
    for latent in (gone, without):
        assert deviation(latent, by_hand(model)) <= 1e-4
    assert deviation(whole, without) > 0.01


def give_memory_back(server) -> None:
    server.post("/free", {"unload_models": True, "free_memory": True})
    deadline = time.monotonic() + 30
    while server.get("/probe/loaded_models") and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize(
    "file, dtype", [("plain.safetensors", "fp32"), ("fp8.safetensors", "bf16"), ("Q8_0.gguf", "bf16")]
)
def test_partial_loading_gives_the_same(server, models, file, dtype):
    """Everything loaded; half of it unloaded; all of it; and half of it loaded from nothing: one latent."""
    found, counts = [], []
    for fraction in (2.0, 0.5, 0.0, 0.5):
        if len(found) == 3:
            give_memory_back(server)
        scene = Scene(file, dtype)
        small = scene.add("ProbeSmallMemory", model=scene.model, fraction=fraction)
        found += latents(server, scene, small)
        counts.append(server.get("/probe/loaded_weights"))
    # What is on the GPU may be joined to larger products, which round otherwise.
    assert all(deviation(latent, found[0]) <= (1e-4 if dtype == "fp32" else 0.02) for latent in found)
    whole, unloaded, nothing, loaded = counts
    assert whole["left_off"] == 0 and whole["loaded"] == whole["size"]
    for half in (unloaded, loaded):
        assert 0 < half["left_off"] < half["layers"] and 0 < half["loaded"] <= 0.5 * half["size"]
    assert nothing["left_off"] == nothing["layers"] and nothing["loaded"] <= 0.01 * nothing["size"]
    if file == "Q8_0.gguf":
        plain = Scene("plain.safetensors", dtype)
        latents(server, plain, plain.model)
        # Rows are 34 bytes for 32 values; convolutions, norms and biases are plain.
        assert whole["size"] < 0.65 * server.get("/probe/loaded_weights")["size"]


def test_a_quantised_model_with_a_lora_is_saved_expanded(server, models):
    file = "Q4_0.gguf"
    make_lora(server, models[file])
    scene = Scene(file)
    patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="quantized.pt", strength_model=0.5)
    scene.add("ModelSave", model=patched, filename_prefix="diffusion_models/expanded")
    (before,) = latents(server, scene, patched)
    saved = sorted((server.output / "diffusion_models").glob("expanded_*.safetensors"))[-1]
    saved.rename(server.base / "models" / "diffusion_models" / f"expanded_{file}.safetensors")
    scene = Scene(f"expanded_{file}.safetensors")
    (after,) = latents(server, scene, scene.model)
    assert deviation(after, before) <= 1e-4
    least = 1.5 * models[file].backbone.in_blocks[0].mlp.net[2].weight.nbytes
    assert server.get("/probe/loaded_weights")["size"] > least


def test_hooks_on_a_quantised_model_are_refused(server, models):
    make_lora(server, models["Q8_0.gguf"])
    scene = Scene("Q8_0.gguf")
    hook = scene.add("CreateHookLoraModelOnly", lora_name="quantized.pt", strength_model=1.0)
    scene.positive = scene.add(
        "ConditioningSetProperties", cond_NEW=scene.positive, strength=1.0, set_cond_area="default", hooks=hook
    )
    scene.add("SaveLatent", samples=scene.sampled(scene.model), filename_prefix="test")
    assert "LoRA hooks change weights while sampling, which a quantised model's cannot be" in run(server, scene).error()
