"""No widget is decorative: each changes what comes out of a graph that has every node, or is on a list with its reason."""

import pytest
import torch
from PIL import Image

from graphs import TINY_NAME, Graph, run
from tools.comfyui import PACK

OTHER_NAME = "tiny_multilingual.safetensors"
FADED = "<|caption|> A storm. <|speech|> A man. <|asr|> Hello. <|sfx|> A bell. <|music|> A drum. <|env|> Rain."
# Every widget, as the graph has it and as it is changed to.
WIDGETS = {
    ("DashengModelLoader", "model_name"): (TINY_NAME, OTHER_NAME),
    ("DashengModelLoader", "dtype"): ("fp32", "bf16"),
    ("DashengTextEncoderLoader", "text_encoder_name"): (TINY_NAME, OTHER_NAME),
    ("DashengTextEncoderLoader", "model_name"): (TINY_NAME, OTHER_NAME),
    ("DashengAudioTokenizerLoader", "vae_name"): (TINY_NAME, OTHER_NAME),
    ("DashengScenePrompt", "caption"): ("A storm.", "A cat meowing softly."),
    **{("DashengScenePrompt", aspect): ("", "Rain.") for aspect in ("speech", "asr", "sfx", "music", "env")},
    ("DashengTextEncode", "prompt"): (None, "<|caption|> A cat meowing softly."),
    ("EmptyDashengLatentAudio", "seconds"): (0.4, 0.8),
    ("EmptyDashengLatentAudio", "batch_size"): (1, 2),
    ("DashengSwaySigmas", "steps"): (5, 6),
    ("DashengSwaySigmas", "sway"): (-1.0, 0.5),
    ("DashengSwaySigmas", "denoise"): (0.5, 0.7),
    ("DashengSwaySigmas", "grid"): ("full", "epss"),
    ("DashengSampler", "seed"): (0, 1),
    ("DashengSampler", "steps"): (6, 7),
    ("DashengSampler", "guidance"): (5.0, 1.0),
    ("DashengSampler", "sway"): (-1.0, 0.5),
    ("DashengSampler", "denoise"): (0.5, 0.7),
    ("DashengSampler", "keep_on_gpu"): (False, True),
    ("DashengSampler", "grid"): ("full", "epss"),
    ("DashengOptimize", "mode"): ("off", "resident"),
    ("DashengPickTake", "pick"): ("number", "lowest"),
    ("DashengPickTake", "number"): (4, 2),
    ("DashengPickTake", "measure"): ("silence", "loudness"),
    ("DashengPickTake", "min_peak"): (-60.0, -15.0),
    ("DashengPickTake", "min_crest"): (0.0, 7.0),
    ("DashengPickTake", "max_silence"): (1.0, 0.996),
    ("DashengPickTake", "max_clipped"): (-1, 5),
    ("DashengPickTake", "transcript"): ("", "one two three"),
    ("DashengPickTake", "max_offset"): (0.1, 0.01),
    ("DashengVariations", "count"): (2, 3),
    ("DashengVariations", "least_distance"): (0.0, 0.01),
    ("DashengVariations", "most_distance"): (10.0, 5.0),
    ("DashengConvert", "sample_rate"): ("44100", "48000"),
    ("DashengConvert", "channels"): ("as it is", "stereo"),
    ("DashengConvert", "loop"): (False, True),
    ("DashengFinish", "trim"): (True, False),
    ("DashengFinish", "trim_below"): (-60.0, -3.0),
    ("DashengFinish", "padding"): (0.05, 0.1),
    ("DashengFinish", "fade_in"): (0.01, 0.1),
    ("DashengFinish", "fade_out"): (0.05, 0.1),
    ("DashengFinish", "level"): ("loudness", "true peak"),
    ("DashengFinish", "target"): (-23.0, -16.0),
    ("DashengFinish", "fps"): (24.0, 30.0),
    ("DashengMix", "at"): (0.0, 0.5),
    ("DashengMix", "layer_db"): (0.0, -6.0),
    ("DashengSaveWAV", "filename_prefix"): ("wav/a", "wav/b"),
    ("DashengSaveWAV", "bit_depth"): ("24 bit", "16 bit"),
    ("DashengSaveWAV", "loop"): (True, False),
    ("DashengSaveWAV", "loop_start"): (0.0, 0.05),
    ("DashengSaveWAV", "loop_end"): (0.0, 0.1),
    ("DashengSaveWAV", "markers"): ("", "0.1 thunder"),
    ("DashengSaveWAV", "metadata"): ("", "CatID = DOORWood"),
    ("DashengSpectrogram", "width"): (256, 300),
    ("DashengSpectrogram", "row_height"): (128, 200),
    ("EmptyDashengLatentAudio", "extend"): (0.0, 0.4),
    ("EmptyDashengLatentAudio", "fps"): (24.0, 30.0),
    ("DashengSampler", "noise"): ("steady", "as KSampler"),
    ("DashengDecode", "loop"): (False, True),
    ("DashengMaskTime", "start"): (0.12, 0.2),
    ("DashengMaskTime", "end"): (0.28, 0.36),
    ("DashengMaskTime", "feather"): (0.0, 0.1),
    ("DashengMaskTime", "add"): (True, False),
    ("DashengExtend", "before"): (0.0, 0.2),
    ("DashengExtend", "after"): (0.2, 0.4),
    ("DashengExtend", "words"): ("two", "three"),
    ("DashengTimeline", "start"): (0.12, 0.2),
    ("DashengTimeline", "end"): (0.28, 0.36),
    ("DashengTimeline", "fade"): (0.1, 0.0),
    ("DashengTimeline", "overlap"): ("replace", "both"),
    ("DashengEmphasis", "prompt"): (FADED, f"{FADED} A cat."),
    **{("DashengEmphasis", aspect): (0.5, 1.5) for aspect in ("speech", "asr", "sfx", "music", "env")},
    ("DashengNoise", "seed"): (0, 1),
    ("DashengGuider", "guidance"): (5.0, 3.0),
    ("DashengGuider", "rescale"): (0.3, 0.7),
    ("DashengGuider", "sigma_low"): (0.0, 0.3),
    ("DashengGuider", "sigma_high"): (1.0, 0.7),
    ("DashengGuider", "zero_star"): (False, True),
    ("DashengGuider", "apg"): (True, False),
    ("DashengGuider", "apg_parallel"): (0.1, 0.6),
    ("DashengGuider", "apg_limit"): (0.0, 0.1),
    ("DashengGuider", "apg_momentum"): (-0.5, 0.5),
    ("DashengListen", "words"): (False, True),
    ("DashengScript", "script"): ("asr: one two. three.\n1 sfx: bell", "asr: one two. four.\n1 sfx: bell"),
    ("DashengScript", "seconds"): (0.0, 6.0),
    ("DashengScript", "fade"): (0.1, 0.4),
    ("DashengScript", "speech_span"): (10.0, 1.0),
    ("DashengStems", "seed"): (0, 1),
    ("DashengStems", "rest"): (False, True),
    ("DashengStems", "retake"): (False, True),
    ("DashengPlaceInStereo", "delay"): (0.1, 0.6),
    **{("DashengPlaceInStereo", f"pan_{n}"): (0.5, -0.5) for n in range(1, 5)},
    **{("DashengPlaceInStereo", f"distance_{n}"): (0.1, 0.6) for n in range(1, 5)},
    **{("DashengPlaceInStereo", f"gain_{n}"): (0.0, -6.0) for n in range(1, 5)},
    ("DashengHits", "sensitivity"): (0.5, 0.0),
    ("DashengHits", "least_distance"): (0.2, 0.7),
    ("DashengHits", "most"): (200, 2),
    ("DashengHits", "bounces"): (False, True),
    ("DashengHits", "fps"): (10.0, 20.0),
    ("DashengPlace", "hits"): ("0:00.100", "0:00.200"),
    ("DashengPlace", "effect_db"): (-6.0, 0.0),
}
UNHEARD = {
    ("EmptyDashengLatentAudio", "fps"): "of pictures, which have a test of their own: tests/test_input_graphs.py",
    ("DashengFinish", "fps"): "of pictures, which have a test of their own: tests/test_hits.py",
    ("DashengHits", "bounces"): "of what bounces, which has a test of its own: tests/test_hits.py",
    (
        "DashengSampler",
        "keep_on_gpu",
    ): "says where the latent lies, which a CPU does not show: tests/test_two_devices.py",
    ("DashengVariations", "most_distance"): "no two of these takes are so far apart: tests/test_variations.py",
    ("DashengOptimize", "mode"): "the same sound by another way: tests/test_sampling_call.py",
}


