"""The nodes behind Dasheng Decode in a real ComfyUI server: takes, finishing, mixing, saving, drawing."""

import json
import math
import re
import struct
import time
from xml.etree import ElementTree

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from dasheng_core.delivery.measures import loudness, true_peak
from graphs import Graph, Run, complete, refusal
from riff import chunks_of, loops_of, markers_of
from studio import AS_IT_IS, FINISH, Studio

RATE = 16000


def saved(server, graph: Graph, audio, **options) -> list[torch.Tensor]:
    """``[C, L]`` of each file that Dasheng Save WAV makes of a sound."""
    return [samples.T for samples, _ in complete(server, graph.save(audio, **options)).audio()]


def names_of(server, graph: Studio) -> list[str]:
    return [path.relative_to(server.output).as_posix() for path in complete(server, graph).files("audio")]


def rows_of(result: Run) -> list[list[dict]]:
    """The rows of takes with players, node by node, in the order of the nodes."""
    found = [result.outputs[node].get("dasheng_takes") for node in sorted(result.outputs, key=int)]
    return [json.loads(text) for texts in found if texts for text in texts]


def shown(result: Run) -> list[str]:
    """What stays at nodes, in their order."""
    return [text for node in sorted(result.outputs, key=int) for text in result.outputs[node].get("dasheng_text", [])]


@pytest.fixture(scope="module")
def original(server) -> list[torch.Tensor]:
    graph = Studio()
    return saved(server, graph, graph.value("takes"))


# ---- takes


def test_takes_become_a_list_that_knows_its_seeds(server):
    graph = Studio()
    takes = graph.add("DashengTakes", audio=graph.decode(graph.sampled(seed=40)))
    result = complete(server, graph.save(takes(0), filename_prefix="seeds %seed%/cat_%seed%"))
    (rows,) = rows_of(result)
    assert [(row["number"], row["seed"], row["length"]) for row in rows] == [
        (take, str(39 + take), "0.60 s") for take in (1, 2, 3)
    ]
    assert all(re.fullmatch(r"-[\d.]+ LUFS", row["loudness"]) for row in rows)
    for row, (sound, _) in zip(rows, result.audio(), strict=True):
        file = row["file"]
        assert file["type"] == "temp"
        played, rate = soundfile.read(server.temp / file["filename"], dtype="float32", always_2d=True)
        assert rate == RATE and (torch.from_numpy(played) - sound).abs().max() < 2**-15
    names = [path.relative_to(server.output).as_posix() for path in result.files("audio")]
    assert names == [f"seeds {seed}/cat_{seed}_00001.wav" for seed in (40, 41, 42)]


def test_a_take_keeps_its_seed_through_other_nodes_and_loses_it_when_changed(server):
    """Cut out of the batch, it is take 42; made quieter, nobody's."""
    graph = Studio()
    latent = graph.sampled(seed=40)
    cut = graph.add("LatentFromBatch", samples=latent, batch_index=2, length=1)
    joined = graph.add("LatentBatch", samples1=cut, samples2=graph.sampled(seed=7, batch_size=1))
    quieter = graph.add("LatentMultiply", samples=latent, multiplier=0.5)
    sounds = [graph.decode(samples) for samples in (cut, quieter, joined)]
    # A node has taken takes out, and two are one.
    sounds += [graph.value("takes with one seed"), graph.convert(sounds[2], channels="takes as left and right")]
    for audio in sounds:
        graph.show(graph.add("DashengTakes", audio=audio)(1))
    seeds = [[row["seed"] for row in rows] for rows in rows_of(complete(server, graph))]
    assert seeds == [["42"], ["not known"] * 3, ["42", "not known"], ["not known"] * 4, ["not known"]]


def test_a_take_is_picked_by_number_or_measure(server):
    graph = Studio()
    for options in (
        dict(number=2),
        dict(pick="highest", measure="clipped"),
        dict(pick="lowest", measure="silence"),
        dict(pick="highest", measure="crest"),
        dict(pick="lowest", measure="peak", min_peak=-25.0),
        dict(pick="highest", measure="loudness", max_clipped=0, max_silence=0.9),
        dict(pick="lowest", measure="crest", min_crest=20.0),
    ):
        graph.show(graph.pick(**options)(2))
    assert [int(text) for text in complete(server, graph).texts()] == [2, 2, 1, 4, 1, 1, 4]


