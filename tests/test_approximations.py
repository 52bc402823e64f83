"""What trades the published result for time: off by default, and each doing what it says and nothing else."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.approximate import ANOTHER_SEED, PRESETS, PUBLISHED, mel_distance
from by_hand import CAT, GUIDANCE, SEED, STEPS, Scene, close, latents
from conftest import GOLDEN, deviation
from dasheng_core.backbone import Backbone, Block, Frames
from dasheng_core.options import EPSS, SamplingOptions
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas
from dasheng_core.skip_cache import reusing_steps
from graphs import run as run_graph
from tools.comfyui import ROOT


def test_off_by_default():
    options = SamplingOptions()
    assert (options.num_steps, options.sway_sampling_coef, options.grid) == (25, -1.0, "full")
    assert options.guidance_interval == (0.0, 1.0) and not options.skip_cache


@pytest.mark.parametrize("options, sentence", [
    ({"num_steps": 25, "grid": "epss"}, "25 steps: epss grids exist for 5, 6, 7, 10, 12 and 16 steps"),
    ({"num_steps": 8, "grid": "sparse"}, "grid is 'sparse', expected full, epss"),
    ({"guidance_interval": (0.6, 0.5)}, r"guidance interval is \(0.6, 0.5\)"),
    ({"guidance_interval": 0.5}, r"guidance interval is \(0.5,\)"),
    ({"skip_cache": -1}, "skip_cache is -1"),
    ({"skip_cache": 3}, "skip-cache is 3, expected a whole number from 1 to 2"),
])  # fmt: skip
def test_impossible_approximations_are_refused(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.generate(CAT, **options)


# Pruned grids


@pytest.mark.parametrize("sway", [-1.0, 0.0, 0.4])
def test_an_epss_grid_is_points_of_the_grid_of_32_steps(sway):
    for steps in EPSS:
        sigmas = make_sigmas(steps, sway, grid="epss")
        assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
        assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert set(sigmas.tolist()) < set(make_sigmas(32, sway).tolist())


def test_epss_grids_as_published():
    """u = 0, 2, 4, 6, 8, 16, 24, 32 of 32; at sway -1, sigma = cos(pi u / 2). What is kept in part starts late."""
    expected = torch.tensor([1, 0.9952, 0.9808, 0.9569, 0.9239, 0.7071, 0.3827, 0])
    assert (make_sigmas(7, grid="epss") - expected).abs().max() < 5e-5
    assert torch.equal(make_sigmas(5, denoise=0.5, grid="epss"), make_sigmas(10, grid="epss")[-6:])


def test_sampling_on_an_epss_grid(server, hand, tiny):
    expected = hand.euler(hand.guided(hand.cat), make_sigmas(7, grid="epss"))
    scene = Scene()
    sigmas = scene.add("DashengSwaySigmas", steps=7, sway=-1.0, denoise=1.0, grid="epss")
    ours = scene.ours(steps=7, grid="epss", noise="as KSampler")
    for found in latents(server, scene, scene.advanced(scene.cfg_guider(), sigmas=sigmas), ours):
        close(found, expected)
    close(sampled(tiny, hand.cat, hand.noise, num_steps=7, grid="epss"), expected)


# Guidance on an interval


def test_steps_outside_the_interval_evaluate_the_conditional_branch_alone(tiny, hand, monkeypatch):
    """Its bounds are inside: sigmas 1, 0.8, 0.6, 0.4, 0.2."""
    rows, step = [], Backbone.step
    monkeypatch.setattr(Backbone, "step", lambda self, x, *args: rows.append(len(x)) or step(self, x, *args))
    latent = sampled(tiny, hand.cat, hand.noise, sway_sampling_coef=0.0, guidance_interval=(0.4, 0.6))
    assert rows == [1, 1, 2, 2, 1]
    guided, alone = hand.guided(hand.cat), hand.guided(hand.cat, scale=1.0)
    velocity = lambda x, sigma: (guided if 0.3 < sigma < 0.7 else alone)(x, sigma)  # noqa: E731
    close(latent, hand.euler(velocity, make_sigmas(STEPS, 0.0)))


def test_split_sigmas_guide_a_part_of_the_steps_in_a_graph(server, hand):
    scene, split = Scene(), 3
    counted = scene.add("ProbeEvaluations", model=scene.model)
    parts = scene.add("SplitSigmas", sigmas=scene.sigmas, step=split)
    first = scene.advanced(scene.cfg_guider(model=counted), sigmas=parts)
    alone, nothing = scene.cfg_guider(model=counted, cfg=1.0), scene.add("DisableNoise")
    second = scene.advanced(alone, latent=first, noise=nothing, sigmas=lambda _: parts(1))
    server.get("/probe/evaluations")
    (latent,) = latents(server, scene, second)
    assert server.get("/probe/evaluations") == [2] * split + [1] * (STEPS - split)
    guided, unguided = hand.guided(hand.cat), hand.guided(hand.cat, scale=1.0)
    border = make_sigmas(STEPS)[split]
    close(latent, hand.euler(lambda x, sigma: (guided if sigma > border else unguided)(x, sigma)))


# Skip-cache


# With two steps that reuse.
LONG = 8
REUSING = reusing_steps(make_sigmas(LONG).tolist())


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
def skip_cache_by_hand(backbone, contents, noise, outer, mix=None):
    """The same computation, spelt out with the blocks of the plain network, the branches one by one.

    ``mix`` makes one velocity of those of ``contents`` and, last, of the unconditional branch.
    """
    sigmas = make_sigmas(LONG)
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
    cached = sampled(tiny, hand.cat, hand.noise, num_steps=LONG, skip_cache=outer)
    close(cached, skip_cache_by_hand(tiny.backbone, [hand.cat], hand.noise, outer))
    assert deviation(cached, sampled(tiny, hand.cat, hand.noise, num_steps=LONG)) > 1e-3


def test_skip_cache_leaves_the_inner_blocks_out(tiny, hand, monkeypatch):
    """Depth 4 and a middle one: 5 blocks, and 2 where 1 at either end runs alone."""
    runs = []
    evaluate, run_block = Backbone.step, Block.forward

    def counted(self, *args, **kwargs):
        runs[-1] += 1
        return run_block(self, *args, **kwargs)

    monkeypatch.setattr(Backbone, "step", lambda *args: runs.append(0) or evaluate(*args))
    monkeypatch.setattr(Block, "forward", counted)
    sampled(tiny, hand.cat, hand.noise, num_steps=LONG, skip_cache=1)
    assert runs == [2 if reuses else 5 for reuses in REUSING] and runs.count(2) == 2
    # Where guidance ends a branch is gone, and what was kept is of no use: that step is a full one.
    runs.clear()
    first_unguided = REUSING.index(True)
    low = make_sigmas(LONG)[first_unguided - 1].item()
    sampled(tiny, hand.cat, hand.noise, num_steps=LONG, skip_cache=1, guidance_interval=(low, 1.0))
    assert runs == [2 if reuses and step != first_unguided else 5 for step, reuses in enumerate(REUSING)]


def test_skip_cache_in_a_graph(server, hand):
    """Samplings in a row, of other prompts and batches, each as it is alone; the model that went in is left as it was.

    Combined texts of two lengths do not fit into one batch: what each keeps is its own.
    """
    scene = Scene()
    scene.sigmas = scene.add("DashengSwaySigmas", steps=LONG, sway=-1.0, denoise=1.0)
    cached = scene.add("DashengSkipCache", model=scene.model, outer_blocks=1)
    twice = scene.add("DashengSkipCache", model=scene.model, outer_blocks=2)
    twice = scene.add("DashengSkipCache", model=twice, outer_blocks=1)
    easy = dict(reuse_threshold=0.0, start_percent=0.0, end_percent=1.0, verbose=False)
    pairs = (scene.cat, scene.storm), (scene.storm, scene.cat)
    both = [scene.add("ConditioningCombine", conditioning_1=one, conditioning_2=other) for one, other in pairs]
    made = latents(
        server,
        scene,
        scene.ours(model=cached, steps=LONG),
        scene.advanced(scene.cfg_guider(model=cached)),
        scene.ours(model=twice, steps=LONG),
        scene.ours(model=scene.add("EasyCache", model=cached, **easy), steps=LONG),
        scene.ours(model=cached, latent=scene.empty(2), steps=LONG),
        scene.ours(scene.storm, model=cached, steps=LONG),
        scene.ours(model=cached, guidance=1.0, steps=LONG),
        *(scene.ours(texts, model=cached, steps=LONG) for texts in both),
        scene.ours(steps=LONG),
    )
    *alike, batch, storm, unguided, combined, swapped, plain = made

    def expected(*contents, noise=hand.noise, mix=None):
        return skip_cache_by_hand(hand.backbone, contents, noise, 1, mix)

    for latent in (*alike, batch[:1]):
        close(latent, expected(hand.cat))
    close(plain, hand.euler(hand.guided(hand.cat), make_sigmas(LONG)))
    assert deviation(plain, expected(hand.cat)) > 1e-3
    close(batch[1:], expected(hand.cat, noise=draw_noise(SEED + 1, *hand.noise.shape[1:], "plain")[None]))
    close(storm, expected(hand.storm))
    close(unguided, expected(hand.cat, mix=lambda conditional, base: conditional))
    mean = expected(hand.cat, hand.storm, mix=lambda cat, storm, base: base + GUIDANCE * ((cat + storm) / 2 - base))
    assert hand.cat.shape != hand.storm.shape
    for latent in (combined, swapped):
        close(latent, mean)


@pytest.mark.parametrize("sampler", ["heun", "uni_pc"])
def test_other_solvers_run_with_skip_cache(server, sampler):
    scene = Scene()
    cached = scene.add("DashengSkipCache", model=scene.model, outer_blocks=2)
    ways = (scene.model, 3.0), (cached, 3.0), (cached, 3.0001)
    solved = [scene.ksampler(sampler_name=sampler, steps=12, model=model, cfg=cfg) for model, cfg in ways]
    plain, made, again = latents(server, scene, *solved)
    assert 1e-4 < ((made - plain).norm() / plain.norm()).item() < 0.5
    close(again, made, 1e-2)


@pytest.mark.full
def test_skip_cache_under_a_compiler(server, hand):
    scene = Scene()
    compiled = scene.add("TorchCompileModel", model=scene.model, backend="inductor")
    both = scene.add("DashengSkipCache", model=compiled, outer_blocks=1)
    (latent,) = latents(server, scene, scene.ours(model=both, steps=LONG))
    close(latent, skip_cache_by_hand(hand.backbone, [hand.cat], hand.noise, 1))


def test_skip_cache_of_more_blocks_than_there_are_is_refused(server):
    scene = Scene()
    scene.save(scene.ours(model=scene.add("DashengSkipCache", model=scene.model, outer_blocks=3)))
    assert "outer_blocks of the skip-cache is 3" in run_graph(server, scene).error()


# The script that measures them


@pytest.mark.full
def test_the_script_measures_every_preset_and_owns_up_to_random_weights(tmp_path):
    out = tmp_path / "out.json"
    script = [sys.executable, "-m", "benchmarks.approximate", GOLDEN / "tiny", "--json", out]
    options = ["--prompts", "1", "--repeats", "1", "--seconds", "0.8", "--far", "40"]
    run = subprocess.run([*map(str, script), *options], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(out.read_text())
    assert "These weights are random" in run.stdout and found["trained"] is False
    rows = found["rows"]
    assert set(rows) == {*PRESETS, ANOTHER_SEED} - {"25 steps, skip-cache 4"}, "4 blocks"
    for name, row in rows.items():
        for reference in ("25", "40"):
            (latent,), (mel,) = row[f"latent to {reference}"], row[f"mel to {reference}"]
            same = name == PUBLISHED and reference == "25"
            assert (latent == mel == 0) if same else (latent > 0 and mel > 0), name
    # Euler's error falls with its steps.
    assert rows["7 steps"]["latent to 40"] > rows["12 steps"]["latent to 40"] > rows[PUBLISHED]["latent to 40"]


def test_log_mel_distance():
    """Half the amplitude is 6.02 dB everywhere; what is 80 dB below the loudest counts as silence."""
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    tone = torch.sin(torch.arange(16000) * 0.3)[None] + noise
    assert mel_distance(tone / 2, tone) == pytest.approx(6.02, abs=0.01)
    assert mel_distance(tone * 1e-6, tone) == mel_distance(tone * 0, tone) <= 80
