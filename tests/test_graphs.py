"""ComfyUI's own nodes on our MODEL, CONDITIONING, LATENT and VAE, each against the same thing computed by hand."""

import re
import shutil

import pytest
import torch

from by_hand import CAT, GUIDANCE, SEED, STEPS, Scene, close, latents, simple_sigmas
from dasheng_core.schedule import make_sigmas
from graphs import TINY_NAME, complete


def test_ksampler_with_a_core_scheduler(server, hand):
    scene = Scene()
    (latent,) = latents(server, scene, scene.ksampler())
    close(latent, hand.euler(hand.guided(hand.cat), simple_sigmas(STEPS)))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "uni_pc", "res_multistep"])
def test_other_solvers_reach_what_a_fine_euler_reaches(server, hand, sampler):
    """The error of a higher-order solver falls with its steps, towards the same end point."""
    scene = Scene()
    solved = [scene.ksampler(sampler_name=sampler, steps=steps) for steps in (10, 50)]
    goal = hand.euler(hand.guided(hand.cat), simple_sigmas(250))
    error = [((latent - goal).norm() / goal.norm()).item() for latent in latents(server, scene, *solved)]
    assert error[1] < error[0] and error[1] < 0.05, error


def averaged(scene):
    inputs = dict(conditioning_to=scene.cat, conditioning_from=scene.storm, conditioning_to_strength=0.3)
    return scene.add("ConditioningAverage", **inputs)


def in_halves(scene):
    """The cat in the first half of the schedule, the storm in the second."""
    first = scene.add("ConditioningSetTimestepRange", conditioning=scene.cat, start=0.0, end=0.5)
    second = scene.add("ConditioningSetTimestepRange", conditioning=scene.storm, start=0.5, end=1.0)
    return combined(scene, first, second)


def combined(scene, first=None, second=None):
    inputs = dict(conditioning_1=first or scene.cat, conditioning_2=second or scene.storm)
    return scene.add("ConditioningCombine", **inputs)


def average_by_hand(hand):
    # ComfyUI cuts or zero-pads the second to the first's length.
    length = hand.cat.shape[1]
    other = torch.nn.functional.pad(hand.storm[:, :length], (0, 0, 0, max(0, length - hand.storm.shape[1])))
    return hand.guided(0.3 * hand.cat + 0.7 * other)


def combination_by_hand(hand):
    def velocity(latent, sigma):
        base = hand.velocity(torch.zeros_like(hand.cat), latent, sigma)
        both = (hand.velocity(hand.cat, latent, sigma) + hand.velocity(hand.storm, latent, sigma)) / 2
        return base + GUIDANCE * (both - base)

    return velocity


def halves_by_hand(hand):
    cat, storm = hand.guided(hand.cat), hand.guided(hand.storm)
    return lambda latent, sigma: (cat if sigma > 0.5 else storm)(latent, sigma)


# Conditioning, negative, and the velocity by hand. No negative is the unconditional branch.
CONDITIONINGS = {
    "a prompt": (lambda s: s.cat, None, lambda h: h.guided(h.cat)),
    "a negative": (lambda s: s.cat, lambda s: s.storm, lambda h: h.guided(h.cat, h.storm)),
    "average": (averaged, None, average_by_hand),
    "combine": (combined, None, combination_by_hand),
    "concat": (
        lambda s: s.add("ConditioningConcat", conditioning_to=s.cat, conditioning_from=s.storm),
        None,
        lambda h: h.guided(torch.cat([h.cat, h.storm], dim=1)),
    ),
    "timestep range": (in_halves, None, halves_by_hand),
}


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_conditioning(server, hand, name):
    positive, negative, velocity = CONDITIONINGS[name]
    scene = Scene()
    positive = positive(scene)
    wires = {"negative": negative(scene)} if negative else {}
    made = scene.ours(positive, **wires), scene.advanced(scene.cfg_guider(positive, **wires))
    expected = hand.euler(velocity(hand))
    for latent in latents(server, scene, *made):
        close(latent, expected)


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg_guider(server, hand, style):
    scene = Scene()
    inputs = dict(model=scene.model, cond1=scene.cat, cond2=scene.storm, negative=scene.zero(scene.cat))
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
    core = scene.advanced(scene.cfg_guider(), latent=start, sigmas=half)
    simple = scene.ksampler(latent=start, denoise=0.5)
    kept, *resampled, simple = latents(server, scene, start, ours, core, simple)
    for latent in resampled:
        close(latent, hand.euler(hand.guided(hand.cat), make_sigmas(STEPS, -1.0, 0.5), start=kept))
    close(simple, hand.euler(hand.guided(hand.cat), simple_sigmas(2 * STEPS)[-STEPS - 1 :], start=kept))


def test_latent_batches(server):
    """Batch, pick and blend; a take picked out of an empty batch is the same take."""
    scene = Scene()
    batch = scene.ours(latent=scene.empty(3))
    one, two = scene.ours(seed=SEED), scene.ours(scene.storm, seed=SEED)
    picked = scene.add("LatentFromBatch", samples=scene.empty(3), batch_index=2, length=1)
    joined = scene.add("LatentBatch", samples1=one, samples2=two)
    cut = scene.add("LatentFromBatch", samples=batch, batch_index=1, length=2)
    blended = scene.add("LatentBlend", samples1=one, samples2=two, blend_factor=0.25)
    made = latents(server, scene, batch, one, two, joined, cut, blended, scene.ours(latent=picked))
    batch, one, two, joined, cut, blended, picked = made
    assert torch.equal(joined, torch.cat([one, two])) and torch.equal(cut, batch[1:])
    close(blended, 0.25 * one + 0.75 * two, 1e-6)
    close(picked[0], batch[2])


def test_a_saved_latent_is_loaded_and_decoded(server):
    scene = Scene()
    latent = scene.ours()
    scene.add("SaveAudio", audio=scene.add("DashengDecode", vae=scene.vae, latent=latent), filename_prefix="test")
    first = complete(server, scene.save(latent))
    shutil.copy(first.files("latents")[0], server.base / "input" / "kept.latent")
    again = Scene()
    loaded = again.add("LoadLatent", latent="kept.latent")
    again.add("SaveAudio", audio=again.add("DashengDecode", vae=again.vae, latent=loaded), filename_prefix="test")
    assert torch.equal(complete(server, again).audio()[0][0], first.audio()[0][0])


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
    complete(server, scene)
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


@pytest.mark.full
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
    (ours, rate), (core, core_rate) = complete(server, scene).audio()
    assert rate == 16000 and core_rate in (16000, 44100) and len(core) == len(ours)
    scale = max(1.0, 5 * ours.std().item())
    assert (core - ours / scale).abs().max() < 2e-3


def test_latents_and_conditioning_lie_where_comfyui_keeps_results(server):
    scene = Scene()
    scene.add("ProbeDevices", latent=scene.ours(), conditioning=scene.cat)
    (text,) = complete(server, scene).texts()
    latent, conditioning, intermediate = text.split()
    assert latent == conditioning == intermediate
