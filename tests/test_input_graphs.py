"""What other nodes hand over, in a real ComfyUI server: converted where that is harmless, named where it is not."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from by_hand import Scene
from conftest import deviation, open_server
from graphs import TINY_NAME, complete, refusal, run

PROMPT = "<|caption|> A cat meowing softly. <|sfx|> A cat."
ASPECTS = ("speech", "asr", "sfx", "music", "env")
GUIDER = dict(guidance=2.0, rescale=0.5, sigma_low=0.0, sigma_high=1.0, zero_star=False, apg=True, apg_parallel=0.0, apg_limit=1.0, apg_momentum=0.0)  # fmt: skip
CORE = dict(seed=0, steps=2, cfg=5.0, sampler_name="euler", scheduler="simple", denoise=1.0)
# The names of a kind of values, as probe_pack/values.py writes them; the file itself imports ComfyUI.
SOURCE = (Path(__file__).parent / "probe_pack" / "values.py").read_text("utf-8")


def names(kind: str) -> list[str]:
    (block,) = re.findall(rf"^{kind} = \{{\n(.*?)^\}}", SOURCE, re.MULTILINE | re.DOTALL)
    return re.findall(r'^    "([^"]+)": lambda', block, re.MULTILINE)


class Short(Scene):
    """With a conditioning and an empty latent of five frames."""

    def __init__(self):
        super().__init__()
        self.positive, self.latent = self.value("conditioning"), self.empty(seconds=0.2)

    def short(self, **changes):
        inputs = dict(model=self.model, positive=self.positive, latent=self.latent, steps=2)
        return self.sample(**{**inputs, **changes})

    def use(self, node: str, **changes):
        """The graph with this node, some of its inputs changed, and what needs it: a latent, a sound or a text."""
        model, clip, vae, latent = dict(model=self.model), dict(clip=self.clip), dict(vae=self.vae), self.latent
        if node == "DashengSampler":
            return self.save(self.short(**changes))
        inputs = {
            "DashengModelLoader": dict(model_name=TINY_NAME),
            "DashengOptimize": dict(**model, mode="off"),
            "DashengLoop": model,
            "DashengScenePrompt": dict(caption="Rain.", **dict.fromkeys(ASPECTS, "")),
            "DashengTextEncode": dict(**clip, prompt=PROMPT),
            "DashengEmphasis": dict(**clip, prompt=PROMPT, **dict.fromkeys(ASPECTS, 0.0)),
            "DashengTimeline": dict(conditioning=self.positive, start=0.0, end=0.0, fade=0.0, overlap="replace"),
            "EmptyDashengLatentAudio": dict(seconds=0.2, batch_size=1),
            "DashengMaskTime": dict(latent=latent, start=0.0, end=0.0, feather=0.0, add=False),
            "DashengExtend": dict(latent=latent, before=0.0, after=0.2),
            "DashengEncode": vae,
            "DashengDecode": dict(**vae, latent=latent),
            "VAEDecodeAudio": vae,
            "DashengSwaySigmas": dict(steps=4, sway=-1.0, denoise=1.0),
            "DashengNoise": dict(seed=0),
            "DashengGuider": dict(**model, **GUIDER, positive=self.positive),
            "DashengListen": dict(**model, conditioning=self.positive, latent=latent, words=False),
            "KSampler": dict(**model, **CORE, positive=self.positive, negative=self.positive, latent_image=latent),
        }[node]
        made = self.add(node, **{**inputs, **changes})
        if node in ("DashengModelLoader", "DashengOptimize", "DashengLoop"):
            return self.save(self.short(model=made))
        if node in ("DashengTimeline", "DashengEmphasis"):
            return self.save(self.short(positive=made))
        if node in ("EmptyDashengLatentAudio", "DashengMaskTime", "DashengExtend"):
            return self.save(self.short(latent=made))
        if node in ("DashengEncode", "KSampler"):
            return self.save(made)
        if node in ("DashengDecode", "VAEDecodeAudio"):
            self.add("PreviewAudio", audio=made)
            return self
        if node == "DashengGuider":
            return self.save(self.advanced(made, latent))
        if node == "DashengNoise":
            return self.save(self.advanced(self.cfg_guider(self.positive), latent, noise=made))
        return self.show(made(1) if node in ("DashengTextEncode", "DashengListen") else made)


@pytest.mark.parametrize("kind", ["SAME_SOUND", "SAME_LATENT"])
def test_one_value_in_every_form(server, kind):
    scene = Short()
    for name in names(kind):
        if kind == "SAME_SOUND":
            scene.use("DashengEncode", audio=scene.value(name))
        else:
            scene.use("DashengSampler", latent=scene.value(name), denoise=0.5)
    first, *others = complete(server, scene).latents()
    assert len(others) > 3
    for name, latent in zip(names(kind)[1:], others, strict=True):
        assert deviation(latent, first) <= 1e-6, name


def test_whole_numbers_of_every_type(server):
    scene = Short()
    for name in ("int 4", "float 4", "numpy 4", "torch 4", "array 4"):
        scene.use("DashengSampler", **{widget: scene.value(name) for widget in ("seed", "steps", "guidance")})
    first, *others = complete(server, scene).latents()
    assert all(torch.equal(latent, first) for latent in others)


LATENTS = ["latent NaN", "latent of other channels", "latent of a picture", "latent of no frames"]
PROMPTS = ["conditioning []", "conditioning of another model", "conditioning NaN"]
MODELS = ["other model", "object", "None"]
# Where a wrong value can come in, which ones, and how the sentence begins. What need not be connected is None where it is not.
WRONG = [
    ("DashengEncode", "audio", names("WRONG_AUDIO"), "(audio|The audio|The sample rate of the audio) (is|has) "),
    *((node, "latent", names("WRONG_LATENT"), "latent ") for node in ("DashengSampler", "DashengDecode", "DashengListen")),
    *((node, "latent", names("WRONG_LATENT"), "latent ") for node in ("DashengMaskTime", "DashengExtend")),
    ("DashengSampler", "latent", names("WRONG_BATCH"), "latent has the batch_index|A batch_index|The noise mask"),
    ("KSampler", "latent_image", LATENTS, "(latent|The noise) has "),
    ("VAEDecodeAudio", "samples", LATENTS, "latent has "),
    ("DashengSampler", "positive", names("WRONG_CONDITIONING"), "positive"),
    ("DashengSampler", "negative", names("WRONG_CONDITIONING")[1:], "negative"),
    ("DashengTimeline", "conditioning", names("WRONG_CONDITIONING"), "conditioning|positive"),
    ("DashengTimeline", "timeline", names("WRONG_CONDITIONING")[1:], "timeline|conditioning|positive"),
    ("DashengGuider", "positive", names("WRONG_CONDITIONING"), "positive"),
    ("DashengGuider", "negative", names("WRONG_CONDITIONING")[1:], "negative"),
    ("DashengListen", "conditioning", names("WRONG_CONDITIONING"), "conditioning"),
    ("KSampler", "positive", PROMPTS, "positive|conditioning"),
    ("KSampler", "negative", PROMPTS, "negative|conditioning"),
    *((node, "model", MODELS, ".*connect Load Dasheng AudioGen") for node in ("DashengSampler", "DashengOptimize")),
    *((node, "model", MODELS, ".*connect Load Dasheng AudioGen") for node in ("DashengLoop",)),
    *((node, "model", MODELS, ".*connect Load Dasheng AudioGen") for node in ("DashengGuider", "DashengListen")),
    ("DashengDecode", "vae", MODELS, ".*connect Load Dasheng Audio Tokenizer"),
    ("DashengTextEncode", "clip", MODELS, ".*connect Load Dasheng Text Encoder"),
    ("DashengEmphasis", "clip", MODELS, ".*connect Load Dasheng Text Encoder"),
]  # fmt: skip
# What else is named, wherever the value comes in.
NAMED = {
    "None": "None",
    "waveform int64": "torch.int64",
    "too short": "400 samples",
    "no samples": "0 samples",
    "twelve hours": "at most 3600",
    "rate 0": "from 1 to 768000",
    "rate text": "'44100'",
    "latent of a picture": "[1, 4, 4, 5]",
    "conditioning of another model": "[1, 77, 768]",
    "conditioning []": "empty list",
}


@pytest.mark.parametrize(
    "node, place, values, begins", WRONG, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_wrong_value_is_refused_at_its_input(server, node, place, values, begins):
    for name in values:
        scene = Short()
        sentence = refusal(server, scene.use(node, **{place: scene.value(name)}))
        assert re.match(begins, sentence), (name, sentence)
        assert "expected" in sentence or "are not numbers" in sentence, (name, sentence)
        assert NAMED.get(name, "") in sentence, (name, sentence)


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
    ("DashengOptimize", "mode"): ("'5'", "None"),
    ("DashengModelLoader", "dtype"): ("'5'", "None"),
    ("DashengTextEncode", "prompt"): ("2.5", "None"),
    ("DashengScenePrompt", "caption"): ("2.5", "None"),
    ("DashengSampler", "noise"): ("'5'", "None"),
    ("DashengSampler", "grid"): ("'5'", "None"),
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


@pytest.mark.parametrize("node, name", WRONG_NUMBERS, ids="-".join)
def test_values_that_only_a_wire_can_bring(server, node, name):
    """Typed into a widget ComfyUI itself refuses them."""
    for value in WRONG_NUMBERS[node, name]:
        scene = Short()
        sentence = refusal(server, scene.use(node, **{name: scene.value(value)}))
        nothing = "The caption is empty" in sentence
        assert nothing or ("expected" in sentence and value.rstrip("0").rstrip(".") in sentence), (value, sentence)


# Batches


def takes_and_log(server, before=lambda scene, latent: latent) -> tuple[torch.Tensor, str]:
    """What Dasheng Sampler makes of a LatentBatch of two empty ones of two takes, and what it says in the log."""
    scene = Short()
    both = scene.add("LatentBatch", samples1=scene.empty(2, 0.2), samples2=scene.empty(2, 0.2))
    read = server.log.stat().st_size
    (latent,) = complete(server, scene.save(scene.short(latent=before(scene, both), seed=11))).latents()
    return latent, server.log.read_bytes()[read:].decode("utf-8", "replace")


def unlike(takes: torch.Tensor) -> bool:
    return len({tuple(take.flatten().tolist()) for take in takes}) == len(takes)


def test_a_latent_batch_of_two_empty_ones_repeats_takes_and_says_so(server):
    """ComfyUI gives them batch_index 0, 1, 0, 1, and its own samplers the same noise; LatentFromBatch relies on it."""

    def random(scene, latent):
        return scene.add("LatentBatchSeedBehavior", samples=latent, seed_behavior="random")

    four, log = takes_and_log(server)
    assert torch.equal(four[:2], four[2:])
    assert "takes repeat earlier ones (3 is 1, 4 is 2)" in log and "LatentBatchSeedBehavior" in log
    four, log = takes_and_log(server, random)
    assert unlike(four) and "takes repeat" not in log
    scene = Short()
    one = scene.add("LatentFromBatch", samples=random(scene, scene.empty(2, 0.2)), batch_index=1, length=1)
    (alone,) = complete(server, scene.save(scene.short(latent=one, seed=11))).latents()
    assert deviation(alone[0], four[1]) <= 1e-4, "take 2 alone is take 2 of the batch"


def test_a_repeated_batch_has_new_takes(server):
    """RepeatLatentBatch counts on where there are indices, and where there are none they are counted here."""
    scene = Short()
    empty = scene.empty(2, 0.2)
    for first in (empty, scene.add("LatentFromBatch", samples=empty, batch_index=0, length=2)):
        scene.save(scene.short(latent=scene.add("RepeatLatentBatch", samples=first, amount=2)))
    assert all(len(four) == 4 and unlike(four) for four in complete(server, scene).latents())


# Results


def test_any_denoise_below_1_keeps_some_of_a_recording(server):
    scene = Short()
    encoded = scene.add("DashengEncode", vae=scene.vae, audio=scene.value("as it is"))
    for latent in (encoded, scene.empty(seconds=1.0)):
        scene.save(*(scene.short(latent=latent, steps=6, denoise=denoise) for denoise in (0.9, 1.0)))
    kept, ignored, *from_silence = complete(server, scene).latents()
    assert not torch.equal(kept, from_silence[0]), "0.9 of 6 steps hears the recording"
    assert torch.equal(ignored, from_silence[1]), "1 does not"


@pytest.mark.parametrize("sampler", ["ours", "ksampler"])
def test_a_result_that_is_not_finite_is_named_and_no_file_is_written(server, sampler):
    """Weights that overflow: a LoRA of 1e38 on the last layer."""
    scene = Short()
    made = getattr(scene, sampler)(model=scene.add("ProbeOverflow", model=scene.model))
    scene.add("SaveAudio", audio=scene.add("DashengDecode", vae=scene.vae, latent=made), filename_prefix="overflow")
    assert "The sampled latent has values that are not numbers" in run(server, scene).error()
    assert not list(server.output.rglob("overflow*"))


def test_audio_is_float32_whatever_the_flags(server, tmp_path):
    """--fp16-intermediates of newer versions, in a server of its own."""
    if "fp16-intermediates" not in (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "cli_args.py").read_text("utf-8"):
        pytest.skip("this ComfyUI has no --fp16-intermediates")
    scene = Short()
    recording = scene.add("DashengEncode", vae=scene.vae, audio=scene.value("as it is"))
    made = scene.short(positive=scene.cat, latent=recording, denoise=0.5)
    for node, latent in (("DashengDecode", "latent"), ("VAEDecodeAudio", "samples")):
        scene.add("ProbeAudio", audio=scene.add(node, vae=scene.vae, **{latent: made}))
    scene.save(made)
    plain = complete(server, scene)
    with open_server(tmp_path, "--fp16-intermediates") as flagged:
        other = complete(flagged, scene)
    assert other.texts() == plain.texts() and torch.equal(*plain.latents(), *other.latents())
    assert all(json.loads(text)[2] == "torch.float32" for text in plain.texts())


def test_a_clip_as_long_as_the_frames_of_a_video(server):
    """Whatever seconds says; a sound that is longer than the video is said to be."""
    graph = Scene()
    frames = graph.add("EmptyImage", width=16, height=16, batch_size=30, color=0)
    for fps, extend in ((12.5, 0.0), (30.0, 0.0), (30.0, 0.4)):
        graph.save(graph.empty(seconds=9.0, like_images=frames, fps=fps, extend=extend))
    result = complete(server, graph)
    assert [latent.shape[-1] for latent in result.latents()] == [60, 25, 35]
    shown = [text for output in result.outputs.values() for text in output.get("dasheng_text", [])]
    (warned,) = [text for text in shown if text.startswith("\u26a0")]
    assert "1.4 s" in warned and "1.00 s" in warned
    graph = Scene()
    frames = graph.add("EmptyImage", width=16, height=16, batch_size=30, color=0)
    graph.save(graph.empty(seconds=9.0, like_images=frames, fps=24.0, like_audio=graph.value("twelve hours")))
    assert "like_audio and like_images" in refusal(server, graph)