def outcome(server, place=None, note=None):
    """Latents, files and texts of the graph, the widget at ``place`` changed; or the sentence it is refused with.

    What ComfyUI remembers does not run again, but with another ``note``.
    """
    graph = Graph()

    def node(name, **wires):
        widgets = {
            widget: values[(name, widget) == place] for (owner, widget), values in WIDGETS.items() if owner == name
        }
        return graph.add(name, **{**{k: v for k, v in widgets.items() if v is not None}, **wires})

    model = node("DashengOptimize", model=node("DashengModelLoader"))
    clip, vae = node("DashengTextEncoderLoader"), node("DashengAudioTokenizerLoader")
    text = {} if place == ("DashengTextEncode", "prompt") else {"prompt": node("DashengScenePrompt")}
    positive = node("DashengTextEncode", clip=clip, **text)
    empty = node("EmptyDashengLatentAudio")
    start = graph.sample(model, positive, empty, steps=2, seed=9)
    ours = node("DashengSampler", model=model, positive=positive, latent=start)
    core = graph.add(
        "SamplerCustom", model=model, positive=positive, negative=positive, latent_image=start, add_noise=True,
        noise_seed=3, cfg=1.0, sampler=graph.add("KSamplerSelect", sampler_name="euler"), sigmas=node("DashengSwaySigmas"),
    )  # fmt: skip
    # The nodes of direction: a clip that is extended, a stretch of it made anew, under a guider.
    marked = node("DashengMaskTime", latent=node("DashengExtend", latent=start, words=""))
    emphasis = node("DashengEmphasis", clip=clip)
    timeline = node("DashengTimeline", conditioning=positive, timeline=emphasis)
    plain = node("DashengLoop", model=node("DashengModelLoader"))
    directed = graph.add(
        "SamplerCustomAdvanced", noise=node("DashengNoise"), guider=node("DashengGuider", model=plain, positive=timeline),
        sampler=graph.add("KSamplerSelect", sampler_name="euler"), sigmas=node("DashengSwaySigmas"), latent_image=marked,
    )  # fmt: skip
    script = node("DashengScript", clip=clip)
    scripted = graph.sample(
        model, script, graph.add("EmptyDashengLatentAudio", seconds=script(1), batch_size=1), steps=2
    )
    longer = node("DashengExtend", latent=start, before=0.0, conditioning=positive, clip=clip)
    going = graph.sample(model, longer(1), longer, steps=2)
    graph.add("PreviewAny", source=node("DashengListen", model=model, conditioning=emphasis, latent=start)(1))
    encoded = node("DashengEncode", vae=vae, audio=node("DashengDecode", vae=vae, latent=ours))
    for latent in (ours, core, encoded, directed, scripted, going):
        graph.add("SaveLatent", samples=latent, filename_prefix="test")
    takes = graph.add("ProbeValue", name="takes")
    finished = node("DashengFinish", audio=takes)
    # A sound that does not end in silence, at whose seam a loop at another rate is heard.
    converted = node("DashengConvert", audio=graph.add("ProbeValue", name="ring"))
    node("DashengSaveWAV", audio=node("DashengMix", bed=finished, layer=converted))
    stems = node(
        "DashengStems", model=node("DashengModelLoader"), clip=clip, vae=vae, conditioning=emphasis, latent=start
    )
    placed = node("DashengPlaceInStereo")
    graph.nodes[placed()[0]]["inputs"] |= {f"audio_{n + 1}": stems(n) for n in range(4)}
    node("DashengSaveWAV", audio=placed)
    struck = node("DashengPlace", bed=graph.add("ProbeValue", name="ring"), effect=takes)
    node("DashengSaveWAV", audio=struck)
    pictures = graph.add("GetVideoComponents", video=graph.add("LoadVideo", file="video.mp4"))
    graph.add("PreviewAny", source=node("DashengHits", images=pictures))
    picked = node("DashengPickTake", audio=graph.add("ProbeValue", name="takes, one off"))
    graph.add("PreviewAny", source=node("DashengVariations", audio=takes, vae=vae)(1))
    graph.add("PreviewAny", source=picked(1))
    graph.add("PreviewAny", source=picked(2))
    graph.add("SaveImage", images=node("DashengSpectrogram", audio=takes), filename_prefix="test")
    for inputs in (each["inputs"] for each in graph.nodes.values()):
        inputs["note"] = note
    result = run(server, graph)
    if result.events[-1][0] == "execution_error":
        return result.error()
    # The graph itself lies in the files; it may differ.
    sounds = [(path.name[:1], sound_of(path)) for path in result.files("audio")]
    images = [Image.open(path).tobytes() for path in result.files("images")]
    # In the order of the nodes, whose branches ComfyUI runs in any.
    texts = [result.outputs[node]["text"] for node in sorted(result.outputs, key=int) if "text" in result.outputs[node]]
    return [*(latent.tolist() for latent in result.latents()), sounds, images, texts]


