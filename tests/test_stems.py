"""Stems: a sound taken apart adds up to itself, in the library, on the command line and in ComfyUI."""

import copy
import json
import math
import shutil

import pytest
import soundfile
import torch
from torch import Tensor

from conftest import deviation
from dasheng_core import DashengAudioGen, Timeline, compose_prompt
from dasheng_core.audio_tokenizer.spectral import resample
from dasheng_core.cli import main
from dasheng_core.control.stems import (
    StemOptions,
    aspect_prompts,
    aspect_weights,
    cut_by_energy,
    held_prompts,
    retake_sigmas,
)
from dasheng_core.control.timeline import Span
from dasheng_core.delivery.file_notes import read_about
from dasheng_core.delivery.stereo import Place, place_in_stereo
from dasheng_core.repack import repack_checkpoint
from graphs import Graph, refusal, run, save_lora
from tools.comfyui import ROOT, SMALL_NAME

SCENE = compose_prompt(
    caption="A high voice and rain, about two seconds long.", speech="A high voice.", asr="two five", env="Steady rain."
)
BELL = compose_prompt(caption="A bell in rain, about two seconds long.", sfx="A single bell.", env="Steady rain.")
SECONDS, FRAMES = 1.6, 40
PARTS = ROOT / "mini" / "text_encoder", ROOT / "mini" / "audio_tokenizer"
SAVED = {
    "filename_prefix": "test",
    "bit_depth": "32 bit float",
    "loop": False,
    "loop_start": 0.0,
    "loop_end": 0.0,
    "markers": "",
}
WINDOWS = {
    "context_length": 20,
    "context_overlap": 10,
    "context_schedule": "standard_static",
    "context_stride": 1,
    "closed_loop": False,
    "fuse_method": "pyramid",
    "dim": 2,
    "freenoise": False,
    "causal_window_fix": False,
    "split_conds_to_windows": False,
    "cond_retain_index_list": "",
    "latent_retain_index_list": "",
}
SPAN = {"end": 0.0, "fade": 0.2, "overlap": "replace"}


@pytest.fixture(scope="module")
def clip(mini) -> tuple[Tensor, Tensor]:
    """The latent of the bell in rain, and its sound."""
    content, mask, _ = mini.encode_text(BELL)
    latent = mini.sample(content, mask, [FRAMES], num_steps=8, seed=5)
    return latent, mini.decode(latent)


def adds_up(stems: dict[str, Tensor], sound: Tensor) -> bool:
    return (sum(stems.values()) - sound).abs().max() <= 1e-6


def level(sound: Tensor) -> float:
    return 10 * math.log10(sound.square().mean() + 1e-12)


# ---- what is asked for


def test_each_aspect_has_a_prompt_of_its_own_without_the_scenes_caption():
    assert aspect_prompts([SCENE]) == {
        "speech": ["<|caption|> A high voice. <|speech|> A high voice. <|asr|> two five"],
        "env": ["<|caption|> Steady rain. <|env|> Steady rain."],
    }
    (spoken,) = aspect_prompts(["<|caption|> Words. <|asr|> two"])["speech"]
    assert spoken.endswith("<|asr|> two") and "<|speech|>" not in spoken
    with pytest.raises(
        ValueError, match="has a caption alone, expected what is to be a stem in its aspect: add <|speech|>"
    ):
        aspect_prompts([BELL, "<|caption|> Rain."])


def test_an_aspect_of_some_spans_alone_is_told_there_alone():
    own = aspect_prompts([BELL, SCENE])
    assert own["sfx"][1] is None and held_prompts(own["sfx"]) == [own["sfx"][0]] * 2
    assert held_prompts(own["speech"]) == [own["speech"][1]] * 2
    weights = dict(zip(own, aspect_weights(own, [Span(), Span(1.0, fade=0.0)], 50), strict=True))
    assert weights["sfx"].tolist() == [1.0] * 25 + [0.0] * 25 and weights["speech"].tolist() == [0.0] * 25 + [1.0] * 25
    assert weights["env"].tolist() == [1.0] * 50