def test_the_table_of_measures(server, original):
    graph = Studio()
    graph.show(graph.pick(measure="peak", min_crest=20.0, number=4, transcript="one two three")(1))
    graph.show(graph.pick(transcript="<|caption|> A robot speaks. <|asr|> One two.")(1))
    graph.show(graph.pick(graph.value("six channels"))(1), graph.pick(graph.value("off by 0.3"), max_offset=1.0)(1))
    tables = [[row.split("\t") for row in text.splitlines()] for text in complete(server, graph).texts()]
    header, units, *rows = tables[0]
    assert header[:8] == ["take", "seconds", "silence", "peak", "true pk", "clipped", "crest", "LUFS"]
    assert dict(zip(header, units, strict=True))["true pk"] == "dBTP" and units[7:9] == ["LUFS", ""]
    assert [row[0] for row in rows] == ["2", "4", "1", "3"], "by peak, highest first"
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["1"]["peak"] == "-20.00" and table["3"]["peak"] == "-inf" and table["3"]["silence"] == "1.00"
    assert int(table["2"]["clipped"]) > 1000 and table["4"]["words/s"] == "1.50" and tables[1][2][8] == "1.00"
    assert table["1"]["refused"] == "crest 6.02 dB" and "peak -inf dBFS" in table["3"]["refused"]
    assert abs(float(table["1"]["LUFS"]) - loudness(original[0], RATE)) < 0.01
    assert tables[2][2][7] == "-", "no loudness of six channels"


# ---- lists


def test_a_list_beside_the_sounds_has_a_value_for_each(server):
    """ComfyUI's rule: the shorter list repeats its last. The others have one thing to say of all sounds."""
    graph, own = Studio(), {"DashengSaveWAV", "DashengFinish", "DashengConvert", "DashengPickTake"}
    takes, loud = graph.add("DashengTakes", audio=graph.value("takes")), graph.value("loud")
    info = server.get("/object_info")
    ours = {name for name, node in info.items() if name.startswith("Dasheng") and node.get("input_is_list")}
    lists_are_told = any("input_is_list" in node for node in info.values())
    assert ours == {*own, "DashengTakes", "DashengSpectrogram"} or not lists_are_told
    graph.save(takes, filename_prefix=graph.many("list/door", "list/rain"), markers=graph.many("1 a", "", "0.5 b"))
    # A lone sound under each name.
    depths = graph.many("16 bit", "24 bit")
    graph.save(loud, filename_prefix=graph.many("list/x", "list/y"), bit_depth=depths)
    level = dict(level="true peak", target=graph.many(-20.0, -10.0))
    graph.save(graph.finish(loud, **{**AS_IT_IS, **level}), filename_prefix="list/made")
    converted = graph.convert(takes, graph.many("48000", "as it is"), graph.many("mono", "mono", "stereo"))
    graph.save(converted, filename_prefix="list/made")
    graph.show(graph.pick(takes, transcript=graph.many("one", "one two"), min_peak=graph.many(-60, -120))(1))
    result = complete(server, graph)
    files, sounds = result.files("audio"), result.audio()
    named = ["door_00001", "rain_00001", "rain_00002", "rain_00003", "x_00001", "y_00001"]
    assert [path.stem for path in files[:6]] == named
    assert [markers_of(path) for path in files[:4]] == [[(16000, "a")], [], [(8000, "b")], [(8000, "b")]]
    assert [soundfile.info(path).subtype for path in files[4:6]] == ["PCM_16", "PCM_24"]
    assert [round(true_peak(clip.T, rate)) for clip, rate in sounds[6:8]] == [-20, -10]
    assert [(clip.shape[1], rate) for clip, rate in sounds[8:]] == [(1, 48000), (1, 16000), (2, 16000), (2, 16000)]
    rows = sorted(row.split("\t") for row in result.texts()[0].splitlines()[2:])
    assert [row[8] for row in rows] == ["0.50", "1.00", "1.00", "1.00"], "words per second"


