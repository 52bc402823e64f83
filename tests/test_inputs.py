"""What the library's methods are handed, without ComfyUI: converted where that is harmless, named where it is not."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from conftest import deviation
from dasheng_core.delivery.audio_file import write_audio
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import random_seed
from tools.comfyui import ROOT

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def encoded(tiny):
    return tiny.encode_text([CAT, CAT])


@pytest.fixture
def idle(tiny, monkeypatch):
    """The model, which must not compute anything."""

    def computed(*_, **__):
        raise AssertionError("something was computed before the input was looked at")

    for part in ("text_encoder", "adapter", "decoder"):
        monkeypatch.setattr(getattr(tiny, part), "forward", computed)
    monkeypatch.setattr("dasheng_core.pipeline.denoise", computed)
    monkeypatch.setattr("dasheng_core.pipeline.load_encoder", computed)
    return tiny


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"num_steps": 0}, "The number of steps is 0, expected a whole number from 1 to 10000"),
        ({"sway_sampling_coef": -1.2}, "The sway coefficient is -1.2, expected a number from -1 to 1.75"),
        ({"guidance_scale": NAN}, "The guidance scale is nan, expected a number from 0 to 1000"),
        ({"guidance_interval": (NAN, 1)}, "A bound of the guidance interval is nan"),
        ({"grid": None}, "grid is None, expected full, epss"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0 to 18446744073709551615"),
        ({"seed": True}, "seed is True"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seed": 1, "noise": torch.zeros(1, 24, 50)}, "seed is 1 and noise is given too, expected one of them"),
        ({"duration": 0}, "A duration of 0 seconds, expected more than 0: training clips were 10 s long"),
        ({"duration": -1}, "A duration in seconds is -1, expected a number from 0 to 600"),
        ({"duration": [1, 2]}, "2 durations for 1 prompts"),
        ({"prompts": []}, "prompts is an empty list, expected at least one prompt"),
        ({"prompts": [CAT, 3]}, "A prompt is 3, expected a text"),
    ],
)
def test_options_of_generate_and_sample(idle, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        idle.generate(**{"prompts": CAT, **options})
    if not options.keys() & {"prompts", "duration"}:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            idle.sample(torch.zeros(1, 7, 32), torch.ones(1, 7), [5], **options)


def test_options_are_named_and_an_unknown_one_is_refused(idle):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gird'"):
        idle.generate(CAT, gird="epss")
    with pytest.raises(TypeError, match="unexpected keyword argument 'gird'"):
        idle.sample(torch.zeros(1, 7, 32), torch.ones(1, 7), [5], gird="epss")
    with pytest.raises(TypeError, match="takes from 1 to 4 positional arguments but 5"):
        SamplingOptions(25, 5.0, -1.0, "epss")
    with pytest.raises(TypeError, match="positional arguments but 6"):
        idle.generate(CAT, 25, 5.0, -1.0, 3)
    with pytest.raises(ValueError, match="the full grid"):
        idle.generate(CAT, 24, 5.0, -1.0, grid="epss", guidance_rescale=0.7)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"content": torch.zeros(2, 7, 768)}, "content has shape [2, 7, 768], expected [batch, tokens, 32]"),
        ({"content": torch.full((2, 7, 32), NAN)}, "content has values that are not numbers"),
        ({"content": None}, "content is None, expected a plain tensor of real numbers"),
        ({"mask": torch.ones(2, 2)}, "mask has shape [2, 2], expected [2, 7], that of content"),
        ({"mask": torch.zeros(2, 7)}, "mask is False for every token of item 0, expected True for at least one"),
        ({"frames": [5]}, "frames has 1 numbers, expected 2"),
        ({"frames": [5, 0]}, "A number of frames is 0, expected a whole number from 1 to 15000"),
        ({"frames": [5, 2.5]}, "A number of frames is 2.5"),
        ({"noise": torch.zeros(2, 24, 3)}, "noise has shape [2, 24, 3], expected [2, 24, 5]"),
        ({"noise": torch.full((2, 24, 5), INF)}, "noise has values that are not numbers"),
    ],
)
def test_arguments_of_sample(idle, changes, sentence):
    arguments = {"content": torch.zeros(2, 7, 32), "mask": torch.ones(2, 7), "frames": [5, 5]}
    with pytest.raises(ValueError, match=re.escape(sentence)):
        idle.sample(**{**arguments, **changes})


@pytest.mark.parametrize(
    "method, shape",
    [("decode", shape) for shape in ((0, 24, 5), (1, 24, 0), (24, 5), (1, 16, 5), (1, 24, 5, 1))]
    + [("encode", shape) for shape in ((0, 16000), (1, 0), (512,), (1, 1, 1, 16000), (1, 57_600_001))],
)
def test_what_cannot_be_decoded_or_encoded(idle, method, shape):
    with pytest.raises(ValueError, match="(latent|The audio) (has|is) .*, expected"):
        getattr(idle, method)(torch.zeros(()).expand(shape))
    good = torch.zeros(1, 24, 5) if method == "decode" else torch.zeros(1, 16000)
    good[0, -1] = INF
    with pytest.raises(ValueError, match="has values that are not numbers"):
        getattr(idle, method)(good)


def test_one_sound_in_every_form(tiny):
    steps = torch.randint(-30, 30, (1, 16000), generator=torch.Generator().manual_seed(0))
    sound = steps / 128
    expected = tiny.encode(sound)
    for same in (
        sound[0], sound[None], sound.expand(6, -1)[None], sound.numpy(), sound.tolist(), sound.double(), sound.half(),
        steps.to(torch.int8), (steps + 128).to(torch.uint8), (steps * 2**8).to(torch.int16),
        (steps * 2**24).to(torch.int32), (steps * 2**8).numpy().astype(">i2"),
    ):  # fmt: skip
        assert deviation(tiny.encode(same), expected) <= 1e-6
    for other in (steps, sound > 0, sound.to(torch.complex64), "sound.wav", None):
        with pytest.raises(ValueError, match="The audio (has samples of|is) .*, expected"):
            tiny.encode(other)


def test_numbers_and_tensors_in_every_form(tiny, encoded):
    content, mask, _ = encoded
    expected = tiny.sample(content, mask, [5, 8], seed=3, num_steps=2)
    for frames, seed, steps in (
        (torch.tensor([5, 8]), 3.0, 2.0),
        (np.array([5.0, 8.0]), np.int64(3), np.float32(2)),
        ((5, np.int32(8)), torch.tensor(3), torch.tensor([2])),
        ([5, 8], [3, 4], 2),
        ([5, 8], np.array([3, 4]), 2),
    ):
        assert torch.equal(tiny.sample(content, mask, frames, seed=seed, num_steps=steps), expected)
    same = tiny.sample(content.double().numpy(), mask.int().tolist(), [5, 8], seed=3, num_steps=2)
    assert deviation(same, expected) <= 1e-6
    latent = expected[:, :, :5]
    sound = tiny.decode(latent)
    assert all(torch.equal(tiny.decode(same), sound) for same in (latent.double(), latent.numpy(), latent.tolist()))
    with torch.enable_grad():
        assert not tiny.decode(latent.clone().requires_grad_()).requires_grad
    clip = tiny.generate(CAT, num_steps=1, duration=0.2, seed=1)
    for duration in (np.float32(0.2), torch.tensor([0.2]), (0.2,)):
        assert torch.equal(tiny.generate((CAT,), num_steps=1, duration=duration, seed=1), clip)


# Seeds


def test_drawn_seeds_are_whole_in_a_browser():
    drawn = [random_seed() for _ in range(200)]
    assert all(seed < 2**53 for seed in drawn) and max(drawn) > 2**48


# Results


def test_results_that_are_not_finite_are_named(tiny, encoded, monkeypatch, tmp_path):
    """Each stage alone: a sampler, a decoder and an encoder whose last layer overflows."""
    content, mask, _ = encoded
    wave = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    latent = tiny.encode(wave)
    for layer, run, name in (
        (
            tiny.backbone.final_block.final_layer,
            lambda: tiny.sample(content, mask, [5, 5], seed=0, num_steps=1),
            "sampled latent",
        ),
        (tiny.backbone.final_block.final_layer, lambda: tiny.generate(CAT, num_steps=1, seed=0), "sampled latent"),
        (tiny.decoder.decoder["head"].out, lambda: tiny.decode(latent), "decoded sound"),
        (tiny._encoder.norm, lambda: tiny.encode(wave), "encoded latent"),
        (tiny.adapter.content_proj, lambda: tiny.encode_text(CAT), "text encoder"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(layer._parameters, "bias", torch.nn.Parameter(torch.full_like(layer.bias, NAN)))
            with pytest.raises(ValueError, match=f"{name}.* has values that are not numbers"):
                run()
        run()


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_no_file_is_written_of_what_is_not_finite(tmp_path, suffix):
    sound = torch.zeros(100)
    sound[50] = -INF
    with pytest.raises(ValueError, match=f"{suffix} has values that are not numbers .*: nothing is written"):
        write_audio(tmp_path / f"sound{suffix}", sound, 16000)
    assert not list(tmp_path.iterdir())


def test_the_published_defaults_are_kept_as_they_are():
    options = SamplingOptions(num_steps=4.0, guidance_scale=1, guidance_interval=[0, 1])
    assert options == SamplingOptions(num_steps=4, guidance_scale=1.0)
    assert type(options.num_steps) is int and options.guidance_interval == (0.0, 1.0)


# Memory

ENCODE = """
import resource, sys, torch
from conftest import GOLDEN, load_model
from dasheng_core.audio_tokenizer.spectral import resample
from dasheng_core.tensors import as_waveform