def test_options_out_of_range_are_refused(mini, clip):
    for changed, sentence in (
        ({"sigmas": []}, "The sigmas of the stems are an empty list, expected one for each round"),
        ({"sigmas": [1.5]}, "A sigma of the stems is 1.5, expected a number from 0.01 to 1"),
        ({"window": 0.0}, "window is 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            StemOptions(**changed)
    latent, sound = clip
    with pytest.raises(ValueError, match="latent and audio: expected one of them"):
        mini.stems(BELL, latent=latent, audio=sound)
    with pytest.raises(ValueError, match="2 prompts for 1 sounds: give one for all, or one for each"):
        mini.stems([BELL, SCENE], latent=latent)
    with pytest.raises(ValueError, match="The loop has 25599 samples at 16 kHz, expected whole frames of 640"):
        mini.stems(BELL, audio=sound[:, 1:], loop=True)


# ---- the library


def test_stems_add_up_to_the_sound_and_are_what_they_say(mini, clip):
    latent, sound = clip
    seen = []
    stems = mini.stems(BELL, latent=latent, callback=lambda *step: seen.append(step))
    assert list(stems) == ["sfx", "env"] and adds_up(stems, sound) and seen == [(n, 4) for n in (1, 2, 3, 4)]
    # A bell has no such noise above 5 kHz, and rain no tone.
    high = {name: torch.fft.rfft(stem[0])[8000:].abs().square().sum() for name, stem in stems.items()}
    assert high["env"] > 10 * high["sfx"]
    again = mini.stems(BELL, latent=latent, seed=1)
    assert adds_up(again, sound) and (again["sfx"] - stems["sfx"]).abs().max() > 1e-5


def test_a_stem_is_the_same_alone_and_in_a_batch(mini, clip):
    _, sound = clip
    both = mini.stems([BELL, SCENE], audio=torch.cat([sound, sound.flip(1)]), seed=[5, 9])
    first, second = mini.stems(BELL, audio=sound, seed=5), mini.stems(SCENE, audio=sound.flip(1), seed=9)
    assert list(both) == ["speech", "sfx", "env"] and not both["speech"][0].any() and not both["sfx"][1].any()
    for name in first:
        assert torch.equal(both[name][:1], first[name])
    for name in second:
        assert torch.equal(both[name][1:], second[name])


@pytest.mark.parametrize("rate, channels, samples", [(16000, 1, 20001), (44100, 2, 60000), (8000, 1, 12001)])
def test_stems_of_a_recording_keep_its_rate_channels_and_length(mini, rate, channels, samples):
    time = torch.arange(samples) / rate
    tones = torch.stack([0.2 * torch.sin(2 * math.pi * hertz * time) for hertz in (300, 15000)])
    audio = tones.sum(dim=0).expand(1, channels, -1) * torch.tensor([1.0, 0.5])[:channels, None]
    stems = mini.stems(BELL, audio=audio, sample_rate=rate)
    assert all(stem.shape == audio.shape for stem in stems.values()) and adds_up(stems, audio)
    assert ("rest" in stems) == (rate != 16000)
    if rate == 44100:
        assert level(stems["rest"][0, 0] - tones[1]) < -50


def test_a_loops_stems_loop(mini):
    content, mask, _ = mini.encode_text(BELL)
    latent = mini.sample(content, mask, [FRAMES], num_steps=8, seed=5, loop=True)
    turned = {shift: mini.decode(latent.roll(shift, -1), loop=True) for shift in (0, 11)}
    stems = cut_by_energy(turned[0][:, None], torch.stack([turned[0], 0.1 * turned[0].roll(999)]), loop=True)
    other = cut_by_energy(turned[11][:, None], torch.stack([turned[11], 0.1 * turned[11].roll(999)]), loop=True)
    # No place is the seam: the stems of the turned sound are the turned stems.
    assert deviation(other, stems.roll(11 * 640, -1)) < 1e-4
    assert adds_up(mini.stems(BELL, latent=latent, loop=True), turned[0])


def test_windows_and_timelines_add_up_too(mini, clip):
    latent, sound = clip
    whole, parts = (mini.stems(BELL, latent=latent, window=window) for window in (None, 0.8))
    assert adds_up(parts, sound) and (parts["sfx"] - whole["sfx"]).abs().max() > 1e-5
    timeline = Timeline([(0.0, SCENE), (0.8, BELL)], fade=0.0)
    stems = mini.stems(timeline, latent=latent)
    assert list(stems) == ["speech", "sfx", "env"] and adds_up(stems, sound)
    # A spectrum's window is 80 ms wide.
    assert level(stems["sfx"][:, :11000]) < -80 < level(stems["sfx"][:, 14000:])
    assert level(stems["speech"][:, 14500:]) < -80


def test_rest_takes_what_nobody_names_and_retake_is_another_sound(mini, clip):
    latent, sound = clip
    stems = mini.stems(BELL, latent=latent, rest=True)
    assert list(stems) == ["sfx", "env", "rest"] and adds_up(stems, sound) and level(stems["rest"]) > -80
    named = compose_prompt(caption="Rain.", env="Steady rain.")
    # One aspect alone is all of it.
    assert adds_up(mini.stems(named, latent=latent), sound)
    again = mini.stems(BELL, latent=latent, retake=True)
    assert not adds_up(again, sound) and again["sfx"].shape == sound.shape
    sigmas = retake_sigmas()
    assert len(sigmas) == 9 and sigmas[0] == pytest.approx(0.7) and sigmas[-1] == 0 and (sigmas.diff() < 0).all()


def test_silence_is_shared_evenly_and_no_bin_is_no_number():
    stems = cut_by_energy(torch.zeros(1, 1, 6400), torch.zeros(3, 1, 6400))
    assert not stems.any()
    noise = torch.randn(1, 1, 6400, generator=torch.Generator().manual_seed(0))
    stems = cut_by_energy(noise, torch.zeros(2, 1, 6400))
    assert torch.allclose(stems[0], noise / 2, atol=1e-6)


# ---- the command line

FILES = [
    argument
    for part in ("audiogen", "text-encoder", "audio-tokenizer")
    for argument in (f"--{part}", str(ROOT / "mini" / part.replace("-", "_")))
]


def sounds(folder) -> dict[str, Tensor]:
    return {path.name: torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in folder.glob("*.wav")}


def test_generate_writes_stems_beside_the_clip_and_resumes(tmp_path, caplog):
    asked = ["generate", *FILES, "--prompt", BELL, "--seconds", "1", "--steps", "2", "--seed", "3", "--stems"]
    asked += ["-o", str(tmp_path / "a.wav")]
    assert main(asked) == 0
    made = sounds(tmp_path)
    assert made.keys() == {"a.wav", "a.sfx.wav", "a.env.wav"}
    assert (made["a.sfx.wav"] + made["a.env.wav"] - made["a.wav"]).abs().max() <= 1e-6
    about = read_about((tmp_path / "a.sfx.wav").read_bytes())
    assert about.pop("stem") == "sfx" and about == read_about((tmp_path / "a.wav").read_bytes())
    # A run that was stopped before the clip: its stems are there.
    (tmp_path / "a.wav").unlink()
    assert main([*asked, "--resume"]) == 0 and sounds(tmp_path).keys() == made.keys()
    (tmp_path / "a.wav").unlink()
    (tmp_path / "a.env.wav").write_bytes(b"another")
    assert main([*asked, "--resume"]) == 1 and "a.env.wav is there and is not a stem of that clip" in caplog.text
    assert main([*asked[:-1], str(tmp_path / "b.wav"), "--prompt", "<|caption|> Rain."]) == 1
    assert "has a caption alone" in caplog.text


def test_a_batch_writes_stems_and_its_manifest_names_them(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in (BELL, SCENE)))
    asked = [
        "batch",
        "scenes.jsonl",
        *FILES,
        "--seconds",
        "1",
        "--steps",
        "2",
        "--seed",
        "3",
        "--stems",
        "-o",
        "out/{index}.wav",
    ]
    assert main(asked) == 0
    lines = [json.loads(line) for line in (tmp_path / "scenes.manifest.jsonl").read_text("utf-8").splitlines()[1:]]
    assert [line["stems"] for line in sorted(lines, key=lambda line: line["file"])] == [
        {"sfx": "out/001.sfx.wav", "env": "out/001.env.wav"},
        {"speech": "out/002.speech.wav", "env": "out/002.env.wav"},
    ]
    made = sounds(tmp_path / "out")
    assert (made["002.speech.wav"] + made["002.env.wav"] - made["002.wav"]).abs().max() <= 1e-6
    assert main([*asked, "--check"]) == 0
    (tmp_path / "out" / "002.env.wav").unlink()
    assert main([*asked, "--check"]) == 1 and "its stem out/002.env.wav is missing" in caplog.text
    assert main([*asked, "--remake"]) == 0 and sounds(tmp_path / "out").keys() == made.keys()


# ---- a place in stereo


def test_left_and_right_together_are_the_mono_sound():
    sound = torch.randn(2, 3000, generator=torch.Generator().manual_seed(1))
    for pan in (-1.0, -0.3, 0.0, 0.8):
        left, right = place_in_stereo(sound, 16000, Place(pan)).unbind(1)
        assert (left + right - sound).abs().max() <= 1e-6 and torch.allclose(left, sound * (1 - pan) / 2)


def test_distance_and_delay_are_what_they_say():
    rate, time = 16000, torch.arange(16000) / 16000
    for hertz, wanted in ((50.0, -12.0), (2000.0, -15.0), (6000.0, -22.0)):
        tone = torch.sin(2 * math.pi * hertz * time)[None]
        far = place_in_stereo(tone, rate, Place(distance=1.0, gain=6.0)).sum(dim=1)
        assert level(far[:, 1000:-1000]) - level(tone) - 6 == pytest.approx(wanted, abs=0.05)
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(1))
    left, right = place_in_stereo(noise, rate, Place(pan=-0.5), delay=1.0)[0]
    assert (right[8:] * 3 - left[:-8]).abs().max() < 1e-4, "half of a millisecond, eight samples"
    for changed, sentence in (
        ({"pan": 2}, "pan is 2"),
        ({"distance": -1}, "distance is -1"),
        ({"gain": 99}, "gain is 99"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Place(**changed)


# ---- the nodes


def loaded(prompt: str = BELL):
    graph = Graph()
    model, clip, vae = graph.loaders(SMALL_NAME, "fp32")
    positive = graph.encode(clip, prompt)
    empty = graph.add("EmptyDashengLatentAudio", seconds=SECONDS, batch_size=1)
    return graph, model, clip, vae, positive, empty


def stems_node(graph, model, clip, vae, positive, **given):
    settings = {"seed": 0, "rest": False, "retake": False, **given}
    return graph.add("DashengStems", model=model, clip=clip, vae=vae, conditioning=positive, **settings)


def saved(server, graph, *outputs) -> list[Tensor]:
    """``[channels, samples]`` of each output, through a WAV of 32-bit floats."""
    for output in outputs:
        graph.add("DashengSaveWAV", audio=output, **SAVED)
    return sounds_of(run(server, graph))


def sounds_of(result) -> list[Tensor]:
    files = result.files("audio")
    return [torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T) for path in files]


class Output:
    """One output of a node, as :meth:`Graph.add` takes it."""

    def __init__(self, node, number: int):
        self.node, self.number = node, number

    def __call__(self, _=0):
        return self.node(self.number)


@pytest.mark.parametrize("kind", ["clip", "loop", "timeline", "windows", "recording"])
def test_the_nodes_stems_are_the_librarys(server, mini, kind):
    graph, model, clip, vae, positive, empty = loaded()
    scene, given, options = BELL, {}, {}
    if kind == "loop":
        model, options = graph.add("DashengLoop", model=model), {"loop": True}
    if kind == "timeline":
        scene = Timeline([(0.0, SCENE), (0.8, BELL)], fade=0.2)
        first = graph.add("DashengTimeline", conditioning=graph.encode(clip, SCENE), start=0.0, **SPAN)
        positive = graph.add("DashengTimeline", timeline=first, conditioning=positive, start=0.8, **SPAN)
    if kind == "windows":
        model = graph.add("ContextWindowsManual", model=model, **WINDOWS)
        options = {"window": 0.8}
    latent = graph.sample(model, positive, empty, steps=2, seed=4, noise="steady")
    audio = graph.add("DashengDecode", vae=vae, latent=latent, loop=kind == "loop")
    if kind == "recording":
        audio = graph.add("DashengConvert", audio=audio, sample_rate="44100", channels="stereo", loop=False)
        given = {"audio": audio}
    node = stems_node(graph, model, clip, vae, positive, seed=7, **(given or {"latent": latent}))
    graph.add("SaveLatent", samples=latent, filename_prefix="test")
    for output in (audio, *(Output(node, number) for number in range(5))):
        graph.add("DashengSaveWAV", audio=output, **SAVED)
    result = run(server, graph)
    mix, *stems = sounds_of(result)
    assert (sum(stems) - mix).abs().max() <= 1e-6
    if kind == "recording":
        ours = mini.stems(scene, audio=mix[None], sample_rate=44100, seed=7)
    else:
        ours = mini.stems(scene, latent=result.latents()[0], seed=7, **options)
    for name, stem in zip(("speech", "sfx", "music", "env", "rest"), stems, strict=True):
        if name not in ours:
            assert not stem.any(), name
        else:
            assert level(stem - ours[name][0]) < level(ours[name][0]) - 60, name


def test_stems_are_those_of_a_lora_and_of_a_quantised_file(server, mini, tmp_path):
    """Of another network, and so other stems, which add up too."""
    folder, layer = server.base / "models" / "diffusion_models", "mid_block.attn.to_v"
    repack_checkpoint(ROOT / "mini" / "audiogen", tmp_path / "fp8.safetensors", "fp8")
    for file in tmp_path.iterdir():
        shutil.copy(file, folder / file.name.replace("fp8", "stems_fp8"))
    weight, draw = mini.backbone.get_parameter(f"{layer}.weight"), torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=draw) / 4 for shape in ((len(weight), 2), (2, weight.shape[1])))
    save_lora(server, "stems.pt", {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down})
    graph, model, clip, vae, positive, _ = loaded()
    small = graph.add("DashengModelLoader", model_name="stems_fp8.safetensors", dtype="fp32")
    patched = graph.add("LoraLoaderModelOnly", model=model, lora_name="stems.pt", strength_model=1.0)
    audio = graph.add("LoadAudio", audio="recording.wav")
    nodes = [stems_node(graph, each, clip, vae, positive, seed=7, audio=audio) for each in (model, patched, small)]
    mix, *found = saved(server, graph, audio, *(Output(node, number) for node in nodes for number in (1, 3, 4)))
    rate = soundfile.info(server.base / "input" / "recording.wav").samplerate
    others = [copy.deepcopy(mini), DashengAudioGen.from_pretrained(tmp_path / "fp8.safetensors", *PARTS)]
    others[0].backbone.get_parameter(f"{layer}.weight").data += up @ down
    made = [library.stems(BELL, audio=mix[None], sample_rate=rate, seed=7) for library in (mini, *others)]
    for number, ours in enumerate(made):
        effect, ambience, rest = found[3 * number : 3 * number + 3]
        assert (effect + ambience + rest - mix).abs().max() <= 1e-6
        assert level(effect - ours["sfx"][0]) < level(effect) - 50
        assert number == 0 or level(effect - found[0]) > level(effect) - 40, "it is another network"