# ---- finishing


def test_each_take_is_finished_alone_and_the_node_says_what_it_did(server):
    graph = Studio()
    finished, loud = (graph.finish(graph.value("takes"), level="loudness", target=target) for target in (-23.0, -1.0))
    graph.show(finished(1), loud(1)).save(finished)
    result = complete(server, graph)
    clips = [samples.T for samples, _ in result.audio()]
    assert [clip.shape[-1] for clip in clips] == [16000 + 1600, 16000 + 1600, 32000, 20 + 1740]
    for clip in clips[:2]:
        assert loudness(clip, RATE) == pytest.approx(-23, abs=0.02)
    assert clips[2].abs().max() == 0
    report = result.texts()[1]
    assert report in shown(result)
    lines = report.splitlines()
    assert lines[0].startswith("take 1: 1.10 s, 0.90 s cut, -1.0 LUFS (+") and "WOULD CLIP" in lines[0]
    assert lines[2] == "take 3: 2.00 s, 0.00 s cut, silent, level left" and "too short for a loudness" in lines[3]


def test_the_sound_ends_where_threshold_and_fades_say_and_else_stays_as_it_is(server, original):
    graph = Studio()
    takes, loud = graph.value("takes"), graph.value("loud")
    # The tone of the first take is 20 dB below full scale.
    graph.save(graph.pick(graph.finish(takes, trim_below=-15.0)))
    graph.save(graph.finish(loud, **{**AS_IT_IS, "fade_in": 0.5}))
    untrimmed, faded, *same = saved(server, graph, graph.finish(takes, **AS_IT_IS))
    assert untrimmed.shape[-1] == 32000
    assert faded[0, 0] == 0 and faded[0, 4000] == pytest.approx(0.45, abs=1e-3) and faded[0, -1] == pytest.approx(0.9)
    assert all(map(torch.equal, same, original))


def test_rate_and_channels(server, original):
    graph, rate = Studio(), 44100
    sounds = complete(server, graph.save(graph.convert(graph.value("takes"), str(rate), "stereo"))).audio()
    assert [(samples.shape, found) for samples, found in sounds] == [((2 * rate, 2), rate)] * 4
    clip = sounds[0][0].T
    assert torch.equal(clip[0], clip[1])
    assert loudness(clip, rate) - loudness(original[0], RATE) == pytest.approx(3.01, abs=0.05)
    assert abs(true_peak(clip, rate) - true_peak(original[0], RATE)) < 0.1


def test_a_mix_keeps_levels_and_says_what_would_clip(server, original):
    """ComfyUI's Audio Merge turns the same sum down."""
    graph = Studio()
    mixed = graph.mix(graph.value("takes"), graph.value("loud"), layer_db=-6.0)
    graph.show(mixed(1)).save(mixed).save(graph.mix(graph.value("loud"), graph.value("stereo at 48 kHz")))
    result = complete(server, graph)
    lines = result.texts()[0].splitlines()
    clip = [line for line in lines if "WOULD CLIP" in line]
    assert clip == [lines[1], lines[3]]
    assert [text for text in shown(result) if text.splitlines() == [*clip, lines[0], lines[2]]]
    *sounds, (other, rate) = result.audio()
    for (samples, _), clip in zip(sounds, original, strict=True):
        expected = clip.clone()
        expected[:, 8000:24000] += 0.9 * 10 ** (-6 / 20)
        torch.testing.assert_close(samples.T, expected)
    # Of other rates and channels.
    assert rate == 48000 and other.shape == (72000, 2)
    assert other[30000:40000].mean(dim=0).tolist() == pytest.approx([1.4, 0.9], abs=0.01)


