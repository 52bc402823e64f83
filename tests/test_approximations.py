"""What trades the published result for time: off by default, and each doing what it says and nothing else."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.approximate import ANOTHER_SEED, PRESETS, PUBLISHED, is_trained, mel_distance
from by_hand import GUIDANCE, SEED, STEPS, Hand, Scene, close, latents
from conftest import GOLDEN, deviation, load_model
from dasheng_core.backbone import Backbone, Block, Frames
from dasheng_core.guidance import is_guided
from dasheng_core.options import EPSS, SamplingOptions
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas
from dasheng_core.skip_cache import SkipCache, reusing_steps
from graphs import run as run_graph
from tools.comfyui import ROOT

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."


@pytest.fixture(scope="module")
def hand(tiny):
    return Hand(tiny)


# Pruned grids


def test_off_by_default():
    options = SamplingOptions()
    assert (options.num_steps, options.sway_sampling_coef, options.grid) == (25, -1.0, "full")
    assert all(is_guided(sigma, options.guidance_interval) for sigma in make_sigmas(25)[:-1].tolist())
    assert not options.skip_cache


@pytest.mark.parametrize("steps", EPSS)
@pytest.mark.parametrize("sway", [-1.0, 0.0, 0.4])
def test_an_epss_grid_is_points_of_the_grid_of_32_steps(steps, sway):
    sigmas = make_sigmas(steps, sway, grid="epss")
    assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert set(sigmas.tolist()) < set(make_sigmas(32, sway).tolist())


def test_the_grid_of_seven_steps_as_published():
    """u = 0, 2, 4, 6, 8, 16, 24, 32 of 32; at sway -1, sigma = cos(pi u / 2)."""
    expected = torch.tensor([1, 0.9952, 0.9808, 0.9569, 0.9239, 0.7071, 0.3827, 0])
    assert (make_sigmas(7, grid="epss") - expected).abs().max() < 5e-5


def test_an_epss_grid_starts_late_where_the_latent_is_kept_in_part():
    assert torch.equal(make_sigmas(5, denoise=0.5, grid="epss"), make_sigmas(10, grid="epss")[-6:])


@pytest.mark.parametrize("options, sentence", [
    ({"num_steps": 25, "grid": "epss"}, "25 steps: epss grids exist for 5, 6, 7, 10, 12 and 16 steps"),
    ({"num_steps": 8, "grid": "sparse"}, "grid is 'sparse', expected full, epss"),
    ({"guidance_interval": (0.6, 0.5)}, r"The guidance interval is \(0.6, 0.5\), expected another: it is two sigmas"),
    ({"guidance_interval": 0.5}, r"The guidance interval is \(0.5,\), expected another: it is two sigmas"),
    ({"skip_cache": -1}, "skip_cache is -1, expected a whole number from 0"),
    ({"skip_cache": 3}, "outer_blocks of the skip-cache is 3, expected a whole number from 1 to 2"),
])  # fmt: skip
def test_impossible_approximations_are_refused(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.generate(CAT, **options)


def test_sampling_on_an_epss_grid(server, hand, tiny):
    expected = hand.euler(hand.guided(hand.cat), make_sigmas(7, grid="epss"))
    scene = Scene()
    inputs = dict(sway=-1.0, denoise=1.0, grid="epss")
    (core,) = latents(
        server,
        scene,
        scene.advanced(scene.cfg_guider(scene.cat), sigmas=scene.add("DashengSwaySigmas", steps=7, **inputs)),
    )
    close(core, expected)
    content, mask, _ = tiny.encode_text(CAT)
    frames = torch.tensor([hand.noise.shape[-1]])
    library = tiny.sample(content, mask, frames, noise=hand.noise, num_steps=7, guidance_scale=GUIDANCE, grid="epss")
    close(library, expected)


# Guidance on an interval


def test_bounds_of_the_interval_are_inside():
    """Sigmas 1, 0.9 ... 0.1."""
    options = SamplingOptions(10, 5.0, 0.0, guidance_interval=(0.3, 0.6))
    sigmas = make_sigmas(options.num_steps, options.sway_sampling_coef)[:-1].tolist()
    guided = [is_guided(sigma, options.guidance_interval) for sigma in sigmas]
    assert guided == [False] * 4 + [True] * 4 + [False] * 2


def test_steps_outside_the_interval_evaluate_the_conditional_branch_alone(tiny, hand, monkeypatch):
    rows, step = [], Backbone.step
    monkeypatch.setattr(Backbone, "step", lambda self, x, *args: rows.append(len(x)) or step(self, x, *args))
    content, mask, _ = tiny.encode_text(CAT)
    options = dict(num_steps=STEPS, guidance_scale=GUIDANCE, guidance_interval=(0.5, 0.99))
    latent = tiny.sample(content, mask, torch.tensor([hand.noise.shape[-1]]), noise=hand.noise, **options)
    inside = [0.5 <= sigma <= 0.99 for sigma in make_sigmas(STEPS)[:-1].tolist()]
    assert rows == [1 + guided for guided in inside] and {*inside} == {True, False}

    guided, alone = hand.guided(hand.cat), hand.guided(hand.cat, scale=1.0)
    expected = hand.euler(lambda x, sigma: (guided if 0.5 <= sigma <= 0.99 else alone)(x, sigma))
    close(latent, expected)


def test_split_sigmas_guide_a_part_of_the_steps_in_a_graph(server, hand):
    scene, split = Scene(), 3
    counted = scene.add("ProbeEvaluations", model=scene.model)
    sigmas = scene.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0)
    parts = scene.add("SplitSigmas", sigmas=sigmas, step=split)
    first = scene.advanced(scene.cfg_guider(scene.cat, model=counted), sigmas=parts)
    alone = scene.add("CFGGuider", model=counted, positive=scene.cat, negative=scene.zero, cfg=1.0)
    second = scene.add(
        "SamplerCustomAdvanced",
        noise=scene.add("DisableNoise"),
        guider=alone,
        sampler=scene.add("KSamplerSelect", sampler_name="euler"),
        sigmas=parts(1),
        latent_image=first,
    )
    server.get("/probe/evaluations")
    (latent,) = latents(server, scene, second)
    assert server.get("/probe/evaluations") == [2] * split + [1] * (STEPS - split)

    guided, unguided = hand.guided(hand.cat), hand.guided(hand.cat, scale=1.0)
    border = make_sigmas(STEPS)[split]
    close(latent, hand.euler(lambda x, sigma: (guided if sigma > border else unguided)(x, sigma)))


# Skip-cache


REUSING = reusing_steps(make_sigmas(STEPS).tolist())


def test_which_steps_reuse():
    def steps(sigmas):
        return [step for step, reuses in enumerate(reusing_steps(sigmas.tolist())) if reuses]

    assert steps(make_sigmas(25)) == [13, 15, 17, 19, 21, 23]
    assert steps(make_sigmas(12)) == [6, 8, 10]
    assert steps(make_sigmas(12, grid="epss")) == [8, 10]
    # Parts of a schedule reuse where the whole one does, except at their own start.
    assert steps(make_sigmas(25)[:16]) == [13]
    assert steps(make_sigmas(25)[15:]) == [2, 4, 6, 8]
    assert steps(make_sigmas(1)) == []


@torch.inference_mode()
def skip_cache_by_hand(backbone, contents, noise, outer, mix=None, sigmas=None):
    """The same computation, spelt out with the blocks of the plain network, the branches one by one.

    ``mix`` makes one velocity of those of ``contents`` and, last, of the unconditional branch.
    """
    sigmas = make_sigmas(STEPS) if sigmas is None else sigmas
    mix = mix or (lambda conditional, base: base + GUIDANCE * (conditional - base))
    frames = Frames(backbone.rotary(noise.shape[-1], "cpu"))
    blocks = [*backbone.in_blocks, backbone.mid_block, *backbone.out_blocks]
    branches = [(content, backbone.dummy_ta_embed[None, None]) for content in contents]
    branches.append((torch.zeros_like(contents[0]), torch.zeros_like(backbone.dummy_ta_embed[None, None])))
    kept = {}

    def velocity(branch, latent, sigma, reuse):
        context, time_aligned = branches[branch]
        x, condition = backbone.patch_embed(latent), backbone.condition(context, time_aligned)
        *modulations, shift, scale = backbone.modulation(sigma * 1000)[:, :, None].unbind(1)
        skips = []
        for i, block in enumerate(blocks):
            if reuse and outer <= i < len(blocks) - outer:
                continue
            if i == len(blocks) - outer:
                x = kept[branch] = kept[branch] if reuse else x
            own = (
                modulations[6 * i : 6 * i + 6],
                condition.constant[i],
                [(slice(0, len(x)), [condition.text(i)])],
            )
            x = block(x, *own, frames, *([skips.pop()] if i > len(blocks) // 2 else []))
            if i < len(blocks) // 2:
                skips.append(x)
        return backbone.final_block(x, shift, scale)

    latent = noise
    for sigma, following, reuse in zip(sigmas[:-1], sigmas[1:], reusing_steps(sigmas.tolist()), strict=True):
        velocities = [velocity(branch, latent, sigma, reuse) for branch in range(len(branches))]
        latent = latent + (following - sigma) * mix(*velocities)
    return latent


def sampled(model, content, noise, **options):
    mask, frames = torch.ones(content.shape[:2], dtype=torch.bool), torch.full((len(noise),), noise.shape[-1])
    options = {"num_steps": STEPS, "guidance_scale": GUIDANCE, **options}
    return model.sample(content.expand(len(noise), -1, -1), mask.expand(len(noise), -1), frames, noise=noise, **options)


@pytest.mark.parametrize("outer", [1, 2])
def test_skip_cache_is_what_it_is_by_hand(tiny, hand, outer):
    cached = sampled(tiny, hand.cat, hand.noise, skip_cache=outer)
    close(cached, skip_cache_by_hand(tiny.backbone, [hand.cat], hand.noise, outer))
    assert deviation(cached, sampled(tiny, hand.cat, hand.noise)) > 1e-3


def test_skip_cache_leaves_the_inner_blocks_out(tiny, hand, monkeypatch):
    """Depth 4 and a middle one: 5 blocks, and 2 where 1 at either end runs alone."""
    runs = []
    evaluate, run_block = Backbone.step, Block.forward

    def counted(self, *args, **kwargs):
        runs[-1] += 1
        return run_block(self, *args, **kwargs)

    monkeypatch.setattr(Backbone, "step", lambda *args: runs.append(0) or evaluate(*args))
    monkeypatch.setattr(Block, "forward", counted)
    sampled(tiny, hand.cat, hand.noise, skip_cache=1)
    assert runs == [2 if reuses else 5 for reuses in REUSING]
    assert runs.count(2) == 2
    # Where guidance ends a branch is gone, and what was kept is of no use: that step is a full one.
    runs.clear()
    first_unguided = REUSING.index(True)
    low = make_sigmas(STEPS)[first_unguided - 1].item()
    sampled(tiny, hand.cat, hand.noise, skip_cache=1, guidance_interval=(low, 1.0))
    assert runs == [2 if reuses and step != first_unguided else 5 for step, reuses in enumerate(REUSING)]


def test_skip_cache_keeps_nothing_from_one_sampling_to_the_next(tiny, hand):
    two = torch.cat([hand.noise, hand.noise.flip(-1)])
    calls = [(hand.cat, hand.noise), (hand.storm, hand.noise), (hand.cat, two), (hand.cat, hand.noise)]
    in_a_row = [sampled(tiny, *call, skip_cache=1) for call in calls]
    assert torch.equal(in_a_row[0], in_a_row[3])
    for latent, (content, noise) in zip(in_a_row, calls, strict=True):
        for item, start in zip(latent, noise, strict=True):
            close(item[None], skip_cache_by_hand(tiny.backbone, [content], start[None], 1))


def test_what_was_kept_is_for_the_next_step_the_same_owner_and_shape_alone():
    sigmas, like = make_sigmas(STEPS).tolist(), torch.empty(0)
    cache, reusing = SkipCache(1, sigmas), REUSING.index(True)

    def at(sigma, owner, shape=(2, 4, 5)):
        return cache.at(sigma, owner, shape, like)

    full, following = sigmas[reusing - 1 : reusing + 1]
    between = (full * following) ** 0.5
    kept = {}
    for owner in ("first", "second", "unwritten"):
        kept[owner] = at(full, owner)
        assert not kept[owner].recalled, "a full step"
        if owner != "unwritten":
            kept[owner].exchange(torch.full((2, 4, 5), float(len(kept))))
    for owner in ("second", "first", "second"):
        inner = at(following, owner)
        assert inner.recalled and inner.exchange(torch.zeros(2, 4, 5)) is kept[owner].x
    # Of no use: another's, of another shape, and one that was never computed, as where a wrapper left a step out.
    assert [at(following, "third"), at(following, "unwritten"), at(following, "first", (3, 4, 5))] == [None] * 3
    assert not at(between, "first").recalled, "a solver between two steps is in the first of them"
    assert REUSING[reusing + 2] and at(sigmas[reusing + 2], "second") is None, "three steps old"
    assert at(sigmas[reusing + 1], "second").recalled is False, "two steps after one that reuses, a full one"


def test_skip_cache_in_a_graph(server, hand):
    """Samplings in a row, of other prompts and batches, each as it is alone; the model that went in is left as it was."""
    scene = Scene()
    cached = scene.add("DashengSkipCache", model=scene.model, outer_blocks=1)
    twice = scene.add(
        "DashengSkipCache", model=scene.add("DashengSkipCache", model=cached, outer_blocks=2), outer_blocks=1
    )
    span = dict(start_percent=0.0, end_percent=1.0, verbose=False)
    made = latents(
        server,
        scene,
        scene.ours(model=cached),
        scene.ours(scene.storm, model=cached),
        scene.ours(model=cached, latent=scene.empty(3)),
        scene.advanced(scene.cfg_guider(scene.cat, model=cached)),
        scene.ours(model=twice),
        scene.ours(model=scene.add("EasyCache", model=cached, reuse_threshold=0.0, **span)),
        scene.ours(model=cached, guidance=1.0),
        scene.ours(),
    )
    cat, storm, batch, core, twice, easy, unguided, plain = made
    expected = skip_cache_by_hand(hand.backbone, [hand.cat], hand.noise, 1)
    close(plain, hand.euler(hand.guided(hand.cat)))
    assert deviation(plain, expected) > 1e-3
    for latent in (cat, core, twice, easy, batch[:1]):
        close(latent, expected)
    close(storm, skip_cache_by_hand(hand.backbone, [hand.storm], hand.noise, 1))
    close(
        unguided,
        skip_cache_by_hand(hand.backbone, [hand.cat], hand.noise, 1, mix=lambda conditional, base: conditional),
    )
    for i, item in enumerate(batch):
        noise = draw_noise(SEED + i, *hand.noise.shape[1:], "plain")[None]
        close(item[None], skip_cache_by_hand(hand.backbone, [hand.cat], noise, 1))


def test_skip_cache_with_conditionings_of_their_own_calls(server, hand):
    """Texts of two lengths do not fit into one batch: what each keeps is its own."""
    scene = Scene()
    cached = scene.add("DashengSkipCache", model=scene.model, outer_blocks=1)
    both = scene.add("ConditioningCombine", conditioning_1=scene.cat, conditioning_2=scene.storm)
    swapped = scene.add("ConditioningCombine", conditioning_1=scene.storm, conditioning_2=scene.cat)

    def mix(cat, storm, base):
        return base + GUIDANCE * ((cat + storm) / 2 - base)

    expected = skip_cache_by_hand(hand.backbone, [hand.cat, hand.storm], hand.noise, 1, mix)
    assert hand.cat.shape != hand.storm.shape
    for latent in latents(server, scene, scene.ours(both, model=cached), scene.ours(swapped, model=cached)):
        close(latent, expected)


@pytest.mark.parametrize("sampler", ["heun", "uni_pc"])
def test_other_solvers_run_with_skip_cache(server, sampler):
    scene = Scene()
    cached = scene.add("DashengSkipCache", model=scene.model, outer_blocks=2)
    plain, made, again = latents(
        server, scene, *(scene.ksampler(sampler, steps=12, model=model, cfg=cfg)
                         for model, cfg in ((scene.model, 3.0), (cached, 3.0), (cached, 3.0001)))
    )  # fmt: skip
    difference = ((made - plain).norm() / plain.norm()).item()
    assert 1e-4 < difference < 0.5
    close(again, made, 1e-2)


@pytest.mark.full
def test_skip_cache_under_a_compiler(server, hand):
    scene = Scene()
    compiled = scene.add("TorchCompileModel", model=scene.model, backend="inductor")
    both = scene.add("DashengSkipCache", model=compiled, outer_blocks=1)
    (latent,) = latents(server, scene, scene.ours(model=both))
    close(latent, skip_cache_by_hand(hand.backbone, [hand.cat], hand.noise, 1))


def test_skip_cache_of_more_blocks_than_there_are_is_refused(server):
    scene = Scene()
    scene.add("SaveLatent", samples=scene.ours(model=scene.add("DashengSkipCache", model=scene.model, outer_blocks=3)),
              filename_prefix="test")  # fmt: skip
    assert "outer_blocks of the skip-cache is 3" in run_graph(server, scene).error()


# The script that measures them


@pytest.mark.full
def test_the_script_measures_every_preset_and_owns_up_to_random_weights(tmp_path):
    out = tmp_path / "out.json"
    script = [sys.executable, "-m", "benchmarks.approximate", GOLDEN / "tiny", "--json", out]
    options = ["--prompts", "1", "--repeats", "1", "--seconds", "0.8", "--far", "40"]
    run = subprocess.run([*map(str, script), *options], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "These weights are random" in run.stdout
    found = json.loads(out.read_text())
    assert found["trained"] is False
    rows = found["rows"]
    assert set(rows) == {*PRESETS, ANOTHER_SEED} - {"25 steps, skip-cache 4"}, "4 blocks"
    for name, row in rows.items():
        for reference in ("25", "40"):
            (latent,), (mel,) = row[f"latent to {reference}"], row[f"mel to {reference}"]
            same = name == PUBLISHED and reference == "25"
            assert (latent == mel == 0) if same else (latent > 0 and mel > 0), name
        assert (name == ANOTHER_SEED) == (row["seconds"] == [])
    # Euler's error falls with its steps.
    assert rows["7 steps"]["latent to 40"] > rows["12 steps"]["latent to 40"] > rows[PUBLISHED]["latent to 40"]


@pytest.mark.skipif(not (ROOT / "mini").is_dir(), reason="the mini model is not there")
def test_trained_weights_are_told_from_random_ones(tiny):
    assert is_trained(load_model(ROOT / "mini")) and not is_trained(tiny)


def test_log_mel_distance():
    """Half the amplitude is 6.02 dB everywhere; what is 80 dB below the loudest counts as silence."""
    tone = torch.sin(torch.arange(16000) * 0.3)[None] + torch.randn(
        1, 16000, generator=torch.Generator().manual_seed(0)
    )
    assert mel_distance(tone / 2, tone) == pytest.approx(6.02, abs=0.01)
    assert mel_distance(tone * 1e-6, tone) == mel_distance(tone * 0, tone) <= 80
