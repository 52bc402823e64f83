"""ComfyUI's own nodes on our MODEL, CONDITIONING, LATENT and VAE, each against the same thing computed by hand."""

import re
import shutil

import pytest
import torch

from by_hand import CAT, GUIDANCE, SEED, STEPS, Hand, Scene, close, latents, simple_sigmas
from conftest import deviation
from dasheng_core.schedule import make_sigmas
from graphs import TINY_NAME, run, save_lora


@pytest.fixture(scope="module")
def hand(tiny):
    return Hand(tiny)


def test_ksampler_with_a_core_scheduler(server, hand):
    scene = Scene()
    (latent,) = latents(server, scene, scene.ksampler())
    close(latent, hand.euler(hand.guided(hand.cat), simple_sigmas(STEPS)))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc", "res_multistep"])
def test_other_solvers_reach_what_a_fine_euler_reaches(server, hand, sampler):
    """The error of a higher-order solver falls with its steps, towards the same end point."""
    scene = Scene()
    coarse, fine = latents(server, scene, scene.ksampler(sampler, steps=12), scene.ksampler(sampler, steps=100))
    goal = hand.euler(hand.guided(hand.cat), simple_sigmas(500))
    error = [((latent - goal).norm() / goal.norm()).item() for latent in (coarse, fine)]
    assert error[1] < error[0] and error[1] < 0.03, error


def test_negative_prompt(server, hand):
    scene = Scene()
    ours, core = scene.ours(negative=scene.storm), scene.advanced(scene.cfg_guider(scene.cat, scene.storm))
    expected = hand.euler(hand.guided(hand.cat, hand.storm))
    for latent in latents(server, scene, ours, core):
        close(latent, expected)


def test_zeroed_conditioning_is_the_unconditional_branch(server, hand):
    scene = Scene()
    for latent in latents(server, scene, scene.ours(), scene.advanced(scene.cfg_guider(scene.cat))):
        close(latent, hand.euler(hand.guided(hand.cat)))


def test_conditioning_average(server, hand):
    scene = Scene()
    averaged = scene.add(
        "ConditioningAverage", conditioning_to=scene.cat, conditioning_from=scene.storm, conditioning_to_strength=0.3
    )
    # ComfyUI cuts or zero-pads the second to the first's length.
    length = hand.cat.shape[1]
    other = torch.nn.functional.pad(hand.storm[:, :length], (0, 0, 0, max(0, length - hand.storm.shape[1])))
    expected = hand.euler(hand.guided(0.3 * hand.cat + 0.7 * other))
    for latent in latents(server, scene, scene.ours(averaged), scene.advanced(scene.cfg_guider(averaged))):
        close(latent, expected)


def test_conditioning_combine_averages_predictions(server, hand):
    scene = Scene()
    combined = scene.add("ConditioningCombine", conditioning_1=scene.cat, conditioning_2=scene.storm)

    def velocity(latent, sigma):
        base = hand.velocity(torch.zeros_like(hand.cat), latent, sigma)
        both = (hand.velocity(hand.cat, latent, sigma) + hand.velocity(hand.storm, latent, sigma)) / 2
        return base + GUIDANCE * (both - base)

    for latent in latents(server, scene, scene.ours(combined), scene.advanced(scene.cfg_guider(combined))):
        close(latent, hand.euler(velocity))


def test_conditioning_concat(server, hand):
    scene = Scene()
    joined = scene.add("ConditioningConcat", conditioning_to=scene.cat, conditioning_from=scene.storm)
    expected = hand.euler(hand.guided(torch.cat([hand.cat, hand.storm], dim=1)))
    for latent in latents(server, scene, scene.ours(joined), scene.advanced(scene.cfg_guider(joined))):
        close(latent, expected)


def test_conditioning_timestep_range(server, hand):
    """The cat in the first half of the schedule, the storm in the second."""
    scene = Scene()
    first = scene.add("ConditioningSetTimestepRange", conditioning=scene.cat, start=0.0, end=0.5)
    second = scene.add("ConditioningSetTimestepRange", conditioning=scene.storm, start=0.5, end=1.0)
    both = scene.add("ConditioningCombine", conditioning_1=first, conditioning_2=second)
    cat, storm = hand.guided(hand.cat), hand.guided(hand.storm)
    expected = hand.euler(lambda latent, sigma: (cat if sigma > 0.5 else storm)(latent, sigma))
    for latent in latents(server, scene, scene.ours(both), scene.advanced(scene.cfg_guider(both))):
        close(latent, expected)


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_guider(server, hand, style):
    scene = Scene()
    inputs = dict(model=scene.model, cond1=scene.cat, cond2=scene.storm, negative=scene.zero)
    guider = scene.add("DualCFGGuider", **inputs, cfg_conds=4.0, cfg_cond2_negative=2.0, style=style)

    def velocity(latent, sigma):
        cat, storm = hand.velocity(hand.cat, latent, sigma), hand.velocity(hand.storm, latent, sigma)
        base = hand.velocity(torch.zeros_like(hand.cat), latent, sigma)
        if style == "nested":
            return base + 2.0 * (storm + 4.0 * (cat - storm) - base)
        return base + 2.0 * (storm - base) + 4.0 * (cat - storm)

    (latent,) = latents(server, scene, scene.advanced(guider))
    close(latent, hand.euler(velocity))


