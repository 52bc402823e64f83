"""What other nodes hand over, in a real ComfyUI server: converted where that is harmless, named where it is not."""

import os
import re
from pathlib import Path

import pytest
import torch

from conftest import deviation, open_server
from graphs import TINY_NAME, Graph, refusal, run

PROMPT = "<|caption|> A cat meowing softly. <|sfx|> A cat."
ASPECTS = ("speech", "asr", "sfx", "music", "env")
GUIDER = dict(guidance=2.0, rescale=0.5, sigma_low=0.0, sigma_high=1.0, zero_star=False, apg=True, apg_parallel=0.0, apg_limit=1.0, apg_momentum=0.0)  # fmt: skip
# The names of a kind of values, as probe_pack/values.py writes them; the file itself imports ComfyUI.
SOURCE = (Path(__file__).parent / "probe_pack" / "values.py").read_text("utf-8")


def names(kind: str) -> list[str]:
    (block,) = re.findall(rf"^{kind} = \{{\n(.*?)^\}}", SOURCE, re.MULTILINE | re.DOTALL)
    return re.findall(r'^    "([^"]+)": lambda', block, re.MULTILINE)


DIRECTION = ("DashengTimeline", "DashengEmphasis", "DashengMaskTime", "DashengExtend", "DashengNoise", "DashengGuider")


