"""Scripts: lines with times become the scenes that they say, in the library, on the command line and in ComfyUI."""

import json

import pytest
import torch

from dasheng_core import PromptError, Script, Timeline, compose_prompt
from dasheng_core.batch.jobs import read_scenes
from dasheng_core.cli import generate, main
from dasheng_core.cli.arguments import build_parser
from dasheng_core.control.nest import Moment
from dasheng_core.control.script import LONGEST_SCRIPT, extended_scene, seconds_of_words, with_words
from dasheng_core.control.timeline import Span, pad_contexts, spoken_frames, spoken_of
from dasheng_core.prompt import parse_prompt
from dasheng_core.sampling import Branch, Branches, _conditions, branches
from graphs import Graph, refusal, run
from tools.comfyui import ROOT, SMALL_NAME

ISSUE = """\
0:00-0:06 env: rain on a tin roof
0:02-0:04 sfx: a door slams
0:03 speech: an old man, tired
0:03-0:05 asr: we should go
music: low drone, from 0:04
"""
SPEECH = "One two. Three four. Five."


def told(text: str, **options) -> list[tuple[float, dict[str, str]]]:
    """The second and the aspects of each scene, without its caption."""
    found = []
    for second, prompt in Script.parse(text, **options).entries:
        aspects = parse_prompt(prompt)
        del aspects["caption"]
        found.append((second, aspects))
    return found


def test_each_span_is_a_whole_scene_of_what_is_heard_in_it():
    rain = {"env": "rain on a tin roof"}
    man, drone = {"speech": "an old man, tired"}, {"music": "low drone"}
    assert told(ISSUE) == [
        (0.0, rain),
        (2.0, {"sfx": "a door slams", **rain}),
        (3.0, {**man, "asr": "we should", "sfx": "a door slams", **rain}),
        (4.0, {**man, "asr": "go", **drone, **rain}),
        # Nobody speaks any more.
        (5.0, {**drone, **rain}),
    ]
    script = Script.parse(ISSUE)
    assert isinstance(script, Timeline) and script.seconds == 6.0 and hash(script)
    caption = parse_prompt(script.prompts[2])["caption"]
    assert caption == "Someone speaks: an old man, tired. A door slams. Rain on a tin roof."


def test_a_scene_line_is_the_caption_and_a_gap_is_quiet():
    script = Script.parse("0:01-0:02 scene: Thunder rolls!\n0:01-0:02 sfx: thunder\n", seconds=3.0)
    assert script.entries == (
        (0.0, "<|caption|> Near silence in a quiet room."),
        (1.0, "<|caption|> Thunder rolls! <|sfx|> thunder"),
        (2.0, "<|caption|> Near silence in a quiet room."),
    )


@pytest.mark.parametrize(
    "time, span",
    [
        ("0:02-0:04", (2.0, 4.0)), ("2-4", (2.0, 4.0)), ("2.5 s to 4,5 s", (2.5, 4.5)), ("[0:02.5 – 0:04]", (2.5, 4.0)),
        ("[5.5s:8.0s]", (5.5, 8.0)), ("0:00:02,500 --> 0:00:04,000", (2.5, 4.0)), ("1:02", (62.0, 66.0)), ("0:03.20", (3.2, 7.2)),
        ("2.5\t4", (2.5, 4.0)), ("3.000\t3.000", (3.0, 7.0)),
    ],
)  # fmt: skip
def test_times_as_people_write_them(time, span):
    (line,) = Script.parse(f"{time} sfx: a knock").lines
    assert line[:4] == (*span, "sfx", "a knock")


def test_a_line_without_an_end_holds_until_the_next_of_its_aspect():
    script = Script.parse("env: rain\n0:02-0:03 env: thunder\n0:04 env: wind\n0:06 sfx: bell")
    assert [(line.text, line.start, line.end) for line in script.lines] == [
        ("rain", 0.0, 4.0), ("thunder", 2.0, 3.0), ("wind", 4.0, 10.0), ("bell", 6.0, 10.0),
    ]  # fmt: skip
    assert dict(told("env: rain\n0:02-0:03 env: thunder"))[2.0] == {"env": "Rain. Thunder."}
    # No time at all: the clip is as long as the model says.
    assert Script.parse("env: rain\nsfx: a bell").seconds is None


