"""torch's default dtype and device belong to the user, and other packs change them: no sound may depend on them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from conftest import GOLDEN, deviation, load_model
from dasheng_core import Timeline
from dasheng_core.audio_tokenizer.spectral import picture_mel, resample
from dasheng_core.control.keep import extend, time_mask
from dasheng_core.control.listening import Part, listen, part_masks
from dasheng_core.delivery import finishing
from dasheng_core.delivery.audio_file import encode_audio
from dasheng_core.delivery.measures import measure
from dasheng_core.options import GRIDS
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas
from dasheng_core.tensors import as_waveform
from graphs import TINY_NAME, Graph, run
from tools.comfyui import SMALL_NAME

CAT, RAIN = "<|caption|> A cat meowing softly. <|sfx|> A cat.", "<|caption|> Rain."


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def bfloat16_by_default() -> Iterator[None]:
    with float64_by_default():
        torch.set_default_dtype(torch.bfloat16)
        yield


def meta_by_default():
    """A device whose tensors hold nothing: what lands there is no sound."""
    return torch.device("meta")


def stages() -> dict[str, torch.Tensor]:
    """What each stage of the library makes, from the files on."""
    model = load_model(GOLDEN / "tiny")
    content, mask, frames = model.encode_text([CAT, RAIN])
    made = {"content": content, "mask": mask, "frames": torch.as_tensor(frames, device="cpu")}
    options = dict(num_steps=2, seed=[3, 4])
    made["latent"] = latent = model.sample(content, mask, [25, 20], **options)
    made["sound"] = sound = model.decode(latent)
    made["loop"] = model.decode(latent, loop=True)
    made["encoded"] = model.encode(sound)
    scene = Timeline([(0.0, CAT), (0.4, RAIN)], fade=0.1)
    made["timeline"] = model.generate(scene, duration=1.0, num_steps=2, seed=3, loop=True, window=0.6)
    kept = dict(latent=latent[:1], keep=[(0.0, 0.4)], feather=0.1, duration=1.0)
    made["kept"] = model.generate(CAT, num_steps=2, seed=3, emphasis={"sfx": 1.0}, apg=(0.5, 5.0, -0.5), **kept)
    for grid in GRIDS:
        made[f"sigmas {grid}"] = make_sigmas(6, grid=grid)
    for kind in ("steady", "plain"):
        made[f"noise {kind}"] = draw_noise(5, 8, 9, kind)
    parts = [Part("a", 1, 3), Part("b", 3, 5)]
    condition = model.backbone.condition(content[:1], model.backbone.dummy_ta_embed[None, None])
    noise = draw_noise(5, *latent.shape[1:])[None]
    made["curves"] = listen(model.backbone, latent[:1], noise, condition, part_masks(parts, content.shape[1]))

    clip = sound[0][None]
    made["mask of time"], (made["extended"], made["room"]) = time_mask(0.2, 0.6, 25, 0.1), extend(latent, 0.1, 0.2)
    made["from numbers"] = as_waveform([0.1, -0.3] * 400)
    for rate in (16000, 44100, 44123):
        made[f"at {rate} Hz"] = resample(clip, 16000, rate)
    made["loop at 48 kHz"] = finishing.resample_loop(clip, 16000, 48000)
    made["faded"], made["mixed"] = finishing.fade(clip, 16000, 0.1, 0.0), finishing.mix(clip[None], clip[None], 50)
    made["trimmed"] = finishing.trim_silence(clip, 16000, -40, 0.01)[0]
    made["at a level"] = finishing.set_level(clip, 16000, "loudness", -23)[0]
    made["picture"] = picture_mel(clip, 16000, 24)
    found = measure(clip, 16000)
    levels = [found.peak, found.true_peak, found.crest, found.loudness]
    made["measures"] = torch.tensor(levels, dtype=torch.float64, device="cpu")
    files = (encode_audio(Path(name), clip * 0.5, 16000) for name in ("x.wav", "x.flac"))
    made["files"] = torch.tensor([len(file) for file in files], device="cpu")
    return made


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    return stages()


@pytest.mark.parametrize("other", [float64_by_default, bfloat16_by_default, meta_by_default])
def test_the_library_depends_on_no_default(plain, other):
    with other():
        made = stages()
    for name, expected in plain.items():
        assert (made[name].dtype, made[name].device) == (expected.dtype, expected.device), name
        assert deviation(made[name].double(), expected.double()) <= 1e-5, name


@pytest.mark.parametrize("way", ["by the flag", "chosen", "computed", "too loud"])
def test_float16_is_finite_or_refused(flagged, way):
    """By ComfyUI's flags, which a processor stores and does not compute; chosen at the loader; and computed all through."""
    graph = Graph()
    name = TINY_NAME if way == "too loud" else SMALL_NAME
    model, clip, vae = graph.loaders(name, "auto" if way == "by the flag" else "fp16")
    positive = graph.value("too loud") if way == "too loud" else graph.encode(clip, CAT)
    sampled = graph.add("ModelComputeDtype", model=model, dtype="fp16") if way in ("computed", "too loud") else model
    latent = graph.add("EmptyDashengLatentAudio", seconds=1.0, batch_size=1)
    latent = graph.sample(sampled, positive, latent, steps=2)
    audio = graph.add("DashengDecode", vae=vae, latent=latent)
    graph.save(graph.add("DashengEncode", vae=vae, audio=audio)).add("ProbeAudio", audio=audio)
    graph.add("ProbeDtype", model=model, vae=vae)
    result = run(flagged, graph)
    if way == "too loud":
        assert "not numbers" in result.error() and "load the model in bf16 or fp32" in result.error()
        return
    (encoded,), (sound, dtypes) = result.latents(), result.texts()
    assert dtypes == "torch.float16 torch.float16"
    assert encoded.isfinite().all() and 0.01 < max(map(abs, json.loads(sound)[3])) < 2
