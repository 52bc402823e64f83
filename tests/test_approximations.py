"""What trades the published result for time: off by default, and each doing what it says and nothing else."""

import pytest
import soundfile
import torch

from conftest import GOLDEN
from dasheng_core.__main__ import main
from dasheng_core.prepared import PreparedBackbone
from dasheng_core.sampling import SamplingOptions
from dasheng_core.schedule import PRUNED, make_sigmas
from graphs import run
from test_graphs import GUIDANCE, STEPS, Hand, Scene, close, latents

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."


@pytest.fixture(scope="module")
def hand(tiny):
    return Hand(tiny)


# Pruned grids


def test_off_by_default():
    options = SamplingOptions()
    assert torch.equal(options.sigmas(), make_sigmas(25, -1.0)) and options.guidance_scales() == [5.0] * 25


@pytest.mark.parametrize("steps", PRUNED)
@pytest.mark.parametrize("sway", [-1.0, 0.0, 0.4])
def test_a_pruned_grid_is_points_of_the_grid_of_32_steps(steps, sway):
    sigmas = make_sigmas(steps, sway, grid="pruned")
    assert len(sigmas) == steps + 1 and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert set(sigmas.tolist()) < set(make_sigmas(32, sway).tolist())


def test_the_grid_of_seven_steps_as_published():
    """u = 0, 2, 4, 6, 8, 16, 24, 32 of 32; at sway -1, sigma = cos(pi u / 2)."""
    expected = torch.tensor([1, 0.9952, 0.9808, 0.9569, 0.9239, 0.7071, 0.3827, 0])
    assert (make_sigmas(7, grid="pruned") - expected).abs().max() < 5e-5


def test_a_pruned_grid_starts_late_where_the_latent_is_kept_in_part():
    assert torch.equal(make_sigmas(5, denoise=0.5, grid="pruned"), make_sigmas(10, grid="pruned")[-6:])


@pytest.mark.parametrize("options, sentence", [
    ({"num_steps": 25, "grid": "pruned"}, "25 steps: pruned grids exist for 5, 6, 7, 10, 12 and 16 steps"),
    ({"num_steps": 8, "grid": "sparse"}, "Grid 'sparse': expected full or pruned"),
    ({"guidance_interval": (0.6, 0.5)}, "Guidance interval 0.6 to 0.5: expected two sigmas between 0"),
    ({"guidance_interval": (-0.1, 0.5)}, "Guidance interval -0.1 to 0.5"),
    ({"guidance_interval": (0.5, 15)}, "Guidance interval 0.5 to 15"),
])  # fmt: skip
def test_impossible_approximations_are_refused(tiny, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny.generate(CAT, **options)


def test_the_command_line_says_what_is_impossible_before_the_model_loads(caplog, tmp_path):
    assert main(["generate", "--caption", "x", "--grid", "pruned", "-o", str(tmp_path / "x.wav")]) == 1
    assert "25 steps: pruned grids exist for" in caplog.text
    arguments = ["--guidance-interval", "0.9", "0.2", "-o", str(tmp_path / "x.wav")]
    assert main(["generate", "--caption", "x", *arguments]) == 1
    assert "Guidance interval 0.9 to 0.2" in caplog.text


def test_the_command_line_makes_what_the_library_makes(tiny, tmp_path):
    files = [
        f"--{name}={GOLDEN / 'tiny' / name.replace('-', '_')}"
        for name in ("audiogen", "text-encoder", "audio-tokenizer")
    ]
    sampling = ["--seed", "3", "--steps", "7", "--grid", "pruned", "--guidance-interval", "0.5", "0.99"]
    assert main(["generate", "--prompt", CAT, *files, *sampling, "-o", str(tmp_path / "cat.wav")]) == 0
    audio = tiny.generate(CAT, seed=3, num_steps=7, grid="pruned", guidance_interval=(0.5, 0.99))[0]
    assert torch.equal(torch.from_numpy(soundfile.read(tmp_path / "cat.wav", dtype="float32")[0]), audio)


def test_sampling_on_a_pruned_grid(server, hand, tiny):
    expected = hand.euler(hand.guided(hand.cat), make_sigmas(7, grid="pruned"))
    scene = Scene()
    inputs = dict(sway=-1.0, denoise=1.0, grid="pruned")
    (core,) = latents(
        server,
        scene,
        scene.advanced(scene.cfg_guider(scene.cat), sigmas=scene.add("DashengSwaySigmas", steps=7, **inputs)),
    )
    close(core, expected)
    content, mask, _ = tiny.encode_text(CAT)
    frames = torch.tensor([hand.noise.shape[-1]])
    library = tiny.sample(content, mask, frames, hand.noise, num_steps=7, guidance_scale=GUIDANCE, grid="pruned")
    close(library, expected)

    scene = Scene()
    wrong = scene.advanced(scene.cfg_guider(scene.cat), sigmas=scene.add("DashengSwaySigmas", steps=8, **inputs))
    scene.add("SaveLatent", samples=wrong, filename_prefix="test")
    assert "8 steps: pruned grids exist for 5, 6, 7, 10, 12 and 16 steps" in run(server, scene).error()


# Guidance on an interval


def test_bounds_of_the_interval_are_inside():
    """Sigmas 1, 0.9 ... 0.1."""
    options = SamplingOptions(10, 5.0, 0.0, guidance_interval=(0.3, 0.6))
    assert options.guidance_scales() == [1.0] * 4 + [5.0] * 4 + [1.0] * 2


def test_steps_outside_the_interval_evaluate_the_conditional_branch_alone(tiny, hand, monkeypatch):
    rows = []
    forward = PreparedBackbone.forward

    def counted(self, latent, step, conditioning, *args):
        rows.append(len(latent) * len(conditioning.order))
        return forward(self, latent, step, conditioning, *args)

    monkeypatch.setattr(PreparedBackbone, "forward", counted)
    content, mask, _ = tiny.encode_text(CAT)
    options = dict(num_steps=STEPS, guidance_scale=GUIDANCE, guidance_interval=(0.5, 0.99))
    latent = tiny.sample(content, mask, torch.tensor([hand.noise.shape[-1]]), hand.noise, **options)
    inside = [0.5 <= sigma <= 0.99 for sigma in make_sigmas(STEPS)[:-1].tolist()]
    assert rows == [1 + guided for guided in inside] and {*inside} == {True, False}

    guided, alone = hand.guided(hand.cat), hand.guided(hand.cat, scale=1.0)
    expected = hand.euler(lambda x, sigma: (guided if 0.5 <= sigma <= 0.99 else alone)(x, sigma))
    close(latent, expected)


@pytest.mark.parametrize("split", [3, 5])
def test_split_sigmas_guide_a_part_of_the_steps_in_a_graph(server, hand, split):
    scene = Scene()
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
