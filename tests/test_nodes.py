"""The nodes in a real ComfyUI server: what they show, what they compute, and that they agree with the library."""

import os
import re
import subprocess
import sys

import pytest
import soundfile
import torch

from conftest import GOLDEN, deviation, load_model
from dasheng_core.audio_tokenizer.spectral import resample
from graphs import TINY_NAME, Graph, complete, refusal
from tools.comfyui import PACK, ROOT, SMALL_NAME

PROMPT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
OTHER_PROMPT = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."


def test_the_nodes_of_1_0_are_there(server):
    """Their ids are a promise; what stands at them is in test_shown.py."""
    infos = server.get("/object_info").items()
    shown = {name: info for name, info in infos if info["python_module"] == f"custom_nodes.{PACK}"}
    assert {*shown} == {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} and len(shown) >= 27
    assert all("Dasheng" in info["display_name"] for info in shown.values())
    assert {info["category"] for info in shown.values()} == {"audio/dasheng"}


def test_comfyui_loads_the_pack_without_a_complaint(server):
    """Nor does it complain of what the loaders make."""
    graph = Graph()
    model, clip, vae = graph.loaders()
    positive = graph.encode(clip, PROMPT)
    empty = graph.add("EmptyDashengLatentAudio", seconds=positive(1), batch_size=1)
    audio = graph.add("DashengDecode", vae=vae, latent=graph.sample(model, positive, empty, steps=1))
    graph.add("SaveAudio", audio=audio, filename_prefix="test")
    assert complete(server, graph).audio()
    log = server.log.read_text("utf-8", "replace")
    complaints = r"IMPORT FAILED|calling comfy_entrypoint|parse pyproject|No VAE weights|Missing VAE keys|memory leak"
    assert not re.findall(complaints, log)


def test_checkpoints_are_listed_from_subfolders_and_extra_paths(server):
    names = server.choices("DashengModelLoader", "model_name")
    assert SMALL_NAME in names
    assert "tiny_multilingual.safetensors" in names, "extra_model_paths.yaml names the folder of this file"


def sampled(server, **changes):
    """The latent of Dasheng Sampler, with some of its inputs changed."""
    graph = Graph()
    model, clip, _ = graph.loaders()
    positive = graph.encode(clip, PROMPT)
    if negative := changes.pop("negative", None):
        changes["negative"] = graph.encode(clip, negative)
    seconds = changes.pop("seconds", positive(1))
    latent = graph.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=changes.pop("batch_size", 1))
    (samples,) = complete(server, graph.save(graph.sample(model, positive, latent, **changes))).latents()
    return samples