def test_a_loop_has_no_seam_at_another_rate(server):
    """Against the same waves at 48 kHz; without the switch its ends fade into silence, which clicks."""
    turn = torch.arange(19200) * (2 * math.pi / 19200)
    expected = 0.5 * torch.cos(20 * turn) + 0.3 * torch.cos(1001 * turn)
    graph = Studio()
    for loop in (True, False):
        converted = graph.convert(graph.value("ring"), "48000", loop=loop)
        level = graph.finish(converted, **{**AS_IT_IS, "level": "true peak"})
        graph.save(level, loop=True, loop_start=0.1)
    result = complete(server, graph)
    errors = []
    for samples, rate in result.audio():
        assert rate == 48000 and samples.shape == (19200, 1)
        gain = samples[100:-100, 0] @ expected[100:-100] / expected[100:-100].square().sum()
        errors.append((samples[:, 0] / gain - expected).abs())
    assert errors[0].max() < 1e-3 and errors[1][100:-100].max() < 1e-3 and errors[1].max() > 0.05
    assert [loops_of(path) for path in result.files("audio")] == [[(4800, 19199)]] * 2


# ---- files


def test_what_16_bits_clip_is_said_at_the_node(server, original):
    graph = Studio()
    result = complete(server, graph.save(graph.value("takes"), bit_depth="16 bit"))
    for (samples, _), expected in zip(result.audio(), original, strict=True):
        assert (samples[:, 0] - expected[0].clamp(-1, 1)).abs().max() <= 1.6 * 2**-15
    assert "1.25 times full scale and is clipped" in " ".join(shown(result))


def test_nothing_is_overwritten_and_takes_are_numbered(server):
    def save(prefix: str, value: str) -> list[str]:
        graph = Studio()
        server.post("/free", {"free_memory": True})
        return names_of(server, graph.save(graph.value(value), filename_prefix=f"many/{prefix}"))

    assert [*save("rain", "takes"), *save("rain", "takes")] == [f"many/rain_{i:05}.wav" for i in range(1, 9)]
    # Nor is a graph without its sound; and ComfyUI does not count files with a name of their own.
    for kept, prefix, name in (("rain_00009", "rain", "rain_00010"), ("unknown_00001", "%seed%", "unknown_00002")):
        (server.output / "many" / f"{kept}.json").write_text("{}")
        assert save(prefix, "loud") == [f"many/{name}.wav"]
    folder = server.output / "many"
    assert len(list(folder.iterdir())) == 22 and not list(folder.glob("*.part"))


def test_a_name_by_template(server):
    graph = Studio()
    audio = graph.decode(graph.sampled(seed=77, batch_size=1))
    odd = graph.add("PreviewAny", source="x", note='a/b\\c:d*e?f"g<h>i|j')
    graph.nodes[odd()[0]]["_meta"] = {"title": "Odd name"}
    graph.nodes["90"] = {"class_type": "PreviewAny", "inputs": {}, "_meta": None}
    prefix = "%year%_%date:yyyy-MM-dd%_%DashengSampler.steps%_%seed%_%Nobody.seed%_%Odd name.note%_%date:yy.hh.mm.ss%"
    before = time.time()
    graph.save(audio, filename_prefix=f"named/{prefix}").save(audio, filename_prefix="from\\windows\\rain")
    name, windows = names_of(server, graph)
    assert re.match(r"named/\d{4}_\d{4}-\d\d-\d\d_2_77_%Nobody\.seed%_a_b_c_d_e_f_g_h_i_j_\d", name), name
    times = range(int(before), int(time.time()) + 1)
    assert name.split("_")[-2] in [time.strftime("%y.%H.%M.%S", time.localtime(second)) for second in times]
    assert windows == "from/windows/rain_00001.wav"


METADATA = (
    "CatID = DOORWood\nFX Name: Open Slow\ncreatorid=ABC\nSourceID = LIB\nstart = 2\ndescription = A door, 5 = five."
)