def test_resampling_an_existing_latent(server, hand):
    scene = Scene()
    start = scene.ours(scene.storm, seed=3)
    ours = scene.ours(latent=start, denoise=0.5)
    half = scene.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=0.5)
    core = scene.advanced(scene.cfg_guider(scene.cat), latent=start, sigmas=half)
    simple = scene.ksampler(latent=start, denoise=0.5)
    kept, *resampled, simple = latents(server, scene, start, ours, core, simple)
    for latent in resampled:
        close(latent, hand.euler(hand.guided(hand.cat), make_sigmas(STEPS, -1.0, 0.5), start=kept))
    close(simple, hand.euler(hand.guided(hand.cat), simple_sigmas(2 * STEPS)[-STEPS - 1 :], start=kept))


def test_latent_batches(server):
    """Batch, repeat, pick and blend; a take picked out of an empty batch is the same take."""
    scene = Scene()
    batch = scene.ours(latent=scene.empty(3))
    one, two = scene.ours(seed=SEED), scene.ours(scene.storm, seed=SEED)
    picked = scene.add("LatentFromBatch", samples=scene.empty(3), batch_index=2, length=1)
    made = [
        batch,
        one,
        two,
        scene.add("LatentBatch", samples1=one, samples2=two),
        scene.add("RepeatLatentBatch", samples=one, amount=2),
        scene.add("LatentFromBatch", samples=batch, batch_index=1, length=2),
        scene.add("LatentBlend", samples1=one, samples2=two, blend_factor=0.25),
        scene.ours(latent=picked),
    ]
    batch, one, two, joined, repeated, cut, blended, picked = latents(server, scene, *made)
    assert torch.equal(joined, torch.cat([one, two])) and torch.equal(repeated, torch.cat([one, one]))
    assert torch.equal(cut, batch[1:])
    close(blended, 0.25 * one + 0.75 * two, 1e-6)
    close(picked[0], batch[2])


def test_a_saved_latent_is_loaded_and_decoded(server):
    scene = Scene()
    latent = scene.ours()
    saved = scene.add("SaveLatent", samples=latent, filename_prefix="kept")
    scene.add("SaveAudio", audio=scene.add("DashengDecode", vae=scene.vae, latent=latent), filename_prefix="test")
    first = run(server, scene)
    assert saved
    shutil.copy(first.files("latents")[0], server.base / "input" / "kept.latent")
    again = Scene()
    loaded = again.add("LoadLatent", latent="kept.latent")
    again.add("SaveAudio", audio=again.add("DashengDecode", vae=again.vae, latent=loaded), filename_prefix="test")
    assert torch.equal(run(server, again).audio()[0][0], first.audio()[0][0])


