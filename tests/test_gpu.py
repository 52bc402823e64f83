"""On a CUDA GPU: the library against the published model and the CPU, and the nodes in a server with ComfyUI's own flags."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import deviation, load_model, open_server
from dasheng_core.sampling import draw_noise
from graphs import Graph, run, save_lora
from tools.comfyui import SMALL, SMALL_NAME, Server

# "cpu" goes through this file without a GPU, to test the tests.
DEVICE = os.environ.get("GPU_TESTS_ON", "cuda")
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")
# Largest deviation from the published model, relative to max(1, |reference|); of sounds the relative error in the mean square.
FP32, BF16 = 1e-3, 0.2
# In ComfyUI convolutions in fp32 may be TF32's, as torch has it.
SOUND = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 0.1}
PROMPT = "<|caption|> A rising sweep, about two seconds long. <|sfx|> A rising sweep."
SECONDS, SEED, STEPS = 2.0, 7, 8


@pytest.fixture(autouse=True)
def full_precision():
    """float32 is float32: no TF32."""
    cuda, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = cuda, cudnn


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


def told(**figures: float) -> None:
    """What was found, for whoever runs this with -s."""
    sys.stdout.write(" ".join(f"{name} {value:.1e}" for name, value in figures.items()) + "\n")


# The library


@torch.inference_mode()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, FP32), (torch.bfloat16, BF16)], ids=["fp32", "bf16"])
def test_every_stage_is_the_published_models(golden, dtype, tolerance):
    model = load_model(golden.folder, device=DEVICE, dtype=dtype)
    ids, mask = golden["text.input_ids"].to(DEVICE), golden["text.attention_mask"].to(DEVICE)
    projected = model.text_encoder(ids, mask)[1]
    content = model.adapter(projected, mask.bool())[0]
    inputs = [golden[f"dit.{name}"].to(DEVICE) for name in ("latent", "context", "context_mask", "latent_mask")]
    latent, context, masks = inputs[0].to(dtype), inputs[1].to(dtype), inputs[2:]
    time_aligned = model.backbone.dummy_ta_embed.expand(2, 1, -1)
    velocity = model.backbone(latent, torch.tensor(731.37, device=DEVICE), context, time_aligned, *masks)
    found = {
        "text.projected": projected,
        "adapter.content": content,
        "dit.velocity.731.37": velocity,
        "tokenizer.decode_waveform": model.decode(golden["tokenizer.decode_latent"].transpose(1, 2)),
        "tokenizer.latent": model.encode(golden["tokenizer.audio"]).transpose(1, 2),
    }
    options = dict(golden.cases[0])
    prompts = [golden.prompts[i] for i in options.pop("prompts")]
    made = model.sample(*model.encode_text(prompts), noise=golden["generate.0.noise"], **options)
    found["generate.0.latent"] = made
    far = {name: deviation(tensor.float().cpu(), golden[name]) for name, tensor in found.items()}
    told(**far)
    assert max(far.values()) <= tolerance, far


@pytest.fixture(scope="module")
def expected(mini) -> torch.Tensor:
    return mini.generate(PROMPT, num_steps=STEPS, seed=SEED, duration=SECONDS)


@pytest.mark.parametrize("way", ["fp32", "bf16", "graphs", "compile"])
def test_a_clip_is_the_cpus(expected, way):
    dtype = torch.bfloat16 if way == "bf16" else torch.float32
    model = load_model(SMALL, device=DEVICE, dtype=dtype, compile=way == "compile")
    for _ in range(2 if way in ("graphs", "compile") else 1):
        options = dict(num_steps=STEPS, seed=SEED, duration=SECONDS, graphs=way == "graphs")
        off = error(model.generate(PROMPT, **options), expected)
        told(**{way: off})
        assert off <= SOUND["bf16" if way == "bf16" else "fp32"]


# The nodes


class Scene(Graph):
    """The text_to_audio graph with the mini model, up to a saved sound."""

    def __init__(self, dtype: str = "fp32"):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders(SMALL_NAME, dtype)
        self.positive = self.encode(self.clip, PROMPT)
        self.latent = self.add("EmptyDashengLatentAudio", seconds=SECONDS, batch_size=1)

    def ours(self, **options):
        options = {"model": self.model, "seed": SEED, "steps": STEPS, **options}
        return self.sample(options.pop("model"), self.positive, self.latent, **options)

    def core(self):
        return self.add(
            "SamplerCustomAdvanced",
            noise=self.add("RandomNoise", noise_seed=SEED),
            guider=self.add(
                "CFGGuider",
                model=self.model,
                positive=self.positive,
                negative=self.add("ConditioningZeroOut", conditioning=self.positive),
                cfg=5.0,
            ),
            sampler=self.add("KSamplerSelect", sampler_name="euler"),
            sigmas=self.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0),
            latent_image=self.latent,
        )

    def save(self, latent):
        audio = self.add("DashengDecode", vae=self.vae, latent=latent)
        whole = dict(loop=False, loop_start=0, loop_end=0, markers="")
        self.add("DashengSaveWAV", audio=audio, filename_prefix="test", bit_depth="32 bit float", **whole)
        return self


def sounds(server: Server, scene: Graph) -> list[torch.Tensor]:
    result = run(server, scene)
    assert result.events[-1][0] == "execution_success", result.error()
    return [samples.T for samples, _ in result.audio()]


FLAGS = {
    "default flags": (),
    "little memory": ("--reserve-vram",),
    "no dynamic VRAM": ("--disable-dynamic-vram",),
    "fp16 between nodes": ("--fp16-intermediates",),
}


@pytest.fixture(scope="module", params=FLAGS)
def served(request, tmp_path_factory):
    """A server with each set of flags; what it says is looked at when its tests have ended."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set")
    if not (Path(os.environ["COMFYUI_PATH"]) / "comfy/memory_management.py").exists():
        pytest.skip("ComfyUI has dynamic VRAM from 0.30 on")
    flags = FLAGS[request.param]
    if flags == ("--reserve-vram",):
        # All there is: even the mini model's weights must stream.
        total = torch.cuda.get_device_properties(0).total_memory if DEVICE == "cuda" else 2**31
        flags = (*flags, f"{total / 2**30:.1f}")
    if frontend := os.environ.get("COMFYUI_FRONTEND"):
        flags = (*flags, "--front-end-root", frontend)
    with open_server(tmp_path_factory.mktemp("gpu"), *flags) as server:
        started = len(log(server))
        yield server
        said = log(server)[started:]
        assert "Traceback" not in said
        complaints = [line for line in said.splitlines() if "dasheng" in line.lower() and "warning" in line.lower()]
        assert not complaints