def test_words_are_split_where_sentences_end_and_each_is_said_once():
    text = f"speech: a low voice\nasr: {SPEECH}\nspeech: a girl\nasr: Six!\nenv: rain"
    assert [(second, own["speech"], own["asr"]) for second, own in told(text, speech_span=2)] == [
        (0.0, "a low voice", "One two."),
        (1.52, "a low voice", "Three four."),
        (3.0, "a low voice", "Five."),
        (4.0, "a girl", "Six!"),
    ]
    assert [own["asr"] for _, own in told(text)] == [SPEECH, "Six!"]
    assert seconds_of_words(SPEECH) == 0.5 * 5 + 0.5 * 3
    # Within given times, in proportion; and no word is lost or said twice where another line cuts them.
    cut = told("0-8 asr: One two. Three four.\n3-5 sfx: bell", speech_span=4)
    assert [(second, own.get("asr")) for second, own in cut] == [
        (0.0, "One two."),
        (3.0, None),
        (5.0, "Three four."),
    ]
    for count in range(1, 30):
        words = " ".join(f"word{i}" for i in range(count))
        rows = "\n".join(f"{i * 0.7:.2f}-{i * 0.7 + 0.3:.2f} sfx: bell" for i in range(9))
        said = " ".join(own.get("asr", "") for _, own in told(f"0.5-5.5 asr: {words}\n{rows}"))
        assert said.split() == words.split()


