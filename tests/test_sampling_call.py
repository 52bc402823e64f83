"""What a sampling call holds under ComfyUI: that every call uses it, that it is right, and that nothing stale answers."""

import json
import os

import pytest
import torch

from by_hand import GUIDANCE, STEPS, Hand, Scene, close, latents, simple_sigmas
from conftest import GOLDEN, deviation
from dasheng_core.repack import repack_checkpoint
from dasheng_core.schedule import make_sigmas
from graphs import TINY_NAME, save_lora
from tools.comfyui import ROOT, run_in_comfyui

LORA_LAYERS = ("mid_block.adaln.time_ada", "in_blocks.0.cross_attn.to_k", "out_blocks.0.attn.to_v")


@pytest.fixture(scope="module")
def hand(tiny):
    return Hand(tiny)


def log_of(server) -> str:
    return server.log.read_text("utf-8", "replace")


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> dict[str, dict]:
    """What held_phases.py found, by way."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    quantised = tmp_path_factory.mktemp("quantised") / "fp8.safetensors"
    repack_checkpoint(GOLDEN / "tiny" / "audiogen", quantised, "fp8")
    script, model = ROOT / "tests" / "held_phases.py", GOLDEN / "tiny" / "audiogen" / "model.safetensors"
    run = run_in_comfyui(script, model, quantised, capture_output=True)
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    return {one["way"]: one for one in found}


# Way -> evaluations, and how often modulation and conditions are computed in them.
COUNTS = {
    "plain": (6, 1, 2),
    "two prompts of unlike lengths": (12, 1, 2),
    "a solver between the steps": (11, 6, 2),
    "branches apart": (12, 1, 2),
    "lora": (6, 1, 2),
    "quantised": (6, 1, 2),
    "quantised, lora": (6, 1, 2),
    "left off the GPU": (6, 1, 2),
    # Two keyframes of the hook's branch, and the other branch with the weights as they are.
    "hooks on one branch": (12, 3, 3),
    "without hooks again": (6, 1, 2),
    # Two windows read the same prompt.
    "windows": (12, 1, 2),
    "compiled": (6, 1, 2),
    "compiled, another prompt": (12, 1, 2),
    "compiled, another schedule": (4, 1, 2),
    "compiled, lora": (6, 1, 2),
    "compiled, as at first": (6, 1, 2),
}


@pytest.mark.parametrize("way", COUNTS)
def test_every_way_to_run_the_network_holds_what_it_can(ways, way):
    found = ways[way]
    assert (found["held_arguments"], found["modulation"], found["condition"]) == COUNTS[way]
    assert found["difference"] <= 1e-5
    # Of a tiny network; the published one's share is in test_benchmarks.py.
    assert way.startswith("compiled") or found["flops"] < 0.96 * found["whole"]


def test_attention_is_what_the_user_chose(ways):
    """Self-attention and, of the branch that has a text, cross-attention of each block; with a mask it is PyTorch's."""
    found = ways["attention"]
    assert found["calls"] >= STEPS * 2 and found["masks"] == 0 and found["difference"] < 1e-5


def test_comfyui_adds_few_launches_to_a_step(ways):
    """And no LayerNorm takes ComfyUI's way of fetching weights, unless it has to."""
    found = ways["launches"]
    assert found["launches"] <= found["library"] + 60 and found["slow_norms"] == 0
    whole, partial = ways["lora"], ways["left off the GPU"]
    assert partial["norm"] == pytest.approx(whole["norm"], rel=1e-5)


@pytest.mark.parametrize("way", ["plain", "timeline", "loop", "guider"])
def test_an_evaluation_reads_nothing_from_the_device(ways, way):
    """Under euler. Where a solver evaluates between the steps, the count sees that its sigmas are read."""
    few, many = ways[f"reads: {way}"]["reads"]
    assert few == many
    few, many = ways["reads: between the steps"]["reads"]
    assert few < many


def test_a_sigma_that_nobody_announced_is_refused(ways):
    """Under euler a node of ComfyUI's own may not ask for one; that of another pack may, and is computed as it comes."""
    assert "sigma" in ways["elsewhere"]["error"] and "another sampler" in ways["elsewhere"]["error"]
    assert ways["elsewhere"]["foreign"] > 1e-3