def log(server: Server) -> str:
    return server.log.read_text("utf-8", "replace")


def test_dynamic_vram_is_on_where_it_is_meant_to_be(served):
    off = "--disable-dynamic-vram" in served.flags or DEVICE == "cpu"
    said = log(served)
    assert ("DynamicVRAM support detected and enabled" in said) != off
    # Of a pack; ComfyUI's own optional nodes are named without brackets.
    assert "(IMPORT FAILED)" not in said


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_graphs_sound_as_the_library(served, mini, expected, dtype):
    noise = draw_noise(SEED, mini.latent_channels, round(SECONDS * 25), "plain")[None]
    as_core = mini.generate(PROMPT, num_steps=STEPS, noise=noise, duration=SECONDS)
    steady, core = Scene(dtype), Scene(dtype)
    for scene, latent, reference in (
        (steady, steady.ours(noise="steady"), expected),
        (core, core.core(), as_core),
    ):
        (sound,) = sounds(served, scene.save(latent))
        off = error(sound, reference)
        told(**{dtype: off})
        assert off <= SOUND["bf16" if dtype == "bf16" or "--fp16-intermediates" in served.flags else "tf32"]


@pytest.mark.parametrize("mode", ["resident", "graph", "compile"])
def test_the_optimized_network_sounds_the_same(served, expected, mode):
    """Dasheng Optimize; twice, since a graph answers for a clip that it was not captured in."""
    if {"--reserve-vram", "--fp16-intermediates"} & {*served.flags}:
        pytest.skip("compiling takes long, and is asked with and without dynamic VRAM")
    for seed in (SEED + 1, SEED):
        scene = Scene()
        model = scene.add("DashengOptimize", model=scene.model, mode=mode)
        (sound,) = sounds(served, scene.save(scene.ours(model=model, noise="steady", seed=seed)))
    assert error(sound, expected) <= SOUND["bf16" if "--fp16-intermediates" in served.flags else "tf32"]


def test_a_lora_is_added_and_taken_away(served, mini, expected):
    key = "in_blocks.1.attn.to_q"
    layer = mini.backbone.get_submodule(key)
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(layer.out_features, 4, generator=generator), torch.randn(4, layer.in_features)
    down = 0.05 * torch.randn(down.shape, generator=generator)
    parts = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(4.0)}
    save_lora(served, "gpu.pt", {f"{key}.{name}": tensor for name, tensor in parts.items()})
    before = layer.weight.data
    try:
        layer.weight.data = before + up @ down
        patched = mini.generate(PROMPT, num_steps=STEPS, seed=SEED, duration=SECONDS)
    finally:
        layer.weight.data = before
    assert error(patched, expected) > 0.01
    for strength, reference in ((1.0, patched), (0.0, expected)):
        scene = Scene()
        model = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="gpu.pt", strength_model=strength)
        (sound,) = sounds(served, scene.save(scene.ours(model=model, noise="steady")))
        assert error(sound, reference) <= SOUND["bf16" if "--fp16-intermediates" in served.flags else "tf32"]


def test_after_an_interrupt_the_next_clip_is_right(served, expected):
    long = Scene()
    long.save(long.ours(steps=500, noise="steady"))
    asked: list[int] = []

    def interrupt(kind, data):
        if kind == "progress" and not asked:
            asked.append(data["value"])
            served.post("/interrupt", {})

    assert run(served, long, interrupt).events[-1][0] == "execution_interrupted"
    again = Scene()
    (sound,) = sounds(served, again.save(again.ours(noise="steady")))
    assert error(sound, expected) <= SOUND["bf16" if "--fp16-intermediates" in served.flags else "tf32"]


def test_memory_is_given_back(served):
    """What a clip takes on the GPU is gone after /free, but for what CUDA and its libraries keep."""

    def used() -> int:
        (gpu,) = served.get("/system_stats")["devices"][:1]
        return gpu["torch_vram_total"] - gpu["torch_vram_free"]

    def freed() -> int:
        served.post("/free", {"unload_models": True, "free_memory": True})
        deadline = time.monotonic() + 10
        while served.get("/probe/loaded_models") and time.monotonic() < deadline:
            time.sleep(0.1)
        return used()

    first = freed()
    scene = Scene()
    sounds(served, scene.save(scene.ours(seed=SEED + 2)))
    after = freed()
    told(first=first, after=after)
    # Without a GPU, this counts all memory of the machine.
    assert after <= first + 32 * 2**20 or DEVICE == "cpu"
    assert not served.get("/probe/loaded_models")