def test_a_lora_changes_the_weights_as_computed_by_hand(server, hand):
    key, rank, alpha, strength = "in_blocks.1.attn.to_q", 4, 2.0, 0.8
    generator = torch.Generator().manual_seed(0)
    weight = hand.backbone.get_parameter(f"{key}.weight")
    up, down = (torch.randn(shape, generator=generator) for shape in ((weight.shape[0], rank), (rank, weight.shape[1])))
    lora = {"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(alpha)}
    save_lora(server, "made_up.pt", {f"{key}.{name}": tensor for name, tensor in lora.items()})

    scene = Scene()
    patched = scene.add("LoraLoaderModelOnly", model=scene.model, lora_name="made_up.pt", strength_model=strength)
    with_lora, without = latents(server, scene, scene.ours(model=patched), scene.ours())
    close(without, hand.euler(hand.guided(hand.cat)))
    original = weight.data
    try:
        weight.data = original + strength * alpha / rank * up @ down
        close(with_lora, hand.euler(hand.guided(hand.cat)))
    finally:
        weight.data = original
    assert deviation(with_lora, without) > 0.01


def test_a_saved_model_is_loaded_again(server):
    scene = Scene()
    scene.add("ModelSave", model=scene.model, filename_prefix="diffusion_models/saved")
    (before,) = latents(server, scene, scene.ours())
    (saved,) = sorted((server.output / "diffusion_models").glob("saved_*.safetensors"))[-1:]
    shutil.copy(saved, server.base / "models" / "diffusion_models" / "saved.safetensors")
    scene = Scene()
    again = scene.add("DashengModelLoader", model_name="saved.safetensors", dtype="auto")
    (after,) = latents(server, scene, scene.ours(model=again))
    # Where a file's weights lie in memory may change the last bit of a product.
    close(after, before, 1e-5)


def test_a_saved_text_encoder_is_loaded_again(server, hand):
    """Core's CLIPSave, VAESave and CheckpointSave write our parts; the text encoder is one that our loader takes."""
    scene = Scene()
    _, clip, vae = scene.loaders()
    scene.add("CLIPSave", clip=clip, filename_prefix="text_encoders/saved")
    scene.add("VAESave", vae=vae, filename_prefix="vae/saved")
    scene.add("CheckpointSave", model=scene.model, clip=clip, vae=vae, filename_prefix="checkpoints/saved")
    result = run(server, scene)
    assert result.events[-1][0] == "execution_success", result.error()
    assert len([*server.output.glob("vae/saved_*")]) == len([*server.output.glob("checkpoints/saved_*")]) == 1
    (saved,) = server.output.glob("text_encoders/saved_*.safetensors")
    folder = server.base / "models" / "text_encoders"
    shutil.copy(saved, folder / "saved.safetensors")
    for side_file in ("config.json", "tokenizer.json"):
        shutil.copy((folder / TINY_NAME).with_name(side_file), folder / f"saved.{side_file}")
    scene = Scene()
    again = scene.add("DashengTextEncoderLoader", text_encoder_name="saved.safetensors", model_name=TINY_NAME)
    positive = scene.encode(again, CAT)
    (latent,) = latents(server, scene, scene.ours(positive=positive))
    close(latent, hand.euler(hand.guided(hand.cat)))


def test_a_compiled_model_gives_the_same(server, hand):
    scene = Scene()
    compiled = scene.add("TorchCompileModel", model=scene.model, backend="inductor")
    (latent,) = latents(server, scene, scene.ours(model=compiled))
    close(latent, hand.euler(hand.guided(hand.cat)))


def test_easy_cache_reuses_steps(server, hand):
    """How near the result stays only a trained model can tell; a random one drifts away with the first reused step."""
    scene = Scene()
    inputs = dict(start_percent=0.15, end_percent=0.95, verbose=False)
    off = scene.add("EasyCache", model=scene.model, reuse_threshold=0.0, **inputs)
    on = scene.add("EasyCache", model=scene.model, reuse_threshold=0.1, **inputs)
    off, on = latents(server, scene, scene.ours(model=off, steps=30), scene.ours(model=on, steps=30))
    exact = hand.euler(hand.guided(hand.cat), make_sigmas(30))
    close(off, exact)
    assert on.isfinite().all() and (on - exact).norm() / exact.norm() > 1e-3
    without, reused = re.findall(r"skipped (\d+)/30 steps", server.log.read_text("utf-8", "replace"))[-2:]
    assert {int(without), int(reused)} > {0} and max(int(without), int(reused)) < 26


def test_core_decode_is_ours_with_its_own_level_and_rate(server):
    """VAEDecodeAudio divides loud clips by five standard deviations, and before 0.8 says 44.1 kHz; ours does neither."""
    scene = Scene()
    latent = scene.ours()
    for decoded in (
        scene.add("DashengDecode", vae=scene.vae, latent=latent),
        scene.add("VAEDecodeAudio", vae=scene.vae, samples=latent),
    ):
        scene.add("SaveAudio", audio=decoded, filename_prefix="test")
    (ours, rate), (core, core_rate) = run(server, scene).audio()
    assert rate == 16000 and core_rate in (16000, 44100) and len(core) == len(ours)
    scale = max(1.0, 5 * ours.std().item())
    assert (core - ours / scale).abs().max() < 2e-3


def test_latents_and_conditioning_lie_where_comfyui_keeps_results(server):
    scene = Scene()
    scene.add("ProbeDevices", latent=scene.ours(), conditioning=scene.cat)
    ((text,),) = [node["text"] for node in run(server, scene).outputs.values() if "text" in node]
    latent, conditioning, intermediate = text.split()
    assert latent == conditioning == intermediate
