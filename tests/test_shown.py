"""What the app shows of the nodes: schemas, and what is said at a node while it runs."""

import asyncio
import importlib.util
import io
import json
import re
import unicodedata

import aiohttp
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import GOLDEN
from dasheng_core.prompt import NO_CAPTION
from dasheng_core.weights.published import ENCODER
from graphs import FEATURES, Graph, connect, refusal, run
from tools.comfyui import ROOT, SMALL_NAME

NODES = (
    "DashengModelLoader DashengTextEncoderLoader DashengAudioTokenizerLoader DashengScenePrompt DashengTextEncode "
    "EmptyDashengLatentAudio DashengSwaySigmas DashengSampler DashengDecode DashengEncode DashengOptimize"
).split()
DESCRIPTIVE = {"caption", "speech", "sfx", "music", "env"}


@pytest.fixture(scope="module")
def schemas(server) -> dict[str, dict]:
    return {
        name: info for name, info in server.get("/object_info").items() if info["category"].startswith("audio/dasheng")
    }


def inputs(info: dict) -> dict[str, dict]:
    return {
        name: options
        for group in ("required", "optional")
        for name, (_, options) in info["input"].get(group, {}).items()
    }


def test_every_input_and_output_says_what_it_is(schemas):
    assert set(NODES) <= set(schemas)
    for name, info in schemas.items():
        assert info["description"], name
        assert all(options.get("tooltip") for options in inputs(info).values()), name
        assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"]), name


WORDS = (
    "sfx, foley, ambience, rain, tts, speech, sound effect, game audio, whoosh, explosion, footsteps, voice over, dialogue, narration, "
    "drone, riser, impact, UI click, creature, engine, crowd"
).split(", ")


@pytest.mark.parametrize("word", WORDS)
def test_node_search_finds_us(schemas, word):
    """By a field that came with 0.11; older versions have no place for it."""
    if "search_aliases" not in schemas["DashengScenePrompt"]:
        pytest.skip("this ComfyUI has no search aliases")
    assert {name for name, info in schemas.items() if any(word in alias for alias in info["search_aliases"] or [])} >= {
        "DashengScenePrompt",
        "DashengModelLoader",
    }


# What a designer need not know to find a node; each may stand later in the description.
TECHNICAL = r"transformer|euler|classifier|tagged|\bT5|encode|velocity|sigma|schedule|conditioning|evaluat"
FOUND_FIRST = "ScenePrompt TextEncode Sampler Decode Emphasis Timeline Takes PickTake Convert Finish Mix SaveWAV Spectrogram Loop Extend"


def test_descriptions_begin_with_what_a_designer_gets(schemas):
    for name in FOUND_FIRST.split():
        first = re.split(r"[.:] ", schemas[f"Dasheng{name}"]["description"])[0]
        assert not re.search(TECHNICAL, first, re.IGNORECASE), first
    assert schemas["DashengSampler"]["description"].startswith("Makes the sound.")


def test_what_experts_set_is_folded_away(schemas):
    folded = {
        (name, key)
        for name, info in schemas.items()
        for key, options in inputs(info).items()
        if options.get("advanced")
    }
    experts = {
        "DashengModelLoader": ["dtype"],
        "DashengSampler": ["sway", "keep_on_gpu", "noise", "grid"],
        "DashengSwaySigmas": ["sway", "grid"],
    }
    assert {(node, name) for node, names in experts.items() for name in names} <= folded


def test_a_scene_reads_without_help(schemas):
    aspects = inputs(schemas["DashengScenePrompt"])
    labels = ["whole scene", "speaker", "spoken words", "sound effects", "music", "ambience & recording"]
    assert [options["display_name"] for options in aspects.values()] == labels
    assert all(options["placeholder"].startswith(options["display_name"]) for options in aspects.values())
    # Spoken words are said as they are written, braces too.
    assert {name for name, options in aspects.items() if options["dynamicPrompts"]} == DESCRIPTIVE


def test_faders_are_sliders_with_the_names_of_a_scene(schemas):
    faders = {name: options for name, options in inputs(schemas["DashengEmphasis"]).items() if "min" in options}
    aspects = inputs(schemas["DashengScenePrompt"])
    assert list(faders) == [name for name in aspects if name != "caption"]
    for name, options in faders.items():
        assert (options["display"], options["min"], options["max"]) == ("slider", -5, 5)
        assert options["display_name"] == aspects[name]["display_name"]