def test_what_a_sound_library_reads(server):
    graph = Studio()
    made = graph.finish(graph.decode(graph.sampled(seed=77, batch_size=2)), **AS_IT_IS)
    plain = graph.value("loud")
    graph.save(made, filename_prefix="library/%ucs%", metadata=METADATA)
    graph.save(made, filename_prefix="library/x_%CatID%", metadata="CatID: AIRBlow")
    graph.save(plain, filename_prefix="library/plain")
    graph.save(plain, filename_prefix="library/y", metadata="originator: Me")
    ucs, second, only_cat, _, bare, told = complete(server, graph).files("audio")
    assert [path.name for path in (ucs, second, only_cat)] == [
        "DOORWood_Open Slow_ABC_LIB_00001.wav", "DOORWood_Open Slow_ABC_LIB_00002.wav", "x_AIRBlow_00001.wav"
    ]  # fmt: skip
    chunks = dict(chunks_of(second))
    assert chunks["bext"].startswith(b"A door, 5 = five.\0") and struct.unpack("<Q", chunks["bext"][338:346]) == (
        2 * RATE,
    )
    root = ElementTree.fromstring(chunks["iXML"])
    assert [root.findtext(place) for place in ("TAKE", "USER/SEED", "USER/FXNAME")] == ["2", "78", "Open Slow"]
    assert b"trainedAlgorithmicMedia" in chunks["_PMX"] and [name for name, _ in chunks_of(second)][0] == "bext"
    # A sound of which nobody says that a model made it is not marked.
    assert not {"bext", "iXML", "_PMX"} & dict(chunks_of(bare)).keys()
    assert "bext" in dict(chunks_of(told)) and "_PMX" not in dict(chunks_of(told))
    assert soundfile.info(second).subtype == "FLOAT" and str(server.output).encode() not in second.read_bytes()


def test_the_graph_is_in_the_file_and_beside_it(server):
    """Read back by another library."""
    graph = Studio()
    path = complete(server, graph.save(graph.value("takes"))).files("audio")[0]
    with av.open(str(path)) as file:
        inside = json.loads(file.metadata["comment"])
    assert inside["prompt"] == graph.nodes
    assert json.loads(path.with_suffix(".json").read_text("utf-8")) == graph.nodes


def test_without_metadata_the_graph_is_nowhere(flagged):
    graph = Studio()
    graph.save(graph.value("loud"), markers="0 here", filename_prefix="alone/test")
    (path,) = complete(flagged, graph).files("audio")
    assert markers_of(path) == [(0, "here")] and b"ICMT" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_loop_points_and_markers(server):
    graph = Studio()
    graph.save(graph.value("takes"), loop=True, loop_start=0.5, markers="1.5 thunder\n0 rain\n")
    labels = "0.000000\t0.500000\train\n\\\t100.0\t2000.0\n0,75\tthunder\n"
    graph.save(graph.value("loud"), loop=True, loop_end=0.75, markers=labels)
    path, *_, other = complete(server, graph).files("audio")
    assert loops_of(path) == [(8000, 31999)] and loops_of(other) == [(0, 11999)]
    assert markers_of(path) == [(0, "rain"), (24000, "thunder")]
    # What Audacity exports: a span has its end, too.
    assert markers_of(other) == [(0, "rain"), (12000, "thunder")] and b"rgn " in other.read_bytes()


def test_a_timeline_marks_what_is_heard_when(server):
    """At any rate, and where the beginning was cut off."""
    graph = Studio()
    rain, knocks = "Rain falls.", "Knocks on a door in the rain, five of them."
    clip = graph.loaders()[1]
    scene = dict(timeline=graph.encode(clip, f"<|caption|> {rain} <|sfx|> Rain."), fade=0.1)
    for caption, start, end, overlap in ((knocks, 0.6, 1.4, "replace"), ("Wind.", 1.9, 0.0, "both")):
        prompt = graph.encode(clip, f"<|caption|> {caption}")
        span = dict(conditioning=prompt, start=start, end=end, overlap=overlap)
        scene["timeline"] = graph.add("DashengTimeline", **span, **scene)
    trimmed = graph.convert(graph.finish(graph.value("takes")), "48000")
    graph.save(graph.value("takes"), timeline=scene["timeline"], markers="0.5 mine")
    graph.save(trimmed, timeline=scene["timeline"])
    graph.save(graph.pick(trimmed, number=4), timeline=prompt)
    graph.save(graph.pick(trimmed), timeline=graph.value("conditioning"))
    found = [markers_of(path) for path in complete(server, graph).files("audio")]
    knock = "Knocks on a door in the rain, five of th…"
    whole = [(0, rain), (8000, "mine"), (9600, knock), (22400, rain), (30400, "Rain falls. + Wind.")]
    assert found[:4] == [whole] * 4
    # 0.45, 0.2, 0 and 0.95 s are cut off: the last is a click at 1 s, behind the first knock.
    assert found[4:7] == [
        [(0, rain), (7200, knock), (45600, rain)],
        [(0, rain), (19200, knock)],
        [(sample * 3, name) for sample, name in whole if name != "mine"],
    ]
    assert found[7:] == [[(0, knock)], [(0, "Wind.")], [(0, "1")]]