class Scene(Graph):
    """A graph with the golden checkpoint, a conditioning and an empty latent."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders()
        self.positive = self.value("conditioning")
        self.latent = self.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)

    def value(self, name: str):
        return self.add("ProbeValue", name=name)

    def ours(self, **changes):
        inputs = dict(model=self.model, positive=self.positive, latent=self.latent, steps=2)
        return self.sample(**{**inputs, **changes})

    def core(self, **changes):
        inputs = dict(
            model=self.model, positive=self.positive, negative=self.positive, latent_image=self.latent, seed=0, steps=2,
            cfg=5.0, sampler_name="euler", scheduler="simple", denoise=1.0,
        )  # fmt: skip
        return self.add("KSampler", **{**inputs, **changes})

    def directed(self, node: str, **changes):
        """A node of direction, with what is made from it: a latent, or of Dasheng Listen a text."""
        conditioning, latent, model = {"conditioning": self.positive}, {"latent": self.latent}, {"model": self.model}
        inputs = {
            "DashengTimeline": {**conditioning, "start": 0.0, "end": 0.0, "fade": 0.0, "overlap": "replace"},
            "DashengEmphasis": dict(clip=self.clip, prompt=PROMPT, **dict.fromkeys(ASPECTS, 0.0)),
            "DashengMaskTime": {**latent, "start": 0.0, "end": 0.0, "feather": 0.0, "add": False},
            "DashengExtend": {**latent, "before": 0.0, "after": 0.2},
            "DashengLoop": model,
            "DashengNoise": {"seed": 0},
            "DashengGuider": {**model, **GUIDER, "positive": self.positive},
            "DashengListen": {**model, **conditioning, **latent, "words": False},
        }[node]
        made = self.add(node, **{**inputs, **changes})
        if node == "DashengListen":
            self.add("PreviewAny", source=made(1))
            return self
        use = {"DashengTimeline": "positive", "DashengEmphasis": "positive", "DashengLoop": "model"}
        if node not in ("DashengNoise", "DashengGuider"):
            return self.save(self.ours(**{use.get(node, "latent"): made}))
        parts = {
            "guider": self.add("CFGGuider", cfg=2.0, negative=self.positive, positive=self.positive, **model),
            "noise": self.add("RandomNoise", noise_seed=0),
            "sigmas": self.add("DashengSwaySigmas", steps=2, sway=-1.0, denoise=1.0),
            "sampler": self.add("KSamplerSelect", sampler_name="euler"),
            "guider" if node == "DashengGuider" else "noise": made,
        }
        return self.save(self.add("SamplerCustomAdvanced", latent_image=self.latent, **parts))

    def save(self, latent):
        self.add("SaveLatent", samples=latent, filename_prefix="test")
        return self

    def play(self, audio):
        self.add("PreviewAudio", audio=audio)
        return self


def alike(server, kind: str, use, tolerance: float):
    """Every value of a kind gives the same latent."""
    scene = Scene()
    for name in names(kind):
        scene.save(use(scene, scene.value(name)))
    first, *others = run(server, scene).latents()
    assert len(others) > 3
    for name, latent in zip(names(kind)[1:], others, strict=True):
        assert deviation(latent, first) <= tolerance, name


def test_one_sound_in_every_form(server):
    alike(server, "SAME_SOUND", lambda scene, audio: scene.add("DashengEncode", vae=scene.vae, audio=audio), 1e-6)


def test_one_latent_in_every_form(server):
    alike(server, "SAME_LATENT", lambda scene, latent: scene.ours(latent=latent, denoise=0.5), 1e-6)


SENTENCES = {
    "None": "audio is None, expected a sound: the video or file it comes from has no sound",
    "waveform int64": "The audio has samples of torch.int64, expected floating point within -1 to 1",
    "waveform NaN": "The audio has values that are not numbers (NaN or infinite)",
    "too short": "1 clips of 400 samples at 16 kHz, expected at least one of 513 (32 ms): use a longer clip",
    "no samples": "1 clips of 0 samples at 16 kHz, expected at least one of 513",
    "twelve hours": "The audio is 44100 seconds long (44100 samples at 1 Hz), expected at most 3600",
    "rate 0": "The sample rate of the audio is 0, expected a whole number from 1 to 768000",
    "rate text": "The sample rate of the audio is '44100', expected a whole number",
    "latent of a picture": "latent has shape [1, 4, 4, 5], expected [batch, 24, frames]: it belongs to another model",
    "conditioning of another model": "has shape [1, 77, 768], expected [batch, tokens, 32]: it was made for another model",
    "conditioning []": "is an empty list, expected a conditioning: connect Dasheng Text Encode",
}


@pytest.mark.parametrize("name", names("WRONG_AUDIO"))
def test_audio_that_is_none(server, name):
    scene = Scene()
    scene.save(scene.add("DashengEncode", vae=scene.vae, audio=scene.value(name)))
    sentence = refusal(server, scene)
    assert re.match(r"(audio|The audio|The sample rate of the audio) (is|has) ", sentence)
    assert SENTENCES.get(name, "expected") in sentence or SENTENCES["waveform NaN"] in sentence


@pytest.mark.parametrize("node", ["sampler", "decoder"])
@pytest.mark.parametrize("name", names("WRONG_LATENT"))
def test_latents_of_another_shape_or_not_numbers(server, node, name):
    scene = Scene()
    latent = scene.value(name)
    if node == "sampler":
        scene.save(scene.ours(latent=latent))
    else:
        scene.play(scene.add("DashengDecode", vae=scene.vae, latent=latent))
    sentence = refusal(server, scene)
    assert sentence.startswith("latent ") and SENTENCES.get(name, "") in sentence


@pytest.mark.parametrize(
    "name", ["latent NaN", "latent of other channels", "latent of a picture", "latent of no frames"]
)
def test_latents_at_nodes_of_comfyui_itself(server, name):
    for node in ("KSampler", "VAEDecodeAudio"):
        scene = Scene()
        if node == "KSampler":
            scene.save(scene.core(latent_image=scene.value(name)))
        else:
            scene.play(scene.add(node, vae=scene.vae, samples=scene.value(name)))
        assert re.match("(latent|The noise) has ", refusal(server, scene))


@pytest.mark.parametrize("name", names("WRONG_BATCH"))
def test_batch_indices_and_masks_that_do_not_fit(server, name):
    scene = Scene()
    scene.save(scene.ours(latent=scene.value(name)))
    assert re.match("latent has the batch_index|A batch_index|The noise mask", refusal(server, scene))


@pytest.mark.parametrize("name", names("WRONG_CONDITIONING"))
def test_conditioning_of_another_model_or_none(server, name):
    # A negative of None is one that is not connected.
    for place in ("positive", "negative")[: 1 if name == "conditioning None" else 2]:
        scene = Scene()
        scene.save(scene.ours(**{place: scene.value(name)}))
        sentence = refusal(server, scene)
        assert sentence.startswith(place) and SENTENCES.get(name, "") in sentence


@pytest.mark.parametrize("name", ["conditioning []", "conditioning of another model", "conditioning NaN"])
def test_conditioning_at_comfyuis_own_sampler(server, name):
    for place in ("positive", "negative"):
        scene = Scene()
        scene.save(scene.core(**{place: scene.value(name)}))
        assert SENTENCES.get(name, "has values that are not numbers") in refusal(server, scene)


@pytest.mark.parametrize("node", ["DashengMaskTime", "DashengExtend", "DashengListen"])
@pytest.mark.parametrize("name", names("WRONG_LATENT"))
def test_latents_at_nodes_of_direction(server, node, name):
    """A mask is made for a latent of any channels: the sampler behind it names those."""
    scene = Scene()
    sentence = refusal(server, scene.directed(node, latent=scene.value(name)))
    assert sentence.startswith("latent ") and ("expected" in sentence or "are not numbers" in sentence)


@pytest.mark.parametrize(
    "node, place",
    [
        ("DashengTimeline", "conditioning"),
        ("DashengTimeline", "timeline"),
        ("DashengGuider", "positive"),
        ("DashengGuider", "negative"),
        ("DashengListen", "conditioning"),
    ],
)
@pytest.mark.parametrize("name", names("WRONG_CONDITIONING"))
def test_conditioning_at_nodes_of_direction(server, node, place, name):
    scene = Scene()
    # What need not be connected is None where it is not.
    if name == "conditioning None" and place in ("timeline", "negative"):
        return
    sentence = refusal(server, scene.directed(node, **{place: scene.value(name)}))
    # A prompt's width is known beside another prompt, or at the sampler.
    assert sentence.startswith(
        ("conditioning ", "positive ", "negative ") if name == "conditioning of another model" else place
    )


@pytest.mark.parametrize("value", ["other model", "object", "None"])
@pytest.mark.parametrize(
    "node",
    [
        *("DashengSampler", "DashengOptimize", "DashengSkipCache"),
        *("DashengLoop", "DashengGuider", "DashengListen"),
    ],
)
def test_a_model_of_another_kind(server, node, value):
    scene = Scene()
    other = scene.value(value)
    if node == "DashengOptimize":
        scene.save(scene.ours(model=scene.add(node, model=other, mode="off")))
    elif node == "DashengSkipCache":
        scene.save(scene.ours(model=scene.add(node, model=other, outer_blocks=1)))
    elif node == "DashengSampler":
        scene.save(scene.ours(model=other))
    else:
        scene.directed(node, model=other)
    assert "expected that of Dasheng-AudioGen: connect Load Dasheng AudioGen" in refusal(server, scene)


@pytest.mark.parametrize("value", ["other model", "object", "None"])
def test_a_vae_or_clip_of_another_kind(server, value):
    for node, sentence in (
        ("DashengDecode", "connect Load Dasheng Audio Tokenizer"),
        ("DashengTextEncode", "connect Load Dasheng Text Encoder"),
        ("DashengEmphasis", "connect Load Dasheng Text Encoder"),
    ):
        scene = Scene()
        if node == "DashengDecode":
            scene.play(scene.add(node, vae=scene.value(value), latent=scene.latent))
        elif node == "DashengEmphasis":
            scene.directed(node, clip=scene.value(value))
        else:
            scene.add("PreviewAny", source=scene.add(node, clip=scene.value(value), prompt=PROMPT)(1))
        assert sentence in refusal(server, scene)


WRONG_NUMBERS = {
    ("DashengSampler", "seed"): ("-1", "18446744073709551616", "1.5", "'5'", "True"),
    ("DashengSampler", "steps"): ("0", "25.5", "1000000000"),
    ("DashengSampler", "guidance"): ("nan", "1e+30", "-5", "None"),
    ("DashengSampler", "sway"): ("nan", "2.5", "-3.0"),
    ("DashengSampler", "denoise"): ("nan", "1e-09", "1.5"),
    ("DashengSwaySigmas", "steps"): ("0", "inf"),
    ("DashengSwaySigmas", "denoise"): ("-1", "1e-09"),
    ("DashengSwaySigmas", "grid"): ("'5'", "None"),
    ("EmptyDashengLatentAudio", "seconds"): ("nan", "0", "3600.0"),
    ("EmptyDashengLatentAudio", "batch_size"): ("0", "2.5", "1000000000"),
    ("DashengSkipCache", "outer_blocks"): ("0", "2.5"),
    ("DashengOptimize", "mode"): ("'5'", "None"),
    ("DashengModelLoader", "dtype"): ("'5'", "None"),
    ("DashengTextEncode", "prompt"): ("2.5", "None"),
    ("DashengScenePrompt", "caption"): ("2.5", "None"),
    ("DashengSampler", "noise"): ("'5'", "None"),
    ("EmptyDashengLatentAudio", "extend"): ("nan", "3600.0"),
    ("DashengTimeline", "start"): ("nan", "-3.0", "25.5"),
    ("DashengTimeline", "end"): ("-3.0", "25.5"),
    ("DashengTimeline", "fade"): ("-1", "inf"),
    ("DashengTimeline", "overlap"): ("'5'", "None"),
    ("DashengEmphasis", "prompt"): ("2.5", "'5'"),
    ("DashengEmphasis", "sfx"): ("nan", "1e+30"),
    ("DashengMaskTime", "start"): ("-3.0", "25.5"),
    ("DashengMaskTime", "end"): ("-3.0", "25.5"),
    ("DashengMaskTime", "feather"): ("-1", "inf"),
    ("DashengExtend", "before"): ("-3.0", "3600.0"),
    ("DashengExtend", "after"): ("-3.0", "inf"),
    ("DashengNoise", "seed"): ("-1", "1.5"),
    ("DashengGuider", "guidance"): ("nan", "1e+30", "-5"),
    ("DashengGuider", "rescale"): ("-1", "1.5"),
    ("DashengGuider", "sigma_low"): ("-1", "1.5"),
    ("DashengGuider", "sigma_high"): ("-1", "1.5"),
    ("DashengGuider", "apg_parallel"): ("nan", "inf", "None"),
    ("DashengGuider", "apg_limit"): ("nan", "-1", "None"),
    ("DashengGuider", "apg_momentum"): ("nan", "1.5", "None"),
}


@pytest.mark.parametrize(
    "node, name, value", [(*place, value) for place, values in WRONG_NUMBERS.items() for value in values]
)
def test_values_that_only_a_wire_can_bring(server, node, name, value):
    """Typed into a widget ComfyUI itself refuses them."""
    sentence = refusal(server, by_wire(node, {name: value}))
    assert "expected" in sentence or "The caption is empty" in sentence
    assert value in sentence or value.rstrip("0").rstrip(".") in sentence or "The caption is empty" in sentence


def by_wire(node: str, wired: dict[str, str]) -> Scene:
    scene = Scene()
    changes = {name: scene.value(value) for name, value in wired.items()}
    if node in DIRECTION:
        return scene.directed(node, **changes)
    if node == "DashengSampler":
        return scene.save(scene.ours(**changes))
    if node == "EmptyDashengLatentAudio":
        return scene.save(scene.ours(latent=scene.add(node, **{"seconds": 0.2, "batch_size": 1, **changes})))
    if node in ("DashengSkipCache", "DashengOptimize"):
        widgets = {"outer_blocks": 1} if node == "DashengSkipCache" else {"mode": "off"}
        return scene.save(scene.ours(model=scene.add(node, model=scene.model, **{**widgets, **changes})))
    if node == "DashengModelLoader":
        return scene.save(scene.ours(model=scene.add(node, model_name=TINY_NAME, **changes)))
    if node == "DashengTextEncode":
        scene.add("PreviewAny", source=scene.add(node, clip=scene.clip, **changes)(1))
    elif node == "DashengScenePrompt":
        aspects = dict.fromkeys(("caption", "speech", "asr", "sfx", "music", "env"), "")
        scene.add("PreviewAny", source=scene.add(node, **{**aspects, **changes}))
    else:
        scene.add("PreviewAny", source=scene.add(node, **{"steps": 4, "sway": -1.0, "denoise": 1.0, **changes}))
    return scene


def test_whole_numbers_of_every_type(server):
    latents = [
        run(server, by_wire("DashengSampler", dict.fromkeys(("seed", "steps", "guidance"), name))).latents()[0]
        for name in ("int 4", "float 4", "numpy 4", "torch 4", "array 4")
    ]
    assert all(torch.equal(latent, latents[0]) for latent in latents)


# Batches


def takes(server, *latents_of, before=lambda scene, latent: latent) -> tuple[torch.Tensor, str]:
    """What Dasheng Sampler makes of a LatentBatch, and what it says in the log."""
    scene = Scene()
    first, second = (latent(scene) for latent in latents_of)
    both = before(scene, scene.add("LatentBatch", samples1=first, samples2=second))
    scene.save(scene.ours(latent=both, seed=11))
    read = server.log.stat().st_size
    (latent,) = run(server, scene).latents()
    with server.log.open("rb") as log:
        log.seek(read)
        return latent, log.read().decode("utf-8", "replace")


def empty(scene):
    return scene.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=2)


def test_a_latent_batch_of_two_empty_ones_repeats_takes_and_says_so(server):
    """ComfyUI gives them batch_index 0, 1, 0, 1, and its own samplers the same noise; LatentFromBatch relies on it."""
    four, log = takes(server, empty, empty)
    assert torch.equal(four[:2], four[2:])
    assert "takes repeat earlier ones (3 is 1, 4 is 2)" in log and "LatentBatchSeedBehavior" in log


def test_a_batch_with_random_seed_behaviour_has_takes_of_its_own(server):
    def random(scene, latent):
        return scene.add("LatentBatchSeedBehavior", samples=latent, seed_behavior="random")

    four, log = takes(server, empty, empty, before=random)
    assert len({tuple(take.flatten().tolist()) for take in four}) == 4 and "takes repeat" not in log
    scene = Scene()
    one = scene.add("LatentFromBatch", samples=random(scene, empty(scene)), batch_index=1, length=1)
    scene.save(scene.ours(latent=one, seed=11))
    assert deviation(run(server, scene).latents()[0][0], four[1]) <= 1e-4, "take 2 alone is take 2 of the batch"


def test_a_repeated_batch_has_new_takes(server):
    """RepeatLatentBatch counts on where there are indices, and where there are none they are counted here."""
    for first in (empty, lambda scene: scene.add("LatentFromBatch", samples=empty(scene), batch_index=0, length=2)):
        scene = Scene()
        scene.save(scene.ours(latent=scene.add("RepeatLatentBatch", samples=first(scene), amount=2)))
        (four,) = run(server, scene).latents()
        assert len({tuple(take.flatten().tolist()) for take in four}) == 4


# Results


def test_any_denoise_below_1_keeps_some_of_a_recording(server):
    scene = Scene()
    encoded = scene.add("DashengEncode", vae=scene.vae, audio=scene.value("as it is"))
    empty = scene.add("EmptyDashengLatentAudio", seconds=1.0, batch_size=1)
    for latent in (encoded, empty):
        scene.save(scene.ours(latent=latent, steps=6, denoise=0.9)).save(
            scene.ours(latent=latent, steps=6, denoise=1.0)
        )
    kept, ignored, *from_silence = run(server, scene).latents()
    assert not torch.equal(kept, from_silence[0]), "0.9 of 6 steps hears the recording"
    assert torch.equal(ignored, from_silence[1]), "1 does not"


def test_a_result_that_is_not_finite_is_named_and_no_file_is_written(server):
    """Weights that overflow: a LoRA of 1e30 on the last layer, with our sampler and ComfyUI's."""
    for sampler in ("ours", "core"):
        scene = Scene()
        broken = scene.add("ProbeOverflow", model=scene.model)
        made = getattr(scene, sampler)(model=broken)
        scene.add("SaveAudio", audio=scene.add("DashengDecode", vae=scene.vae, latent=made), filename_prefix="overflow")
        result = run(server, scene)
        assert "The sampled latent has values that are not numbers" in result.error()
    assert not list(server.output.rglob("overflow*"))