def test_a_node_shows_its_warnings_and_what_it_found(server):
    graph = Graph()
    _, clip, _ = graph.loaders()
    # As no other test has them: what ComfyUI remembers does not run again, and shows nothing.
    model = graph.add("DashengModelLoader", model_name=SMALL_NAME, dtype="fp16")
    doubtful, clear = (graph.encode(clip, f"<|caption|> A shown cat {word}.") for word in ("[sighs]", "meows"))
    for source in (model(), doubtful(1), clear(1)):
        graph.add("PreviewAny", source=source)
    shown = run(server, graph)
    assert shown.said(model) == ["0.01 GB of weights in float16"]
    (estimate,) = shown.said(clear)
    assert re.fullmatch(r"[\d.]+ s estimated", estimate)
    warning, estimate = shown.said(doubtful)
    assert (
        warning.startswith("\u26a0 ") and "the model knows no markup" in warning and estimate.endswith(" s estimated")
    )
    # Results are no progress, which newer frontends take away.
    assert not shown.progress(model) and not shown.progress(doubtful)
    # What is remembered keeps what it said.
    (entry,) = [each for each in server.get("/history").values() if each["prompt"][2] == graph.nodes]
    assert entry["outputs"][doubtful()[0]]["dasheng_text"] == ["\n".join(shown.said(doubtful))]


def test_texts_go_to_the_window_that_queued_if_it_knows_them(server):
    """Another window may have another graph with a node of the same number; a plain client takes bytes for pictures."""

    async def pictures(websocket) -> tuple[int, int, int]:
        """How many binary messages, warnings and texts of our nodes come until the queue, which was not, is empty."""
        count, warnings, texts, queued = 0, 0, 0, False
        async for message in websocket:
            count += message.type == aiohttp.WSMsgType.BINARY
            event = json.loads(message.data) if message.type == aiohttp.WSMsgType.TEXT else {"type": None}
            warnings += event["type"] == "dasheng.warning"
            texts += event["type"] == "executed" and "estimated" in str(event["data"]["output"])
            if event["type"] == "status":
                left = event["data"]["status"]["exec_info"]["queue_remaining"]
                if queued and not left:
                    break
                queued |= left > 0
        return count, warnings, texts

    async def texts(mine: dict | None, client_id: str | None, number: int) -> list[tuple[int, int, int]]:
        graph = Graph()
        model, clip, _ = graph.loaders()
        # As no other test has it: what ComfyUI remembers shows nothing.
        prompt = graph.encode(clip, f"<|caption|> A voice in window {number}. <|asr|> One two three four five six.")
        latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
        options = dict(positive=prompt, negative=prompt, latent_image=latent, seed=1, steps=2, cfg=3.0, denoise=1.0)
        sampled = graph.add("KSampler", model=model, sampler_name="euler", scheduler="simple", **options)
        graph.add("SaveLatent", samples=sampled, filename_prefix="test")
        async with connect(server, "mine", mine) as queued, connect(server, "another") as another:
            received = [asyncio.create_task(pictures(websocket)) for websocket in (queued, another)]
            whose = {} if client_id is None else {"client_id": client_id}
            await asyncio.to_thread(server.post, "/prompt", {"prompt": graph.nodes, **whose})
            return await asyncio.wait_for(asyncio.gather(*received), 60)

    cases = [(FEATURES, "mine"), (None, "mine"), (FEATURES, None), (FEATURES, "gone")]
    found = [asyncio.run(texts(*case, number)) for number, case in enumerate(cases)]
    # Two steps in binary, a warning at ComfyUI's own sampler, and the estimate of a node of ours, which is plain JSON.
    none = (0, 0, 0)
    assert found == [[(2, 1, 1), none], [(0, 0, 1), none], [none, none], [none, none]]


HOSTILE = {
    "element": "<img src=x onerror=alert(1)>",
    "link": "[[a|http://b onmouseover=alert(1) x]] www.c/__LNK0__ [[[d",
    "entity": "&lt;b&gt; &#60;b> &amp;",
    "escape": "\x1b[2J [x]",
    "backwards": "\u202egnp.exe [x]",
    "nul": "a\0b [x]",
    "markdown": "![a](//b.invalid/c.png) *d* `e` [f]",
    "lines": "a\nb\r\nc\u2028d [x]",
    "half": "a \ud800 [x]",
    "long": "[" + "a" * 10**6 + "]",
}