def test_the_node_says_what_is_silent_and_refuses_what_it_cannot_read(server):
    graph, model, clip, vae, positive, empty = loaded()
    latent = graph.sample(model, positive, empty, steps=1)
    node = stems_node(graph, model, clip, vae, positive, latent=latent)
    graph.add("PreviewAudio", audio=node)
    result = run(server, graph)
    assert result.said(node)[-1] == "2 stems; the prompt has no speech, no music, no rest: silence"
    assert result.progress(node)[-1] == "4 of 4 rounds"
    for changed, sentence in (
        ({}, "audio and latent: expected one of them connected, the sound that is taken apart."),
        ({"latent": "empty"}, "latent is empty, expected one that a sampler has filled"),
        (
            {"latent": latent, "twice": True},
            "conditioning does not say which prompts it is made of, expected one of Dasheng Text",
        ),
        ({"latent": latent, "prompt": "<|caption|> Rain."}, "has a caption alone, expected what is to be a stem"),
    ):
        graph, model, clip, vae, positive, empty = loaded(changed.pop("prompt", BELL))
        filled = graph.add(
            "DashengEncode", vae=vae, audio=graph.add("EmptyAudio", duration=1.0, sample_rate=16000, channels=1)
        )
        wires = {"empty": empty, latent: filled}
        changed = {key: wires.get(value, value) for key, value in changed.items()}
        if changed.pop("twice", False):
            positive = graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=positive)
        node = stems_node(graph, model, clip, vae, positive, **changed)
        graph.add("PreviewAudio", audio=node)
        assert sentence in refusal(server, graph)


