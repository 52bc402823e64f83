"""What trades the published result for time: off by default, and each doing what it says and nothing else."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.approximate import ANOTHER_SEED, PRESETS, PUBLISHED, mel_distance
from by_hand import CAT, GUIDANCE, STEPS, Scene, close, latents
from conftest import GOLDEN
from dasheng_core.backbone import Backbone
from dasheng_core.options import EPSS, SamplingOptions
from dasheng_core.schedule import make_sigmas
from tools.comfyui import ROOT


def test_off_by_default():
    options = SamplingOptions()
    assert (options.num_steps, options.sway_sampling_coef, options.grid) == (25, -1.0, "full")
    assert options.guidance_interval == (0.0, 1.0)


@pytest.mark.parametrize("options, sentence", [
    ({"num_steps": 25, "grid": "epss"}, "25 steps: epss grids exist for 5, 6, 7, 10, 12 and 16 steps"),
    ({"num_steps": 8, "grid": "sparse"}, "grid is 'sparse', expected full, epss"),
    ({"guidance_interval": (0.6, 0.5)}, r"guidance interval is \(0.6, 0.5\)"),
    ({"guidance_interval": 0.5}, r"guidance interval is \(0.5,\)"),
])  # fmt: skip
def test_impossible_approximations_are_refused(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.generate(CAT, **options)


# EPSS grids


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


def sampled(model, content, noise, **options):
    mask, frames = torch.ones(content.shape[:2], dtype=torch.bool), torch.full((len(noise),), noise.shape[-1])
    options = {"num_steps": STEPS, "guidance_scale": GUIDANCE, **options}
    return model.sample(content.expand(len(noise), -1, -1), mask.expand(len(noise), -1), frames, noise=noise, **options)


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
    assert set(rows) == {*PRESETS, ANOTHER_SEED}
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