def test_foreign_text_reaches_frontends_terminal_and_file_names_inert(server):
    """By each way: a warning at a node, a file's name there and in the output, an error of a node, the server's log."""
    graph = Graph()
    _, clip, _ = graph.loaders()
    audio = graph.add("ProbeValue", name="as it is")
    options = dict(bit_depth="16 bit", loop=False, loop_start=0.0, loop_end=0.0)
    before = server.log.stat().st_size
    shown, names = [], set()
    for kind, text in HOSTILE.items():
        # One by one: one that is refused ends its graph.
        for class_type, more in (
            ("DashengTextEncode", {"clip": clip, "prompt": f"<|caption|> {text}"}),
            ("DashengSaveWAV", {"audio": audio, "filename_prefix": f"hostile/{kind} {text}", "markers": "", **options}),
            ("DashengSaveWAV", {"audio": audio, "filename_prefix": "hostile/m", "markers": f"{text} x", **options}),
            ("DashengSaveWAV", {"audio": audio, "filename_prefix": "hostile/m", "markers": f"0 {text}", **options}),
        ):
            one = Graph(dict(graph.nodes))
            node = one.add(class_type, **more)
            if class_type == "DashengTextEncode":
                one.add("PreviewAny", source=node(1))
            result = run(server, one)
            shown += [*result.said(node), *result.progress(node)]
            if result.events[-1][0] == "execution_error":
                error = result.error()
                assert is_inert(error) and len(error) < 3000, error[:500]
    names = [path.name for path in (server.output / "hostile").iterdir()]
    assert len(shown) >= 2 * len(HOSTILE) and len(names) >= 2 * len(HOSTILE)
    for text in shown:
        # What is markup for a browser stays as it is: the pack's script shows it as text.
        assert is_inert(text) and len(text) < 10_000, text[:500]
    assert all(is_inert(name) and "<" not in name and len(name.encode()) <= 255 for name in names)
    said = server.log.read_bytes()[before:].decode()
    # ComfyUI's own colours are no text of ours; it writes a prompt's failure and its trace.
    assert not re.search(r"\x1b\[2J|\0|\u202e|\u2028|a{9999}", said)


