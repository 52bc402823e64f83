"""Every stage, and the whole, against what the published model computed (model float32 on the CPU)."""

import dataclasses
import re

import pytest
import torch

from dasheng_core.adapter import frames_from_duration
from dasheng_core.schedule import make_sigmas, make_timesteps

CONTENT, LATENT, WAVEFORM = 1e-5, 5e-5, 5e-6
DIT_TIMESTEPS = ("0.0", "3.2", "731.37", "999.0")


@torch.inference_mode()
def test_token_ids(golden):
    ids, mask = golden.model.tokenizer(golden.prompts)
    assert torch.equal(ids, golden["text.input_ids"])
    assert torch.equal(mask, golden["text.attention_mask"].bool())


def test_token_ids_are_cut_at_the_limit_with_a_warning(golden, caplog):
    ids, _ = golden.model.tokenizer([golden.long_prompt])
    assert torch.equal(ids, golden["text.long_input_ids"])
    assert "the model reads 512" in caplog.text
    assert re.search(r"What is not read begins with '(.{40})…'", caplog.text)[1] in golden.long_prompt


@torch.inference_mode()
def test_text_encoder(golden, deviations):
    hidden, projected = golden.model.text_encoder(golden["text.input_ids"], golden["text.attention_mask"])
    deviations(golden, "text", hidden, golden["text.hidden"], CONTENT)
    deviations(golden, "text", projected, golden["text.projected"], CONTENT)


@torch.inference_mode()
@pytest.mark.parametrize("zero", [False, True], ids=["instruction", "zero_instruction"])
def test_content_adapter(golden, deviations, monkeypatch, zero):
    adapter = golden.model.adapter
    monkeypatch.setattr(adapter, "config", dataclasses.replace(adapter.config, use_zero_instruction=zero))
    name = "adapter_zero_instruction" if zero else "adapter"
    features, mask = golden["text.projected"], golden["text.attention_mask"].bool()
    content, duration = adapter(features, mask)
    deviations(golden, "content", content, golden[f"{name}.content"], CONTENT)
    deviations(golden, "content", duration, golden[f"{name}.global_duration"], CONTENT)


def test_clip_length(golden):
    frames = frames_from_duration(golden["adapter.global_duration"], offset=1.0, frame_rate=25.0)
    assert torch.equal(frames, golden["duration.latent_frames"])
    assert torch.equal(golden.model.encode_text(golden.prompts)[2], golden["duration.latent_frames"])


@pytest.mark.parametrize("grid", ["10.0.0", "25.-1.0", "25.0.0", "33.-1.0", "5.0.4", "7.-1.0"])
def test_sigmas_and_timesteps_bit_for_bit(golden, grid):
    steps, sway = grid.split(".", 1)
    sigmas = make_sigmas(int(steps), float(sway))
    expected = golden[f"sigmas.{grid}"]
    assert sigmas[-1] == 0
    assert torch.equal(sigmas[: len(expected)], expected)
    assert torch.equal(make_timesteps(sigmas)[: len(expected)], golden[f"timesteps.{grid}"])


@torch.inference_mode()
@pytest.mark.parametrize("timestep", DIT_TIMESTEPS)
@pytest.mark.parametrize("branch", ["velocity", "velocity_uncond"])
def test_velocity(golden, deviations, timestep, branch):
    backbone = golden.model.backbone
    context, time_aligned = golden["dit.context"], backbone.dummy_ta_embed.expand(2, 1, -1)
    if branch == "velocity_uncond":
        context, time_aligned = torch.zeros_like(context), torch.zeros_like(time_aligned)
    velocity = backbone(
        golden["dit.latent"],
        torch.tensor(float(timestep)),
        context,
        time_aligned,
        golden["dit.context_mask"],
        golden["dit.latent_mask"],
    )
    deviations(golden, "velocity", velocity, golden[f"dit.{branch}.{timestep}"], LATENT)


@pytest.mark.parametrize("case", range(8))
def test_prompts_to_waveforms(golden, deviations, case):
    """Text to sound; mixed-length batches as the published batch computation, decoded whole and untrimmed."""
    options = dict(golden.cases[case])
    prompts = [golden.prompts[i] for i in options.pop("prompts")]
    content, mask, frames = golden.model.encode_text(prompts)
    latent = golden.model.sample(content, mask, frames, noise=golden[f"generate.{case}.noise"], **options)
    deviations(golden, "latent", latent, golden[f"generate.{case}.latent"], LATENT)
    deviations(golden, "waveform", golden.model.decode(latent), golden[f"generate.{case}.waveform"], WAVEFORM)
    if len(prompts) == 1:
        waveform = golden.model.generate(prompts, noise=golden[f"generate.{case}.noise"], **options)
        deviations(golden, "waveform", waveform, golden[f"generate.{case}.waveform"], WAVEFORM)


@pytest.mark.parametrize("latent, waveform", [("decode_latent", "decode_waveform"), ("loud_latent", "loud_waveform")])
def test_audio_tokenizer_decoder(golden, deviations, latent, waveform):
    decoded = golden.model.decode(golden[f"tokenizer.{latent}"].transpose(1, 2))
    deviations(golden, "waveform", decoded, golden[f"tokenizer.{waveform}"], WAVEFORM)


@pytest.mark.parametrize(
    "audio, latent", [("audio", "latent"), ("long_audio", "long_latent"), ("near_silence", "near_silence_latent")]
)
def test_audio_tokenizer_encoder(golden, deviations, audio, latent):
    encoded = golden.model.encode(golden[f"tokenizer.{audio}"])
    deviations(golden, "encoded", encoded.transpose(1, 2), golden[f"tokenizer.{latent}"], LATENT)