PLACE = {"delay": 0.0, **{f"{name}_{n}": 0.0 for n in range(1, 5) for name in ("pan", "distance", "gain")}}


def test_every_node_of_sounds_passes_on_what_was_cut_off(server):
    """A prompt that began at 1.5 s is heard that much earlier behind each of our nodes, whichever came between."""
    graph = Studio()
    takes, seconds = graph.value("takes cut"), [1.25, 1.0, 1.5, 0.5]
    # The marker's second in each file; a mix begins where its bed does.
    cases = {
        "DashengTakes": (graph.add("DashengTakes", audio=takes), seconds),
        "DashengPickTake": (graph.pick(takes, number=4), [0.5]),
        "DashengFinish": (graph.finish(takes, **AS_IT_IS), seconds),
        "DashengConvert": (graph.convert(takes, "48000", "stereo"), seconds),
        "DashengMix": (graph.mix(takes, graph.value("loud"), at=0.1), seconds),
        "loop": (graph.convert(takes, "48000", "mono", loop=True), seconds),
        "pairs": (graph.convert(takes, "48000", "takes as left and right"), [1.25, 1.5]),
        "one bed": (graph.mix(graph.pick(takes), takes, at=0.0), [1.25] * 4),
        "trimmed again": (graph.pick(graph.finish(takes)), [0.8]),
        "DashengPlace": (
            graph.add("DashengPlace", bed=takes, effect=graph.value("loud"), hits="2", effect_db=0.0),
            seconds,
        ),
        "DashengPlaceInStereo": (graph.add("DashengPlaceInStereo", audio_1=takes, **PLACE), [1.25, 1.0, 1.5, 0.5]),
    }
    model, clip, vae = graph.loaders()
    wind = graph.encode(clip, "<|caption|> Wind. <|env|> Wind.")
    stems = dict(model=model, clip=clip, vae=vae, conditioning=wind, seed=0, rest=True, retake=False, audio=takes)
    rest = graph.add("DashengStems", **stems)
    cases["DashengStems"] = (lambda output=0: rest(4), seconds)
    ours = {
        name
        for name, info in server.get("/object_info").items()
        if info["category"].startswith("audio/dasheng")
        and "AUDIO" in info["output"]
        and "audio" in str(info["input"]).lower()
    }
    assert ours - {"DashengDecode", "DashengVariations"} <= {*cases}
    timeline = graph.spans(("Rain.", 0.0, 0.0), ("Wind.", 1.5, 0.0), fade=0.1)
    for audio, _ in cases.values():
        graph.save(audio, timeline=timeline)
    result = complete(server, graph)
    found = [
        [sample / rate for sample, name in markers_of(path) if name == "Wind."]
        for path, (_, rate) in zip(result.files("audio"), result.audio(), strict=True)
    ]
    assert found == [[second] for _, seconds in cases.values() for second in seconds]


# ---- pictures


def pictures(server, graph: Studio, *drawn) -> list[np.ndarray]:
    for images in drawn:
        graph.add("SaveImage", images=images, filename_prefix="x")
    return [np.asarray(Image.open(path)).astype(int) for path in complete(server, graph).files("images")]


def test_takes_are_drawn_on_one_scale(server):
    graph = Studio()
    sounds = graph.finish(graph.value("takes")), graph.value("loud"), graph.value("at 2 kHz")
    trimmed, loud, _ = pictures(server, graph, *(graph.draw(sound, 800, 240) for sound in sounds))
    # 1.1 s of the 2 s that the silent take has, which is dark.
    row = trimmed[90:214]
    assert (row[:, 52 + 420 : 792] == row[0, 795]).all() and row[:, 300].sum(axis=1).max() > 350
    assert trimmed[480 + 90 : 480 + 214, 54:790].sum(axis=2).max() < 200
    # Full scale has its lines, also above what is quieter.
    limits = [y for y in range(22, 86) if (loud[y, [60, 790]] == (150, 60, 60)).all()]
    assert limits == [25, 83]