def is_inert(text: str) -> bool:
    return not [letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Cn")]


def test_a_warning_of_both_branches_is_shown_once(server):
    graph = Graph()
    model, clip, _ = graph.loaders()
    fast = graph.encode(clip, "<|caption|> A shown voice. <|asr|> One two three four five six.")
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    options = dict(
        model=model, positive=fast, negative=fast, latent_image=latent, seed=1, steps=2, cfg=3.0, denoise=1.0
    )
    sampled = graph.add("KSampler", sampler_name="euler", scheduler="simple", **options)
    graph.add("SaveLatent", samples=sampled, filename_prefix="test")
    shown = run(server, graph)
    (warning,) = shown.warned(sampled)
    assert "has 6 words for a clip of 0.2 seconds" in warning and shown.progress(sampled)[-1] == "2 of 2 steps"


@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_every_sampler_shows_its_steps_and_that_there_is_nothing_to_keep(server, denoise):
    graph = Graph()
    model, clip, _ = graph.loaders()
    prompt = graph.encode(clip, "<|caption|> A cat meows.")
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    options = dict(model=model, positive=prompt, negative=prompt, latent_image=latent, seed=1, steps=3, cfg=3.0)
    samplers = (
        graph.sample(model, prompt, latent, steps=3, denoise=denoise),
        graph.add("KSampler", sampler_name="euler", scheduler="simple", denoise=denoise, **options),
    )
    for sampled in samplers:
        graph.add("SaveLatent", samples=sampled, filename_prefix="test")
    shown = run(server, graph)
    assert re.fullmatch(r"2 of 3 steps, about \d+ (s|min) left", shown.progress(samplers[0])[1])
    for sampled, warnings in zip(samplers, (shown.said(samplers[0]), shown.warned(samplers[1])), strict=True):
        assert shown.progress(sampled)[-1] == "3 of 3 steps"
        begins = "\u26a0 denoise is below 1 and the latent is empty"
        assert [line.startswith(begins) for line in warnings] == [True] * (denoise < 1)


def test_the_mini_model_is_there_without_a_download(server):
    """Last in the lists, so that it is nobody's default who has the published files."""
    loaders = {
        "model_name": "DashengModelLoader",
        "text_encoder_name": "DashengTextEncoderLoader",
        "vae_name": "DashengAudioTokenizerLoader",
    }
    assert {server.choices(node, widget)[-1] for widget, node in loaders.items()} == {SMALL_NAME}
    assert not list((server.base / "models").rglob("dasheng-mini"))
    graph = Graph()
    model, clip, vae = graph.loaders(SMALL_NAME)
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    latent = graph.sample(model, graph.encode(clip, "<|caption|> Rain."), latent, steps=1)
    graph.add("SaveAudio", audio=graph.add("DashengDecode", vae=vae, latent=latent), filename_prefix="test")
    ((sound, rate),) = run(server, graph).audio()
    assert (len(sound), rate) == (3200, 16000)


def test_every_sampler_shows_the_takes_as_they_form(flagged):
    """By ComfyUI's own previews, which are off unless its user asks for them."""
    graph = Graph()
    model, clip, _ = graph.loaders()
    prompt = graph.encode(clip, "<|caption|> A cat meows.")
    latent = graph.add("EmptyDashengLatentAudio", seconds=2.0, batch_size=2)
    options = dict(model=model, positive=prompt, negative=prompt, latent_image=latent, seed=1, steps=3, cfg=3.0)
    for sampled in (
        graph.sample(model, prompt, latent, steps=3),
        graph.add("KSampler", sampler_name="euler", scheduler="simple", denoise=1.0, **options),
    ):
        graph.add("SaveLatent", samples=sampled, filename_prefix="test")
    shown = [data["image"] for kind, data in run(flagged, graph).events if kind == "preview"]
    pictures = [Image.open(io.BytesIO(image)) for image in shown]
    # Fifty frames and two takes of 32 lines, as large as previews are.
    assert [picture.size for picture in pictures] == [(400, 512)] * 6


def test_frames_that_sound_alike_have_like_colours():
    spec = importlib.util.spec_from_file_location("preview", ROOT / "nodes" / "comfy" / "preview.py")
    preview = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(preview)
    frames = torch.randn(1, 1280, 3, generator=torch.Generator().manual_seed(1))
    frames[:, :3] = 0
    latent = frames[..., [0, 1, 0, 2, 1]]
    strip = preview.make_strip(torch.cat([latent, latent.flip(2)]))
    assert strip.shape == (1, 3, 64, 5) and strip.abs().max() <= 1
    colours = strip[0, :, 0]
    torch.testing.assert_close(colours[:, [0, 1]], colours[:, [2, 4]])
    assert min((colours[:, a] - colours[:, b]).norm() for a, b in ((0, 1), (0, 3), (1, 3))) > 0.3
    torch.testing.assert_close(strip[0, :, 32:], strip[0, :, :32].flip(2))
    # Neither a constant nor the level of a clip changes its colours.
    torch.testing.assert_close(preview.make_strip(7 * latent + 3)[0], strip[0, :, :32], rtol=0, atol=1e-4)


def test_without_previews_nothing_is_drawn(server):
    graph = Graph()
    model, clip, _ = graph.loaders()
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    sampled = graph.sample(model, graph.encode(clip, "<|caption|> A cat meows."), latent, steps=2)
    graph.add("SaveLatent", samples=sampled, filename_prefix="test")
    assert "preview" not in {kind for kind, _ in run(server, graph).events}


def test_a_scene_without_caption_is_refused_in_the_queue(server):
    graph = Graph()
    scene = dict.fromkeys(("speech", "asr", "sfx", "music", "env"), "")
    graph.add("PreviewAny", source=graph.add("DashengScenePrompt", caption=" ", **scene))
    assert refusal(server, graph) == f"caption - {NO_CAPTION}"


def test_an_audio_tokenizer_without_its_encoder_is_refused_by_a_sentence_alone(server):
    """As every refusal: :func:`graphs.refusal` takes no class of ours, whose path the app would show."""
    folder = GOLDEN / "tiny" / "audio_tokenizer"
    tensors = load_file(folder / "model.safetensors")
    path = server.base / "models" / "vae" / "decoder_alone.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}, path)
    path.with_name("decoder_alone.config.json").write_bytes((folder / "config.json").read_bytes())
    graph = Graph()
    vae = graph.add("DashengAudioTokenizerLoader", vae_name=path.name)
    graph.add("PreviewAny", source=graph.add("DashengEncode", vae=vae, audio=graph.add("ProbeValue", name="as it is")))
    assert "decoder_alone.safetensors" in refusal(server, graph)
    path.unlink()