def test_conditions_lie_where_the_network_computes(ways):
    assert ways["devices"]["devices"] == ["meta", "meta"]


def test_the_ways_are_what_they_are_called(ways):
    norms = [ways[way]["norm"] for way in ("plain", "lora", "quantised", "hooks on one branch", "left off the GPU")]
    norms += [ways[way]["norm"] for way in COUNTS if way.startswith("compiled,") and "at first" not in way]
    assert len({round(norm, 3) for norm in norms}) == len(norms)
    for again in ("without hooks again", "compiled", "compiled, as at first"):
        assert ways[again]["norm"] == pytest.approx(ways["plain"]["norm"], rel=1e-5)
    assert ways["without hooks again"]["graphs"] == 0 < ways["compiled"]["graphs"]


def test_a_solver_that_evaluates_twice_a_step(server, hand):
    scene = Scene()
    (latent,) = latents(server, scene, scene.ksampler("heun"))
    velocity, sigmas, x = hand.guided(hand.cat), simple_sigmas(STEPS), hand.noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, sigma)
        if following > 0:
            v = (v + velocity(x + (following - sigma) * v, following)) / 2
        x = x + (following - sigma) * v
    close(latent, x)


def test_a_solver_that_evaluates_between_the_steps(server, hand):
    """dpm_2 goes through the geometric mean of two sigmas, which no schedule announces."""
    scene = Scene()
    sigmas = scene.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0)
    (latent,) = latents(server, scene, scene.advanced(scene.cfg_guider(scene.cat), sampler="dpm_2", sigmas=sigmas))
    velocity, sigmas, x = hand.guided(hand.cat), make_sigmas(STEPS), hand.noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, sigma)
        if following > 0:
            middle = sigma.log().lerp(following.log(), 0.5).exp()
            v = velocity(x + (middle - sigma) * v, middle)
        x = x + (following - sigma) * v
    close(latent, x)


@pytest.mark.parametrize("place", ["model", "in place", "network"])
def test_a_text_that_changes_while_it_samples(server, hand, place):
    """Below sigma 0.5 the prompt is another one, under the name of the first."""
    scene = Scene()
    changing = scene.add("ProbeChangingContext", model=scene.model, place=place)
    (latent,) = latents(server, scene, scene.ours(model=changing))
    loud, quiet = hand.guided(hand.cat), hand.guided(hand.cat / 2)
    close(latent, hand.euler(lambda x, sigma: (quiet if sigma < 0.5 else loud)(x, sigma)))
    assert deviation(latent, hand.euler(loud)) > 1e-3


def write_lora(server, hand, name: str, strength: float) -> dict[str, torch.Tensor]:
    """A LoRA over layers that are read while preparing alone; what each weight becomes, by layer."""
    generator, lora, changed = torch.Generator().manual_seed(5), {}, {}
    for layer in LORA_LAYERS:
        weight = hand.backbone.get_parameter(f"{layer}.weight")
        up, down = (torch.randn(n, generator=generator) for n in ((weight.shape[0], 4), (4, weight.shape[1])))
        lora |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
        changed[layer] = weight.data + strength * up @ down
    save_lora(server, name, lora)
    return changed


def with_weights(hand, changed: dict, compute):
    parameters = {layer: hand.backbone.get_parameter(f"{layer}.weight") for layer in changed}
    kept = {layer: parameter.data for layer, parameter in parameters.items()}
    try:
        for layer, parameter in parameters.items():
            parameter.data = changed[layer]
        return compute()
    finally:
        for layer, parameter in parameters.items():
            parameter.data = kept[layer]


def test_a_lora_on_what_is_computed_beforehand(server, hand):
    """Without, with and without again, in one graph: each call with the weights of its own model."""
    changed = write_lora(server, hand, "tables.pt", 0.1)
    scene = Scene()
    patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="tables.pt", strength_model=0.1)
    # A widget without effect on a CPU tells ComfyUI's cache of results that the calls are not the same.
    made = [scene.ours(), scene.ours(model=patched), scene.ours(keep_on_gpu=True)]
    first, second, third = latents(server, scene, *made)
    plain = hand.euler(hand.guided(hand.cat))
    close(first, plain)
    close(second, with_weights(hand, changed, lambda: hand.euler(hand.guided(hand.cat))))
    close(third, plain)
    assert deviation(second, plain) > 0.01