def encode(rate, samples):
    audio = as_waveform(torch.randn(1, 1, samples) * 0.1, rate)
    return model.encode(resample(audio, rate)).shape[-1]

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

model = load_model(GOLDEN / "tiny")
encode(16000, 16000)
for case in sys.argv[1:]:
    before = peak()
    try:
        said = encode(*map(int, case.split(":")))
    except ValueError as error:
        said = error
    print(peak() - before, said, sep="|")
"""
RATES = (1, 999, 16001, 44099, 399_989)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process its peak of memory this way")
def test_any_rate_and_length_is_encoded_in_little_memory():
    """A second or 20 samples at each rate, 20 minutes, and 12 hours, which are refused; in a process of its own."""
    cases = [(rate, max(20, min(rate, 44100))) for rate in RATES] + [(1, 1200), (1, 44100)]
    arguments = [f"{rate}:{samples}" for rate, samples in cases]
    command, own = [sys.executable, "-c", ENCODE, *arguments], {**os.environ, "PYTHONPATH": "tests"}
    result = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *lines, refused = [line.split("|") for line in result.stdout.splitlines()]
    for (rate, samples), (memory, frames) in zip(cases, lines, strict=False):
        assert int(frames) == (-(-samples * 16000 // rate) + 160) // 640, rate
        assert int(memory) < 1e9, rate
    assert len(lines) == len(RATES) + 1
    assert "44100 seconds long (44100 samples at 1 Hz), expected at most 3600" in refused[1] and int(refused[0]) < 1e8