def test_a_spectrogram_shows_time_and_frequency(server):
    """A tone of 1 kHz in the middle half of take 1: bright there, at its height, and nowhere else in the row."""
    graph = Studio()
    (picture,) = pictures(server, graph, graph.draw(graph.value("takes"), 800, 240))
    assert picture.shape == (960, 800, 3)
    # The plot lies between 52 pixels and 8; the spectrogram between two thirds and the axis.
    bright = picture[:240].sum(axis=2)[90:214, 54:790]
    inside, outside = bright[:, 200:540], np.concatenate([bright[:, :150], bright[:, 600:]], axis=1)
    height = inside.mean(axis=1)
    share = math.log10(1 + 1000 / 700) / math.log10(1 + 8000 / 700)
    assert abs((len(height) - np.argmax(height)) / len(height) - share) < 0.05
    assert height.max() > 350 and outside.max() < 200
    # The axis of time: a line at each fifth of a second.
    assert (picture[218] == (205, 205, 215)).all(axis=1).nonzero()[0].tolist() == [52 + 74 * i for i in range(10)]


def test_many_takes_are_drawn_side_by_side_and_a_timeline_below_each(server):
    graph = Studio()
    timeline = graph.spans(("Rain.", 0.0, 1.0), ("Wind.", 1.0, 0.0), ("Knocks.", 0.5, 1.5))
    takes = graph.add("DashengTakes", audio=graph.value("takes"))
    drawn = graph.draw(takes, 512, 400), graph.draw(graph.value("takes"), 800, 240, timeline=timeline)
    small, lanes, plain = pictures(server, graph, *drawn, graph.draw(graph.value("takes"), 800, 240))
    # Four takes, two by two.
    assert [picture.shape for picture in (small, lanes, plain)] == [(800, 512, 3), (960, 800, 3), (960, 800, 3)]
    # Two lanes of 16 pixels above the axis of the first take, 2 s in 740 pixels: rain and wind, which begins where rain
    # ends, and knocks, which overlaps both.
    upper, lower = lanes[188, 52:792], lanes[204, 52:792]
    rain, wind, knocks = upper[360], upper[730], lower[380]
    assert len({tuple(colour) for colour in (rain, wind, knocks)}) == 3
    is_rain, is_wind = ((upper == colour).all(axis=1).nonzero()[0] for colour in (rain, wind))
    assert (is_rain.min(), is_rain.max(), is_wind.min(), is_wind.max()) == (0, 368, 370, 738)
    is_knocks = (lower == knocks).all(axis=1).nonzero()[0]
    assert abs(is_knocks.min() - 185) <= 1 and abs(is_knocks.max() - 553) <= 1
    # A line where the wind begins.
    assert [(picture[30:180, 52 + 370] == (170, 170, 180)).all() for picture in (lanes, plain)] == [True, False]


# ---- refusals: what a graph ends with, and the value or the remedy that is named


def stuck(name, **options):
    return lambda g: g.show(g.pick(g.value(name), **options)(1))


def no_sound(node, value="None", place="audio", **options):
    return lambda g: g.show(g.add(node, **{place: g.value(value)}, **options))