def sound_of(path) -> bytes:
    """A WAV without its comment."""
    data = path.read_bytes()
    start = data.index(b"LIST")
    return data[12:start] + data[start + 8 + int.from_bytes(data[start + 4 : start + 8], "little") :]


def test_every_widget_is_known_here(server):
    shown = set()
    for name, info in server.get("/object_info").items():
        if info["python_module"] == f"custom_nodes.{PACK}":
            for widget, (kind, *_) in {
                **info["input"].get("required", {}),
                **info["input"].get("optional", {}),
            }.items():
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
                    shown.add((name, widget))
    assert shown == set(WIDGETS)


@pytest.fixture(scope="module")
def unchanged(server):
    made = outcome(server)
    assert not isinstance(made, str), made
    assert made == outcome(server, note="again"), "the same graph makes the same sound"
    return made


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_nodes_depend_on_no_default_dtype(server, unchanged, dtype):
    """Other packs change it."""
    server.post("/probe/default_dtype", dtype)
    try:
        made = outcome(server, note=dtype)
    finally:
        server.post("/probe/default_dtype", "float32")
    assert not isinstance(made, str), made
    *latents, sounds, images, texts = made
    *expected, same_sounds, same_images, same_texts = unchanged
    for latent, right in zip(latents, expected, strict=True):
        torch.testing.assert_close(torch.tensor(latent), torch.tensor(right), rtol=1e-5, atol=1e-5)
    assert sounds == same_sounds and images == same_images and texts == same_texts


@pytest.mark.parametrize("place", WIDGETS, ids="-".join)
def test_a_widget_changes_the_result_or_is_listed(server, unchanged, place):
    made = outcome(server, place)
    assert (made == unchanged) == (place in UNHEARD)
    assert isinstance(made, list) or place[1].endswith("_name"), made
