"""Core's samplers on the prepared backbone: which calls use it, that they are right, and that nothing stale answers."""

import re

import pytest
import torch

from conftest import deviation
from dasheng_core.schedule import make_sigmas
from graphs import TINY_NAME, save_lora
from test_graphs import GUIDANCE, STEPS, Hand, Scene, close, latents, simple_sigmas

LORA_LAYERS = ("mid_block.adaln.time_ada", "in_blocks.0.cross_attn.to_k", "out_blocks.0.attn.to_v")


@pytest.fixture(scope="module")
def hand(tiny):
    return Hand(tiny)


def log_of(server) -> str:
    return server.log.read_text("utf-8", "replace")


def evaluations(server, before: str) -> list[tuple[int, int]]:
    """(evaluations, of them plain) of each sampling call since the log read ``before``."""
    found = re.findall(r"Dasheng: (\d+) evaluations, (\d+) of them plain", log_of(server)[len(before) :])
    return [(int(all_), int(plain)) for all_, plain in found]


def test_core_samplers_are_prepared_with_one_evaluation_a_step(server, hand):
    scene, before = Scene(), log_of(server)
    made = latents(server, scene, scene.ksampler(), scene.advanced(scene.cfg_guider(scene.cat)), scene.ours())
    assert evaluations(server, before) == [(STEPS, 0)] * 3
    close(made[0], hand.euler(hand.guided(hand.cat), simple_sigmas(STEPS)))
    for latent in made[1:]:
        close(latent, hand.euler(hand.guided(hand.cat)))


def test_a_solver_that_evaluates_twice_a_step(server, hand):
    scene, before = Scene(), log_of(server)
    (latent,) = latents(server, scene, scene.ksampler("heun"))
    assert evaluations(server, before) == [(2 * STEPS - 1, 0)]
    velocity, sigmas, x = hand.guided(hand.cat), simple_sigmas(STEPS), hand.noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, sigma)
        if following > 0:
            v = (v + velocity(x + (following - sigma) * v, following)) / 2
        x = x + (following - sigma) * v
    close(latent, x)


def test_a_solver_that_evaluates_between_the_steps(server, hand):
    """dpm_2 goes through the geometric mean of two sigmas, which no schedule announces."""
    scene, before = Scene(), log_of(server)
    sigmas = scene.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0)
    (latent,) = latents(server, scene, scene.advanced(scene.cfg_guider(scene.cat), sampler="dpm_2", sigmas=sigmas))
    ((count, plain),) = evaluations(server, before)
    assert count > STEPS and plain == 0
    velocity, sigmas, x = hand.guided(hand.cat), make_sigmas(STEPS), hand.noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        v = velocity(x, sigma)
        if following > 0:
            middle = sigma.log().lerp(following.log(), 0.5).exp()
            v = velocity(x + (middle - sigma) * v, middle)
        x = x + (following - sigma) * v
    close(latent, x)


def test_a_text_that_changes_while_it_samples(server, hand):
    """Below sigma 0.5 the prompt is another one, under the name of the first."""
    scene, before = Scene(), log_of(server)
    changing = scene.add("ProbeChangingContext", model=scene.model)
    (latent,) = latents(server, scene, scene.ours(model=changing))
    assert evaluations(server, before) == [(STEPS, 0)]
    loud, quiet = hand.guided(hand.cat), hand.guided(hand.cat / 2)
    close(latent, hand.euler(lambda x, sigma: (quiet if sigma < 0.5 else loud)(x, sigma)))
    assert deviation(latent, hand.euler(loud)) > 1e-3


def test_one_prompt_for_the_takes_of_a_batch(server):
    scene, before = Scene(), log_of(server)
    batch, alone = latents(server, scene, scene.ours(latent=scene.empty(3)), scene.ours())
    assert set(evaluations(server, before)) == {(STEPS, 0)}
    close(batch[:1], alone, 1e-5)
    assert deviation(batch[1:2], alone) > 0.01


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
    scene, before = Scene(), log_of(server)
    patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="tables.pt", strength_model=0.1)
    # A widget without effect on a CPU tells ComfyUI's cache of results that the calls are not the same.
    made = [scene.ours(), scene.ours(model=patched), scene.ours(keep_on_gpu=True)]
    first, second, third = latents(server, scene, *made)
    assert set(evaluations(server, before)) == {(STEPS, 0)}
    plain = hand.euler(hand.guided(hand.cat))
    close(first, plain)
    close(second, with_weights(hand, changed, lambda: hand.euler(hand.guided(hand.cat))))
    close(third, plain)
    assert deviation(second, plain) > 0.01


def test_hooks_that_change_weights_run_the_plain_network(server, hand):
    """A LoRA for the second half of the schedule alone, by a hook on the conditioning."""
    changed = write_lora(server, hand, "hooked.pt", 0.1)
    scene, before = Scene(), log_of(server)
    hook = scene.add("CreateHookLoraModelOnly", lora_name="hooked.pt", strength_model=0.1)
    hooked = scene.add(
        "ConditioningSetProperties", cond_NEW=scene.cat, hooks=hook, strength=1.0, set_cond_area="default"
    )
    (latent,) = latents(server, scene, scene.advanced(scene.cfg_guider(hooked)))
    assert evaluations(server, before) == []
    assert "hooks on a conditioning change weights" in log_of(server)[len(before) :]
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


def test_the_optimize_node_on_a_machine_without_a_gpu(server, hand):
    """Graphs are not to be had, which the log says once for each node."""
    scene, before = Scene(), log_of(server)
    models = [
        scene.add("DashengOptimize", model=scene.model, mode=mode, fp8=False) for mode in ("auto", "off", "graph")
    ]
    graph = models[-1]
    made = [scene.ours(model=model) for model in models] + [scene.ksampler(model=graph)]
    *ours, core = latents(server, scene, *made)
    for latent in ours:
        close(latent, hand.euler(hand.guided(hand.cat)))
    close(core, hand.euler(hand.guided(hand.cat), simple_sigmas(STEPS)))
    assert set(evaluations(server, before)) == {(STEPS, 0)}
    assert log_of(server)[len(before) :].count("Graphs need CUDA") == 1


def test_a_compiled_block_under_comfyui(server, hand):
    scene, before = Scene(), log_of(server)
    (latent,) = latents(
        server, scene, scene.ours(model=scene.add("DashengOptimize", model=scene.model, mode="compile", fp8=False))
    )
    close(latent, hand.euler(hand.guided(hand.cat)))
    assert evaluations(server, before) == [(STEPS, 0)]
