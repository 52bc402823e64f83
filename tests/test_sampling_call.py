"""What a sampling call holds under ComfyUI: that every call uses it, that it is right, and that nothing stale answers."""

import pytest
import torch

from by_hand import GUIDANCE, STEPS, Scene, close, latents
from conftest import deviation
from dasheng_core.schedule import make_sigmas
from graphs import TINY_NAME, save_lora, ways_of

LORA_LAYERS = ("mid_block.adaln.time_ada", "in_blocks.0.cross_attn.to_k", "out_blocks.0.attn.to_v")


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> dict[str, dict]:
    """What held_phases.py found, by way; and its log."""
    found, log = ways_of("held_phases.py", tmp_path_factory.mktemp("quantised"))
    return {**found, "log": log}


def test_every_way_to_run_the_network_gives_the_same_with_less_work(ways):
    """Of a tiny network; the published one's share of the work is in test_benchmarks.py."""
    found = {way: one for way, one in ways.items() if "whole" in one}
    assert len(found) == 10
    assert not {way: one["difference"] for way, one in found.items() if one["difference"] > 1e-5}
    assert all(way.startswith("compiled") or one["flops"] < 0.96 * one["whole"] for way, one in found.items())
    # Each is what it is called: the sounds differ, but of those that come back to the plain one.
    same = ("compiled", "compiled, as at first", "plain")
    other = [round(one["norm"], 3) for way, one in found.items() if way not in (*same, "left off the GPU")]
    assert len({*other}) == len(other)
    assert [found[way]["norm"] for way in same] == pytest.approx([found["plain"]["norm"]] * 3, rel=1e-5)
    assert found["windows"]["graphs"] == 0 < found["compiled"]["graphs"]


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


def test_what_only_a_gpu_shows_is_asked_for(ways):
    """Where conditions lie; and a model out of dynamic memory, where a version has it."""
    assert ways["devices"]["devices"] == ["meta", "meta"]
    assert ways["resident"]["resident"] == ways["resident"]["graph"] == ways["resident"]["can"]
    assert not ways["resident"]["off"]


def test_solvers_that_evaluate_twice_a_step_or_between_the_steps(server, hand):
    """dpm_2 goes through the geometric mean of two sigmas, which no schedule announces."""
    scene = Scene()
    heun, dpm_2 = latents(
        server, scene, *(scene.advanced(scene.cfg_guider(), sampler=name) for name in ("heun", "dpm_2"))
    )
    velocity, sigmas = hand.guided(hand.cat), make_sigmas(STEPS)
    twice = between = hand.noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v, u = velocity(twice, sigma), velocity(between, sigma)
        if following > 0:
            v = (v + velocity(twice + (following - sigma) * v, following)) / 2
            middle = sigma.log().lerp(following.log(), 0.5).exp()
            u = velocity(between + (middle - sigma) * u, middle)
        twice, between = twice + (following - sigma) * v, between + (following - sigma) * u
    close(heun, twice)
    close(dpm_2, between)


def test_a_text_that_changes_while_it_samples(server, hand):
    """Below sigma 0.5 the prompt is another one, under the name of the first."""
    scene = Scene()
    changing = [
        scene.add("ProbeChangingContext", model=scene.model, place=place) for place in ("model", "in place", "network")
    ]
    loud, quiet = hand.guided(hand.cat), hand.guided(hand.cat / 2)
    expected = hand.euler(lambda x, sigma: (quiet if sigma < 0.5 else loud)(x, sigma))
    assert deviation(expected, hand.euler(loud)) > 1e-3
    for latent in latents(server, scene, *(scene.ours(model=model) for model in changing)):
        close(latent, expected)


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
    """Without, with, by a hook on one branch alone, and without again: each call with the weights of its own model."""
    changed = write_lora(server, hand, "tables.pt", 0.1)
    scene = Scene()
    patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="tables.pt", strength_model=0.1)
    hook = scene.add("CreateHookLoraModelOnly", lora_name="tables.pt", strength_model=0.1)
    hooked = dict(cond_NEW=scene.cat, hooks=hook, strength=1.0, set_cond_area="default")
    hooked = scene.add("ConditioningSetProperties", **hooked)
    one_branch = scene.advanced(scene.cfg_guider(hooked, scene.zero(scene.cat)))
    # A widget without effect on a CPU tells ComfyUI's cache of results that the calls are not the same.
    made = [scene.ours(), scene.ours(model=patched), one_branch, scene.ours(keep_on_gpu=True)]
    first, second, by_hook, last = latents(server, scene, *made)
    plain, zero = hand.euler(hand.guided(hand.cat)), torch.zeros_like(hand.cat)

    def velocity(x, sigma):
        base = hand.velocity(zero, x, sigma)
        return base + GUIDANCE * (with_weights(hand, changed, lambda: hand.velocity(hand.cat, x, sigma)) - base)

    close(first, plain)
    close(second, with_weights(hand, changed, lambda: hand.euler(hand.guided(hand.cat))))
    close(by_hook, hand.euler(velocity))
    close(last, plain)
    assert deviation(second, plain) > 0.01 < deviation(second, by_hook)


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


@pytest.mark.parametrize("mode", ["off", "resident", "graph", pytest.param("compile", marks=pytest.mark.full)])
def test_every_mode_of_the_optimize_node_gives_the_same_sound(server, hand, mode):
    """It says what does nothing on this machine."""
    scene, before = Scene(), server.log.stat().st_size
    model = scene.add("DashengOptimize", model=scene.model, mode=mode)
    (latent,) = latents(server, scene, scene.ours(model=model))
    close(latent, hand.euler(hand.guided(hand.cat)))
    said = server.log.read_bytes()[before:].decode("utf-8", "replace")
    assert said.count("No CUDA graphs: they need an NVIDIA GPU.") == (mode == "graph")