def test_audio_is_float32_whatever_the_flags(server, tmp_path):
    """--fp16-intermediates of newer versions, in a server of its own."""
    if "fp16-intermediates" not in (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "cli_args.py").read_text("utf-8"):
        pytest.skip("this ComfyUI has no --fp16-intermediates")

    def play(server):
        scene = Scene()
        positive = scene.encode(scene.clip, PROMPT)
        recording = scene.add("DashengEncode", vae=scene.vae, audio=scene.value("as it is"))
        made = scene.ours(positive=positive, latent=recording, denoise=0.5)
        for node, latent in (("DashengDecode", "latent"), ("VAEDecodeAudio", "samples")):
            audio = scene.add(node, vae=scene.vae, **{latent: made})
            scene.add("ProbeAudio", audio=audio)
            scene.add("SaveAudio", audio=audio, filename_prefix="flag")
        scene.save(made)
        result = run(server, scene)
        return (
            [node["text"][0] for node in result.outputs.values() if "text" in node],
            result.latents()[0],
            result.audio(),
        )

    said, latent, sounds = play(server)
    with open_server(tmp_path, "--fp16-intermediates") as flagged:
        texts, same_latent, same_sounds = play(flagged)
    assert texts == said and all("torch.float32" in text for text in said)
    assert torch.equal(latent, same_latent)
    assert all(torch.equal(one, other) for (one, _), (other, _) in zip(sounds, same_sounds, strict=True))