def test_the_command_line_makes_the_same_sound(server, tiny, tmp_path):
    output = tmp_path / "cat.wav"
    folder = GOLDEN / "tiny"
    command = [
        sys.executable, "-m", "dasheng_core", "generate", "--prompt", PROMPT, "--seed", "77", "--steps", "9", "--noise", "plain",
        "--audiogen", folder / "audiogen", "--text-encoder", folder / "text_encoder",
        "--audio-tokenizer", folder / "audio_tokenizer", "-o", output,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    waveform, rate = soundfile.read(output, dtype="float32")
    latent = sampled(server, seed=77, steps=9)
    library = tiny.sample(*tiny.encode_text(PROMPT), seed=77, num_steps=9, noise_kind="plain")
    assert rate == 16000 and deviation(latent, library) <= 1e-4
    assert deviation(torch.from_numpy(waveform), tiny.decode(latent)[0]) <= 1e-4


def test_multilingual_model_from_lone_files_agrees_with_the_library(server):
    library = load_model(GOLDEN / "tiny_multilingual")
    graph = Graph()
    model, clip, vae = graph.loaders("tiny_multilingual.safetensors")
    positive = graph.encode(clip, PROMPT)
    latent = graph.add("EmptyDashengLatentAudio", seconds=positive(1), batch_size=1)
    latent = graph.sample(model, positive, latent, steps=5, seed=5)
    graph.add("SaveLatent", samples=latent, filename_prefix="test")
    graph.add("SaveAudio", audio=graph.add("DashengDecode", vae=vae, latent=latent), filename_prefix="test")
    result = complete(server, graph)
    expected = library.sample(*library.encode_text(PROMPT), seed=5, num_steps=5, noise_kind="plain")
    assert deviation(result.latents()[0], expected) <= 1e-4
    ((waveform, rate),) = result.audio()
    # FLAC as ComfyUI writes it has 16 bits.
    assert rate == 16000 and (waveform[:, 0] - library.decode(expected)[0].clamp(-1, 1)).abs().max() < 2e-4


def test_a_negative_prompt_matters(server):
    """As every widget does: test_widgets.py."""
    base = dict(steps=4, seconds=1.0)
    assert not torch.equal(sampled(server, **base), sampled(server, **base, negative=OTHER_PROMPT))


def test_seconds_and_batch_size_shape_the_latent(server):
    assert sampled(server, steps=1, seconds=2.0, batch_size=2).shape == (2, 24, 50)
    assert sampled(server, steps=1, seconds=0.04).shape == (1, 24, 1)


def test_sound_to_latent_to_sound(server, tiny, tmp_path):
    """A 44.1 kHz stereo file in; its latent agrees with the library's, and decodes to as many frames."""
    stereo = torch.randn(44100 * 2, 2, generator=torch.Generator().manual_seed(0)) * 0.1
    soundfile.write(server.base / "input" / "stereo.wav", stereo.numpy(), 44100, subtype="FLOAT")
    graph = Graph()
    _, _, vae = graph.loaders()
    latent = graph.add("DashengEncode", vae=vae, audio=graph.add("LoadAudio", audio="stereo.wav"))
    graph.add("SaveLatent", samples=latent, filename_prefix="test")
    graph.add("SaveAudio", audio=graph.add("DashengDecode", vae=vae, latent=latent), filename_prefix="test")
    result = complete(server, graph)

    expected = tiny.encode(resample(stereo.mean(dim=1)[None], 44100))
    assert deviation(result.latents()[0], expected) <= 5e-5
    ((waveform, rate),) = result.audio()
    assert rate == 16000 and waveform.shape == (640 * expected.shape[-1], 1)


def test_each_aspect_reaches_the_prompt(server):
    aspects = dict(caption="c.", speech="s.", asr="a (b).", sfx="x.", music="m.", env="e.")
    graph = Graph()
    _, clip, _ = graph.loaders()
    prompt = graph.add("DashengScenePrompt", **aspects)
    graph.add("PreviewAny", source=prompt)
    (text,) = complete(server, graph).texts()
    assert text == "<|caption|> c. <|speech|> s. <|asr|> a (b). <|sfx|> x. <|music|> m. <|env|> e."


@pytest.mark.skipif(os.name == "nt", reason="there a backslash is in every path")
def test_a_name_saved_on_windows_is_found(server):
    for name in (TINY_NAME, SMALL_NAME):
        graph = Graph()
        model, clip, vae = graph.loaders(name.replace("/", "\\"))
        latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
        latent = graph.sample(model, graph.encode(clip, PROMPT), latent, steps=1)
        graph.add("PreviewAudio", audio=graph.add("DashengDecode", latent=latent, vae=vae))
        complete(server, graph)


@pytest.mark.parametrize(
    "name", ["", "nowhere.safetensors", "no\\where.safetensors", "../../x", "\u202e<img>"], ids=ascii
)
def test_a_model_that_is_not_there_is_named(server, name):
    """Once, at the input that names it."""
    for node, files, more in (
        ("DashengAudioTokenizerLoader", {"vae_name": "vae"}, {}),
        ("DashengModelLoader", {"model_name": "diffusion_models"}, {"dtype": "auto"}),
    ):
        graph = Graph()
        graph.add("PreviewAny", source=graph.add(node, **dict.fromkeys(files, name), **more))
        ((widget, folder),) = files.items()
        shown = name.replace("\u202e", "\\u202e")
        assert refusal(server, graph).startswith(f"{widget} - '{shown}' is not in models/{folder}: ")


def test_a_name_that_is_no_text(server):
    """What the app sends where a widget has lost its value."""
    for name in (None, 5):
        graph = Graph()
        graph.show(graph.add("DashengModelLoader", model_name=name, dtype="auto"))
        assert f"The name of a model file is {name}, expected a text" in refusal(server, graph)