def test_the_stereo_node_places_what_is_connected(server):
    rates = {"left": 16000, "right": 48000}
    generator = torch.Generator().manual_seed(3)
    noise = {name: 0.1 * torch.randn(rate // 2, generator=generator) for name, rate in rates.items()}
    for name, wave in noise.items():
        soundfile.write(server.base / "input" / f"{name}.wav", wave.numpy(), rates[name], subtype="FLOAT")

    def placed(**changed):
        graph, settings = Graph(), {"delay": 0.0}
        for n in range(1, 5):
            settings |= {f"pan_{n}": 0.0, f"distance_{n}": 0.0, f"gain_{n}": 0.0}
        for n, name in enumerate(rates, start=1):
            settings[f"audio_{n}"] = graph.add("LoadAudio", audio=f"{name}.wav")
        node = graph.add("DashengPlaceInStereo", **{**settings, "pan_1": -1.0, "pan_2": 0.5, **changed})
        return graph, node

    graph, node = placed()
    (scene,) = saved(server, graph, node)
    mono = resample(noise["left"], 16000, 48000) + noise["right"]
    assert scene.shape[0] == 2 and (scene.sum(dim=0) - mono).abs().max() <= 1e-6
    assert (scene[1] - 0.75 * noise["right"]).abs().max() <= 1e-6
    graph, node = placed(gain_1=24.0)
    graph.add("PreviewAudio", audio=node)
    assert "WOULD CLIP" in run(server, graph).said(node)[0]
    graph = Graph()
    graph.add(
        "PreviewAudio",
        audio=graph.add(
            "DashengPlaceInStereo", **{k: v for k, v in placed()[0].nodes["3"]["inputs"].items() if "audio" not in k}
        ),
    )
    assert refusal(server, graph) == "No sound is connected, expected one to four: connect a stem to audio_1."