def test_a_hook_on_one_branch_changes_its_weights_alone(server, hand):
    """A LoRA for the second half of the schedule alone, by a hook on the conditioning."""
    changed = write_lora(server, hand, "hooked.pt", 0.1)
    scene = Scene()
    hook = scene.add("CreateHookLoraModelOnly", lora_name="hooked.pt", strength_model=0.1)
    hooked = scene.add(
        "ConditioningSetProperties", cond_NEW=scene.cat, hooks=hook, strength=1.0, set_cond_area="default"
    )
    (latent,) = latents(server, scene, scene.advanced(scene.cfg_guider(hooked)))
    zero, scale = torch.zeros_like(hand.cat), GUIDANCE

    def velocity(x, sigma):
        base = hand.velocity(zero, x, sigma)
        return base + scale * (with_weights(hand, changed, lambda: hand.velocity(hand.cat, x, sigma)) - base)

    close(latent, hand.euler(velocity))


def test_one_call_after_another(server, hand):
    """Calls that differ in one thing, in one server: each is what it is by hand."""
    scene = Scene()
    made = [
        scene.ours(),
        scene.ours(scene.storm),
        scene.ours(sway=0.4),
        scene.ours(steps=3),
        scene.ours(guidance=1.5),
        scene.ours(model=scene.add("DashengModelLoader", model_name=TINY_NAME, dtype="bf16")),
        scene.ours(keep_on_gpu=True),
    ]
    *exact, half, again = latents(server, scene, *made)
    expected = [
        hand.euler(hand.guided(hand.cat)),
        hand.euler(hand.guided(hand.storm)),
        hand.euler(hand.guided(hand.cat), make_sigmas(STEPS, 0.4)),
        hand.euler(hand.guided(hand.cat), make_sigmas(3)),
        hand.euler(hand.guided(hand.cat, scale=1.5)),
    ]
    for latent, right in zip(exact, expected, strict=True):
        close(latent, right)
    assert torch.equal(again, exact[0])
    assert 1e-4 < (half - exact[0]).norm() / exact[0].norm() < 0.1


@pytest.mark.parametrize("mode", ["off", "resident", "graph", "compile"])
def test_every_mode_of_the_optimize_node_gives_the_same_sound(server, hand, mode):
    """It says what does nothing on this machine."""
    scene, before = Scene(), log_of(server)
    model = scene.add("DashengOptimize", model=scene.model, mode=mode)
    (latent,) = latents(server, scene, scene.ours(model=model))
    close(latent, hand.euler(hand.guided(hand.cat)))
    said = log_of(server)[len(before) :]
    assert said.count("CUDA graphs need an NVIDIA GPU; graph compiles only") == (mode == "graph")


def test_a_resident_model_is_not_in_dynamic_memory(ways):
    """Where a version has dynamic memory: that it then samples sooner, only a GPU can show."""
    found = ways["resident"]
    assert found["resident"] == found["can"] and not found["off"]


MODES_ON_A_GPU = """
import logging
from tools.comfyui_here import load_pack, module_of
import torch
logging.getLogger().setLevel(logging.INFO)
optimize = module_of(load_pack()["DashengOptimize"])
torch.cuda.is_available = lambda: True
for backend in ("native", "cudaMallocAsync"):
    torch.cuda.get_allocator_backend = lambda: backend
    print([optimize.compile_mode(mode) for mode in optimize.MODES])
"""


def test_cuda_graphs_are_left_out_with_the_allocator_that_refuses_them(tmp_path):
    """torch: "cudaMallocAsync does not yet support checkPoolLiveAllocations"."""
    (tmp_path / "script.py").write_text(MODES_ON_A_GPU, "utf-8")
    run = run_in_comfyui(tmp_path / "script.py", capture_output=True)
    assert run.stdout.splitlines()[-2:] == [
        "[None, None, 'reduce-overhead', 'default']",
        "[None, None, 'default', 'default']",
    ]
    assert "CUDA graphs need ComfyUI to be started with --disable-cuda-malloc; graph compiles only." in run.stderr