REFUSED = {
    "standing still": (stuck("stuck at 0.5"), "take 1: swing -inf dBFS, DC offset 0.5"),
    "still, offset allowed": (stuck("stuck at -1", max_offset=1.0), "(take 1: swing -inf dBFS): pick another take"),
    "off": (stuck("off by 0.3"), "(take 1: DC offset 0.3): pick another take"),
    "loudness of six": (stuck("six channels", pick="highest"), "No take has the measure loudness"),
    "silent take": (stuck("takes", number=3), "take 3: peak -inf dBFS"),
    "number": (stuck("takes", number=5), "number is 5, expected a whole number from 1 to 4"),
    "all refused": (stuck("takes", pick="highest", max_silence=0.0), "take 1: silence 50%; take 2: silence 50%;"),
    "no words": (stuck("takes", pick="highest", measure="words per second"), "the measure words per second"),
    "no transcript": (stuck("takes", transcript="<|rain|> One two."), "expected <|caption|>"),
    "numbers": (lambda g: g.show(g.pick(number=g.many(1, 2))(1)), "number is a list of 2 values"),
    "widths": (lambda g: g.show(g.draw(g.value("takes"), width=g.many(300, 400))), "width is a list of 2 values"),
    "no pictures": (lambda g: g.show(g.draw(g.many())), "audio is an empty list"),
    "no takes": (lambda g: g.show(g.add("DashengTakes", audio=g.many())(1)), "audio is an empty list"),
    "no files": (lambda g: g.save(g.many()), "audio is an empty list"),
    "gigabytes": (lambda g: g.show(g.draw(g.value("a thousand takes"), 1024, 2048)), "at most 100,000,000"),
    "left alone": (
        lambda g: g.show(g.convert(g.pick(), channels="takes as left and right")), "1 takes cannot be left and right",
    ),
    "unlike takes": (lambda g: g.show(g.mix(g.value("takes"), g.value("pair"))), "4 takes, the layer 2"),
    "loop": (lambda g: g.save(g.value("takes"), loop=True, loop_start=1.0, loop_end=0.5), "The loop from 1 to 0.5 s"),
    "marker behind": (lambda g: g.save(g.value("takes"), markers="3 thunder"), "'thunder' at 3 s"),
    "span behind": (lambda g: g.save(g.value("takes"), markers="1\t3\tthunder"), "'thunder' at 1 s ends behind"),
    "marker without time": (lambda g: g.save(g.value("takes"), markers="thunder"), "'thunder'"),
    "no metadata": (lambda g: g.save(g.value("takes"), metadata="door"), "The metadata 'door' is no name and text"),
    "no UCS": (lambda g: g.save(g.value("takes"), metadata="CatID = door"), "CatID is 'door', expected capitals"),
    "no CatID": (lambda g: g.save(g.value("takes"), filename_prefix="a/%CatID%"), "filename_prefix has %CatID%, and metadata"),
    "no timeline": (lambda g: g.save(g.value("takes"), timeline=g.value("conditioning []")), "timeline is an empty list"),
    "None taken": (no_sound("DashengTakes"), "audio is None, expected a sound"),
    "None finished": (no_sound("DashengFinish", **FINISH), "audio is None"),
    "None saved": (lambda g: g.save(g.value("None")), "audio is None"),
    "NaN drawn": (no_sound("DashengSpectrogram", "waveform NaN", width=256, row_height=128), "not numbers"),
    "NaN mixed": (lambda g: g.show(g.mix(g.value("waveform NaN"), g.value("takes"))), "not numbers"),
}  # fmt: skip
# And names where no file can be; the last reads more of the graph than a name holds.
PLACES = {
    "../x": "'../x', expected a place in ComfyUI's output folder",
    "/tmp/x": "'/tmp/x', expected a place in ComfyUI's output folder",
    "%seed%" * 37: "File name too long",
    "%a.b%/" * 10**5: "filename_prefix has 600000 letters, expected at most 2000",
    "": "filename_prefix is ''",
    "rain/..": "filename_prefix is 'rain/..'",
    "/".join(["%Long.note%"] * 150): "expected at most 225",
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_by_name_and_nothing_is_written(server, name):
    build, said = REFUSED[name]
    before = len(list(server.output.rglob("*.wav")))
    assert said in refusal(server, build(Studio()))
    assert len(list(server.output.rglob("*.wav"))) == before


@pytest.mark.parametrize("prefix", PLACES, ids=lambda text: text[:20])
def test_a_place_where_no_file_can_be_is_refused(server, prefix):
    before = len(list(server.output.rglob("*.wav")))
    graph = Studio()
    graph.nodes["91"] = {"class_type": "PreviewAny", "inputs": {"note": "a" * 10**6}, "_meta": {"title": "Long"}}
    graph.save(graph.value("takes"), filename_prefix=graph.many("fine/x", prefix))
    assert PLACES[prefix] in refusal(server, graph)
    assert len(list(server.output.rglob("*.wav"))) == before
