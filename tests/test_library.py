"""The Python library: prompts, seeds, lengths, schedules."""

import pytest
import torch

from conftest import GOLDEN, deviation, load_model
from dasheng_core import PromptError, compose_prompt, parse_prompt
from dasheng_core.audio_tokenizer.spectral import inverse_stft
from dasheng_core.options import SWAY_MAX, SWAY_MIN
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
STORM = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."


def test_aspects_are_written_in_order_and_empty_ones_left_out():
    prompt = compose_prompt(env=" wind ", caption=" a storm", music="", asr="Go [now] (please)!", sfx="  ")
    assert prompt == "<|caption|> a storm <|asr|> Go [now] (please)! <|env|> wind"
    assert parse_prompt(prompt) == {"caption": "a storm", "asr": "Go [now] (please)!", "env": "wind"}
    assert compose_prompt(prompt=f"  {prompt} ") == prompt


@pytest.mark.parametrize(
    "aspects, sentence",
    [
        ({}, "The caption is empty"),
        ({"caption": "  ", "sfx": "a bell"}, "The caption is empty"),
        ({"caption": "a <|sfx|> b"}, r"The caption text contains the tag <\|sfx\|>"),
        ({"prompt": "a cat"}, r"starts with 'a cat', expected <\|caption\|>"),
        ({"prompt": "<|sfx|> a <|caption|> b"}, r"expected <\|caption\|>"),
        ({"prompt": "<|caption|>  <|sfx|> a"}, r"Nothing follows <\|caption\|>"),
        ({"prompt": "<|caption|> a <|voice|> b"}, r"<\|voice\|> is not a tag of this model: use <\|caption\|>"),
        ({"prompt": "<|caption|> a <|sfx|> b <|sfx|> c"}, r"<\|sfx\|> stands twice"),
        ({"prompt": CAT, "music": "piano"}, "a ready-made prompt or aspects, not both"),
    ],
    ids=str,
)
def test_prompts_the_model_cannot_read_are_refused(aspects, sentence):
    with pytest.raises(PromptError, match=sentence):
        compose_prompt(**aspects)


def test_each_item_of_a_mixed_list_is_what_it_is_alone(tiny):
    together = tiny.generate([STORM, CAT, STORM], num_steps=5, seed=10)
    for i, prompt in enumerate([STORM, CAT, STORM]):
        alone = tiny.generate(prompt, num_steps=5, seed=10 + i)[0]
        assert deviation(together[i, : len(alone)], alone) <= 5e-6
        assert not together[i, len(alone) :].any(), "the tail is silence"
    assert len(tiny.generate(CAT, num_steps=1)[0]) < together.shape[1]


def test_seeds(tiny):
    def make(**options):
        return tiny.generate([CAT, CAT], num_steps=2, **options)

    def alone(seed):
        return tiny.generate(CAT, num_steps=2, seed=seed)[0]

    assert torch.equal(make(seed=0), make(seed=0)), "0 is a seed like any other"
    assert deviation(make(seed=[5, 9])[1], alone(9)) <= 5e-6
    assert deviation(make(seed=2**64 - 1)[1], alone(0)) <= 5e-6
    assert not torch.equal(make(), make()), "no seed: another one is drawn each time"
    with pytest.raises(ValueError, match="3 seeds for 2 prompts"):
        make(seed=[1, 2, 3])