def test_subtitles_and_labels_are_scripts():
    subtitles = "\ufeff1\r\n00:00:00,000 --> 00:00:02,000\r\n<i>Hello.</i>\r\nANNA: 12\r\n\r\n2\r\n00:00:02,000 --> 00:00:04,000\r\nsfx: a door\r\n"
    assert told(subtitles) == [(0.0, {"asr": "Hello. ANNA: 12"}), (2.0, {"sfx": "a door"})]
    labels = Script.parse("0.5\t2.0\tRain falls\n\\\t100\t200\n2.0\t2.0\tsfx: bell\n")
    assert [line[:4] for line in labels.lines] == [(0.5, 2.0, "scene", "Rain falls"), (2.0, 6.0, "sfx", "bell")]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("\n# note\n", "The script has no lines, expected a time, an aspect and a text"),
        ("env: rain\nhello", "line 2: 'hello' does not say what is heard, expected one of scene, speech, asr, sfx, music, env"),
        ("0:01 foley: a door", "line 1: 'foley: a door' does not say what is heard"),
        ("0:01", "line 1: '' does not say what is heard"),
        ("0:03-0:02 sfx: a", "line 1: A span goes from 3 to 2 s, expected an end after its start"),
        ("env: a\n\n1:00:00 sfx: b", "line 3: The start of a span is 3600.0, expected a number from 0 to 600"),
        ("asr: " + "word " * 2000, "line 1: The end of a span is 1000.5, expected a number from 0 to 600"),
        ("sfx: a <|sfx|> b", "line 1: The caption text contains the tag"),
        ("sfx: \ud800", "line 1: The caption text has half a character"),
        ("sfx: a\u202eb\nx\u202ey", r"line 2: 'x\\\\u202ey' does not say"),
        ("a" * 100_001, "The script has 100,001 characters, expected at most 100,000: split it."),
        ("sfx: a\n" * 13, "At 0 s 13 lines are heard at one time, that of line 13 among them, expected at most 12"),
        (f"env: {'a' * 5000}\n" + "".join(f"{i} sfx: {i}\n" for i in range(20)), "The scenes until 9 s have 1"),
        (3, "The script is 3, expected a text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_its_line(text, sentence):
    with pytest.raises(ValueError, match=sentence) as refused:
        Script.parse(text)
    assert len(str(refused.value)) < 400
    assert isinstance(refused.value, PromptError) == ("<|sfx|>" in str(text) or "\ud800" in str(text))


def test_a_line_beyond_the_clip_is_refused_and_an_end_beyond_it_is_cut():
    with pytest.raises(ValueError, match="line 2 begins at 3 s, expected a time inside the clip of 2.5 s"):
        Script.parse(ISSUE.partition("\n")[2], seconds=2.5)
    assert [line.end for line in Script.parse("0-9 env: rain", seconds=4).lines] == [4.0]
    with pytest.raises(ValueError, match="speech_span is 0, expected a number from 0.5 to 600"):
        Script.parse(ISSUE, speech_span=0)


def test_much_text_is_read_or_refused_in_bounded_time():
    """A second is a hundred times as long as it takes."""
    rows = [f"{i / 10:.1f}-600 asr: a" for i in range(5000)]
    for text in (
        "\n" * LONGEST_SCRIPT,
        "0" * LONGEST_SCRIPT,
        "sfx: " + ", from" * 16000,
        "asr: " + "." * 99_000,
        "\n".join(rows),
    ):
        try:
            assert len(Script.parse(text).entries) < 3000
        except ValueError as error:
            assert len(str(error)) < 2000


# ---- words that fit


def test_a_clip_that_goes_on_says_other_words_or_none():
    scene = compose_prompt(caption="A man in rain.", speech="A man.", asr="One two.", env="Rain.")
    going = extended_scene(scene, 2.0, "three")
    assert going.entries == ((0.0, scene), (2.0, scene.replace("One two.", "three"))) and going.fade == 0
    assert "<|speech|>" not in with_words(scene, " ") and "<|env|> Rain." in with_words(scene, " ")
    # What begins beyond the clip that is kept is not in it.
    assert len(extended_scene(Timeline([(0.0, scene), (3.0, scene)]), 2.0, "three").entries) == 2


def test_frames_know_whose_words_they_say():
    spans = [Span(fade=0.2), Span(1.0, fade=0.2), Span(2.0, 3.0, 0.2)]
    assert spoken_frames(spans[:1], [3], 25) is None and spoken_frames(spans, [0, 0, 0], 100) is None
    assert spoken_frames(spans[:2], [0, 2], 50).tolist() == [[0.0] * 25 + [2.0] * 25]
    assert spoken_frames(spans, [1, 0, 2], 100).tolist() == [[1.0] * 25 + [0.0] * 25 + [3.0] * 25 + [0.0] * 25]


def test_words_read_their_own_span_alone_until_the_last_steps(tiny):
    """In both branches; below the last sigma the network reads all frames."""
    one, two, three = (f"<|caption|> A voice. <|asr|> {word}" for word in ("one", "two", "three"))
    rain, wind = "<|caption|> Rain.", "<|caption|> Wind."

    def differs(sigma: float, before: str, own: str) -> list[bool]:
        """Whether each branch of the second half changes with the sound of the first."""
        scene = Timeline([(0.0, before), (0.8, own)], fade=0.0)
        contexts = {text: tiny.encode_text([text])[0][0] for text in scene.prompts}
        read = Branches(Branch(*pad_contexts([scene], contexts, 40), spoken=spoken_of([scene], 40)))
        noise = torch.randn(1, tiny.latent_channels, 40, generator=torch.Generator().manual_seed(0))
        other = torch.cat([-noise[..., :20], noise[..., 20:]], dim=-1)
        with torch.inference_mode():
            conditions = _conditions(tiny.backbone, read, True)
            velocity = branches(tiny.backbone, conditions, torch.tensor([sigma, 0.0]))
            first, second = (velocity(latent, Moment(0, sigma)) for latent in (noise, other))
        # The last layer is a convolution of three frames.
        return [bool(apart > 1e-5) for apart in (first - second)[..., 22:].abs().amax(dim=(1, 2, 3))]

    assert differs(0.5, one, three) == differs(0.15, two, three) == differs(0.9, one, three) == [False, False]
    assert differs(0.5, rain, three) == [False, False] and differs(0.05, one, three) == [True, True]
    # Without words, as ever: with the prompt alone, and at the first sigmas alone.
    assert differs(0.9, rain, wind) == [False, True] and differs(0.5, rain, wind) == [True, True]


# ---- the library and the command line


def test_a_script_is_a_clip_of_its_length(tiny):
    script = Script.parse("0-0.4 env: rain\n0.2-0.4 sfx: bell")
    clip = tiny.generate(script, num_steps=1, seed=0)
    assert clip.shape == (1, 6400)
    assert torch.equal(clip, tiny.generate(Timeline(script.entries), num_steps=1, seed=0, duration=0.4))
    both = tiny.generate([script, "<|caption|> Rain."], num_steps=1, seed=0, duration=[0.24, 0.2])
    assert both.shape == (2, 3840)


def test_scripts_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(ISSUE, "utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"script": ISSUE, "fade": 0.1, "name": "a"}) + "\n")
    (tmp_path / "c.csv").write_text(f'name,script\na,"{ISSUE}"\n')
    parse = build_parser().parse_args
    (scene,) = generate.scenes_to_make(parse(["generate", "--script", "a.txt", "--fade", "0.1", "-o", "x.wav"]))
    assert scene.prompt == Script.parse(ISSUE, 0.1) and scene.seconds == 6.0 and scene.name == "Rain_on_a_tin_roof"
    (row,) = read_scenes(tmp_path / "b.jsonl")
    assert (row.prompt, row.seconds) == (scene.prompt, 6.0)
    (row,) = read_scenes(tmp_path / "c.csv", seconds=8.0)
    assert row.seconds == 8.0 and row.prompt.lines[-1].end == 8.0
    for given, sentence in (
        ({"script": ISSUE, "timeline": []}, "script and timeline are both given"),
        ({"script": "0:01 x: y"}, "1: line 1: 'x: y' does not say what is heard"),
        ({"script": 3}, "script is 3, expected lines of a time, an aspect and a text"),
        ({"script": ISSUE, "seconds": 2}, "line 2 begins at 2 s"),
        ({"script": ISSUE, "caption": "a"}, "A timeline has its own prompts"),
    ):
        (tmp_path / "d.jsonl").write_text(json.dumps(given) + "\n")
        with pytest.raises(ValueError, match=sentence):
            read_scenes(tmp_path / "d.jsonl")


def test_the_command_makes_it_and_names_what_is_wrong(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.srt").write_text("1\n0:00:00,000 --> 0:00:00,400\nsfx: a bell\n")
    model = ["--audiogen", str(ROOT / "tests" / "golden" / "tiny"), "--steps", "1", "--seed", "1"]
    assert (
        main(["generate", "--script", "a.srt", "-o", "a.wav", *model]) == 0
        and (tmp_path / "a.wav").stat().st_size > 6400
    )
    (tmp_path / "b.txt").write_text("0:01 x: y\n")
    assert main(["generate", "--script", "b.txt", "-o", "b.wav", *model]) == 1
    assert "b.txt: line 1: 'x: y' does not say what is heard" in caplog.text
    assert main(["generate", "--script", "a.srt", "--timeline", "a.srt", "-o", "b.wav", *model]) == 1
    assert "--script names a file of one clip: give no --timeline and no --prompts beside it." in caplog.text
    (tmp_path / "c.txt").write_text("env: rain\n" * 20_000)
    assert (
        main(["generate", "--script", "c.txt", "-o", "b.wav", *model]) == 1
        and "characters, expected at most" in caplog.text
    )


# ---- ComfyUI

SHORT = "0-0.4 speech: a low voice\n0-0.4 asr: one\n0.4-0.8 asr: two\nenv: rain\n0.2 sfx: a bell"


def script_node(graph: Graph, clip, text: str = SHORT, **options):
    defaults = {"seconds": 0.0, "fade": 0.1, "speech_span": 10.0}
    return graph.add("DashengScript", clip=clip, script=text, **{**defaults, **options})


def test_the_node_is_the_librarys_script(server, mini):
    graph = Graph()
    model, clip, vae = graph.loaders(SMALL_NAME, "fp32")
    script = script_node(graph, clip)
    latent = graph.add("EmptyDashengLatentAudio", seconds=script(1), batch_size=1)
    sampled = graph.sample(model, script, latent, seed=3, steps=6, noise="steady")
    audio = graph.add("DashengDecode", vae=vae, latent=sampled, loop=False)
    graph.add("SaveImage", images=script(2), filename_prefix="test")
    graph.add(
        "SaveImage",
        images=graph.add("DashengSpectrogram", audio=audio, width=256, row_height=256, timeline=script),
        filename_prefix="test",
    )
    result = run(server, graph.save(sampled))
    expected = Script.parse(SHORT, 0.1)
    content = mini.generate(expected, seed=3, num_steps=6)
    (made,) = result.latents()
    assert made.shape[-1] == 20 and (mini.decode(made) - content).abs().max() < 1e-3
    assert result.said(script)[-1] == "0.8 s, 3 scenes"


def test_extend_takes_other_words_and_says_where_there_are_none(server, mini):
    prompt = "<|caption|> A low voice and rain. <|speech|> A low voice. <|asr|> one <|env|> Rain."
    graph = Graph()
    model, clip, vae = graph.loaders(SMALL_NAME, "fp32")
    text = graph.encode(clip, prompt)
    first = graph.sample(
        model, text, graph.add("EmptyDashengLatentAudio", seconds=0.4, batch_size=1), seed=1, steps=4, noise="steady"
    )
    going = [
        graph.add("DashengExtend", latent=first, before=0.0, after=0.4, conditioning=text, clip=clip, words=words)
        for words in ("two", "")
    ]
    made = [graph.sample(model, each(1), each, seed=2, steps=4, noise="steady") for each in going]
    result = run(server, graph.save(first, *made))
    kept, other, none = result.latents()
    for words, latent in (("two", other), ("", none)):
        scene = extended_scene(prompt, 0.4, words)
        content = mini.generate(scene, seed=2, num_steps=4, duration=0.8, latent=kept, keep=[(0.0, 0.4)])
        assert (mini.decode(latent) - content).abs().max() < 1e-3
    assert result.said(going[0]) == []
    assert "words is empty: nobody speaks in the added 0.4 s. Write there what is said." in result.said(going[1])[0]


@pytest.mark.parametrize(
    "inputs, sentence",
    [
        ({"words": "two"}, "conditioning and clip belong together"),
        ({"conditioning": True, "words": ""}, "conditioning and clip belong together"),
        (
            {"conditioning": True, "clip": True, "words": "two", "before": 0.2},
            "before is 0.2 s, expected 0 with a conditioning",
        ),
    ],
)
def test_extend_refuses_what_does_not_belong_together(server, inputs, sentence):
    graph = Graph()
    model, clip, vae = graph.loaders()
    text = graph.encode(clip, "<|caption|> A voice. <|asr|> one")
    inputs = {name: {"conditioning": text, "clip": clip}.get(name, value) for name, value in inputs.items()}
    latent = graph.add("EmptyDashengLatentAudio", seconds=0.2, batch_size=1)
    going = graph.add("DashengExtend", **{"latent": latent, "before": 0.0, "after": 0.2, **inputs})
    graph.sample(model, text, going, steps=1)
    assert sentence in refusal(server, graph.save(going))


def test_the_node_names_the_line(server):
    graph = Graph()
    _, clip, _ = graph.loaders()
    graph.show(script_node(graph, clip, "env: rain\n0:01 x: y")(1))
    assert "line 2: 'x: y' does not say what is heard" in refusal(server, graph)