def test_noise_comes_from_a_generator_of_its_own(tiny):
    state = torch.get_rng_state()
    tiny.generate(CAT, num_steps=1, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    as_comfyui = torch.randn(24, 50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_noise(3, 24, 50, "plain"), as_comfyui)
    frames = int(tiny.encode_text(CAT)[2])
    for kind in ("steady", "plain"):
        noise = draw_noise(3, 24, frames, kind)[None]
        # Of noise that is longer, the first frames are used.
        given = tiny.generate(CAT, num_steps=1, noise=torch.cat([noise, noise], dim=-1))
        assert torch.equal(tiny.generate(CAT, num_steps=1, seed=3, noise_kind=kind), given)


@pytest.mark.parametrize("channels", [1, 24, 48])
def test_steady_noise_of_a_longer_clip_begins_with_that_of_a_shorter_one(channels):
    long = draw_noise(3, channels, 100)
    assert long.shape == (channels, 100) and abs(long.mean()) < 0.3 and 0.7 < long.std() < 1.3
    for frames in (1, 2, 15, 16, 17, 50, 99):
        assert torch.equal(draw_noise(3, channels, frames), long[:, :frames])
    assert not torch.equal(draw_noise(4, channels, 100), long)
    assert not torch.equal(draw_noise(3, channels, 50, "plain"), draw_noise(3, channels, 100, "plain")[:, :50])


def test_duration_overrides_the_estimate(tiny):
    assert tiny.generate([CAT, STORM], num_steps=1, duration=0.2).shape == (2, 5 * 640)
    assert tiny.generate([CAT, STORM], num_steps=1, duration=[0.2, 0.31]).shape == (2, 8 * 640)
    assert tiny.generate(CAT, num_steps=1, duration=1e-6).shape == (1, 640), "at least one frame"
    with pytest.raises(ValueError, match="2 durations for 1 prompts"):
        tiny.generate(CAT, duration=[1, 2])


@pytest.mark.parametrize("sway", [SWAY_MIN, -0.5, 0.0, 0.4, 1.0, SWAY_MAX])
@pytest.mark.parametrize("denoise", [1.0, 0.3])
def test_sigmas_fall_to_zero(sway, denoise):
    sigmas = make_sigmas(25, sway, denoise)
    assert len(sigmas) == 26 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert (sigmas[0] == 1) == (denoise == 1)
    assert torch.equal(sigmas, make_sigmas(int(25 / denoise), sway)[-26:])


@pytest.mark.parametrize("steps, denoise", [(25, 0.97), (10, 0.95), (6, 0.9), (1, 0.99), (1000, 0.9999)])
def test_any_denoise_below_1_keeps_some_of_the_latent(steps, denoise):
    """Also where steps / denoise, rounded down, is steps: ComfyUI's convention alone would start from noise."""
    sigmas = make_sigmas(steps, -1.0, denoise)
    assert int(steps / denoise) == steps and len(sigmas) == steps + 1 and sigmas[0] < 1
    assert torch.equal(sigmas, make_sigmas(steps + 1)[1:])
    assert torch.equal(make_sigmas(25, -1.0, 0.5), make_sigmas(50)[-26:]), "as before where a step is left out anyway"


@pytest.mark.parametrize("n_fft, hop", [(16, 4), (20, 8)])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_the_inverse_stft_frame_by_frame(n_fft, hop, frames):
    """Also where frames do not overlap a whole number of times, and where there are fewer than overlap."""
    generator = torch.Generator().manual_seed(0)
    log_magnitude, phase = torch.randn(2, 2, frames, n_fft // 2 + 1, generator=generator)
    window = torch.hann_window(n_fft)
    sound, envelope = torch.zeros(2, 2, (frames - 1) * hop + n_fft)
    for t in range(frames):
        part = slice(t * hop, t * hop + n_fft)
        sound[:, part] += torch.fft.irfft(torch.polar(log_magnitude[:, t].exp(), phase[:, t]), n=n_fft) * window
        envelope[:, part] += window**2
    trim = (n_fft - hop) // 2
    expected = (sound / envelope)[:, trim : trim + frames * hop]
    assert deviation(inverse_stft(log_magnitude, phase, n_fft, hop), expected) <= 1e-5


def test_progress_is_reported_over_all_items(tiny):
    seen = []
    tiny.generate([CAT, STORM], num_steps=3, callback=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_bfloat16_where_it_is_slow_is_computed_in_float32(monkeypatch, caplog):
    monkeypatch.setattr("dasheng_core.pipeline.has_fast_bfloat16", lambda device: False)
    with caplog.at_level("INFO"):
        model = load_model(GOLDEN / "tiny", dtype=torch.bfloat16)
    assert model.dtype == model.backbone.dtype == torch.float32 and "no fast bfloat16" in caplog.text
