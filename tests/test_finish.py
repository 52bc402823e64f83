"""The nodes behind Dasheng Decode in a real ComfyUI server: takes, finishing, mixing, saving, drawing."""

import json
import math
import os
import re
import time

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from conftest import open_server
from dasheng_core.delivery.measures import loudness, true_peak
from graphs import Graph, Run, refusal, run
from riff import loops_of, markers_of

PROMPT = "<|caption|> A cat meowing softly."
RATE = 16000
FINISH = dict(trim=True, trim_below=-60.0, padding=0.05, fade_in=0.01, fade_out=0.05, level="as it is", target=-23.0)
AS_IT_IS = {**FINISH, "trim": False, "fade_in": 0.0, "fade_out": 0.0}
SAVE = dict(filename_prefix="wav/test", bit_depth="32 bit float", loop=False, loop_start=0.0, loop_end=0.0, markers="")
PICK = dict(pick="number", number=1, measure="loudness", min_peak=-60.0, min_crest=0.0, max_silence=1.0, max_clipped=-1)


class Studio(Graph):
    def value(self, name="takes"):
        return self.add("ProbeValue", name=name)

    def save(self, audio, **options):
        return self.add("DashengSaveWAV", audio=audio, **{**SAVE, **options})

    def finish(self, audio, **options):
        return self.add("DashengFinish", audio=audio, **{**FINISH, **options})

    def pick(self, audio, **options):
        return self.add("DashengPickTake", audio=audio, **{**PICK, **options})

    def sampled(self, seed=40, batch_size=3):
        model, clip, self.vae = self.loaders()
        latent = self.add("EmptyDashengLatentAudio", seconds=0.6, batch_size=batch_size)
        return self.sample(model, self.encode(clip, PROMPT), latent, seed=seed, steps=2)

    def decode(self, latent):
        return self.add("DashengDecode", vae=self.vae, latent=latent)

    def text(self, source):
        self.add("PreviewAny", source=source)


def saved(server, graph: Graph, audio, **options) -> list[torch.Tensor]:
    """``[C, L]`` of each file that Dasheng Save WAV makes of a sound."""
    graph.save(audio, **options)
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    return [samples.T for samples, _ in result.audio()]


def previews(result: Run) -> list[str]:
    """What each Preview as Text got, in the order of the nodes."""
    return [
        result.outputs[node]["text"][0] for node in sorted(result.outputs, key=int) if "text" in result.outputs[node]
    ]


def rows_of(result: Run) -> list[list[dict]]:
    """The rows of takes with players, node by node, in the order of the nodes."""
    found = [result.outputs[node].get("dasheng_takes") for node in sorted(result.outputs, key=int)]
    return [json.loads(text) for texts in found if texts for text in texts]


def shown(result: Run) -> list[str]:
    """What stays at nodes, in their order."""
    return [text for node in sorted(result.outputs, key=int) for text in result.outputs[node].get("dasheng_text", [])]


def original(server) -> list[torch.Tensor]:
    graph = Studio()
    return saved(server, graph, graph.value())


def test_takes_become_a_list_that_knows_its_seeds(server):
    graph = Studio()
    takes = graph.add("DashengTakes", audio=graph.decode(graph.sampled(seed=40)))
    graph.text(takes(1))
    graph.save(takes(0), filename_prefix="seeds/cat_%seed%")
    graph.add("PreviewAudio", audio=takes(0))
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    assert previews(result) == ["40", "41", "42"] or json.loads(previews(result)[0]) == 40
    (rows,) = rows_of(result)
    assert [(row["number"], row["seed"], row["length"]) for row in rows] == [
        (take, str(39 + take), "0.60 s") for take in (1, 2, 3)
    ]
    assert all(re.fullmatch(r"-[\d.]+ LUFS", row["loudness"]) for row in rows)
    sounds = [samples for samples, _ in result.audio()][:3]
    for row, saved_sound in zip(rows, sounds, strict=True):
        file = row["file"]
        assert file["type"] == "temp"
        played, rate = soundfile.read(server.temp / file["filename"], dtype="float32", always_2d=True)
        assert rate == RATE and (torch.from_numpy(played) - saved_sound).abs().max() < 2**-15
    names = [path.name for path in result.files("audio") if path.parent.name == "seeds"]
    assert [re.match(r"cat_(\d+)_", name)[1] for name in names] == ["40", "41", "42"]


def test_a_take_keeps_its_seed_through_other_nodes_and_loses_it_when_changed(server):
    """Cut out of the batch, it is take 42; made quieter, nobody's."""
    graph = Studio()
    latent = graph.sampled(seed=40)
    cut = graph.add("LatentFromBatch", samples=latent, batch_index=2, length=1)
    joined = graph.add("LatentBatch", samples1=cut, samples2=graph.sampled(seed=7, batch_size=1))
    sounds = [
        graph.decode(samples) for samples in (cut, graph.add("LatentMultiply", samples=latent, multiplier=0.5), joined)
    ]
    wide = dict(sample_rate="as it is", channels="takes as left and right")
    # A node has taken takes out, and two are one.
    sounds += [graph.value("takes with one seed"), graph.add("DashengConvert", audio=sounds[2], **wide)]
    for audio in sounds:
        graph.text(graph.add("DashengTakes", audio=audio)(1))
    seeds = [[row["seed"] for row in rows] for rows in rows_of(run(server, graph))]
    assert seeds == [["42"], ["not known"] * 3, ["42", "not known"], ["not known"] * 4, ["not known"]]


def test_a_take_is_picked_by_number_or_measure(server):
    graph = Studio()
    audio = graph.value()
    for options in (
        dict(number=2),
        dict(pick="highest", measure="clipped"),
        dict(pick="lowest", measure="silence"),
        dict(pick="highest", measure="crest"),
        dict(pick="lowest", measure="peak", min_peak=-25.0),
        dict(pick="highest", measure="loudness", max_clipped=0, max_silence=0.9),
        dict(pick="lowest", measure="crest", min_crest=20.0),
    ):
        graph.text(graph.pick(audio, **options)(2))
    assert [int(text) for text in previews(run(server, graph))] == [2, 2, 1, 4, 1, 1, 4]


def test_the_table_of_measures(server):
    graph = Studio()
    picked = graph.pick(graph.value(), measure="peak", min_crest=20.0, number=4, transcript="one two three")
    graph.text(picked(1))
    graph.text(graph.pick(graph.value(), transcript="<|caption|> A robot speaks. <|asr|> One two.")(1))
    table, other = previews(run(server, graph))
    header, units, *rows = [row.split("\t") for row in table.splitlines()]
    assert other.splitlines()[2].split("\t")[8] == "1.00", "words per second"
    assert header[:8] == ["take", "seconds", "silence", "peak", "true pk", "clipped", "crest", "LUFS"]
    assert dict(zip(header, units, strict=True))["true pk"] == "dBTP" and units[7:9] == ["LUFS", ""]
    assert [row[0] for row in rows] == ["2", "4", "1", "3"], "by peak, highest first"
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert table["1"]["peak"] == "-20.00" and table["3"]["peak"] == "-inf" and table["3"]["silence"] == "1.00"
    assert int(table["2"]["clipped"]) > 1000 and table["4"]["words/s"] == "1.50"
    assert table["1"]["refused"] == "crest 6.02 dB" and "peak -inf dBFS" in table["3"]["refused"]
    assert abs(float(table["1"]["LUFS"]) - loudness(original(server)[0], RATE)) < 0.01


@pytest.mark.parametrize(
    "sound, said",
    [
        ("stuck at 0.5", "take 1: swing -inf dBFS, DC offset 0.5"),
        ("stuck at -1", "take 1: swing -inf dBFS, DC offset 1"),
        ("off by 0.3", "take 1: DC offset 0.3"),
    ],
)
def test_what_stands_still_or_off_is_refused(server, sound, said):
    """By default, as silence is; an offset alone may be taken all the same."""
    graph = Studio()
    graph.text(graph.pick(graph.value(sound))(1))
    assert f"Refused by the thresholds ({said}): pick another take" in refusal(server, graph)
    graph = Studio()
    graph.text(graph.pick(graph.value(sound), max_offset=1.0)(1))
    if "swing" in said:
        assert "(take 1: swing -inf dBFS)" in refusal(server, graph)
    else:
        assert run(server, graph).events[-1][0] == "execution_success"


def test_six_channels_are_picked_by_number(server):
    graph = Studio()
    graph.text(graph.pick(graph.value("six channels"))(1))
    assert previews(run(server, graph))[0].splitlines()[2].split("\t")[7] == "-"
    graph = Studio()
    graph.text(graph.pick(graph.value("six channels"), pick="highest")(1))
    assert "No take has the measure loudness: loudness needs 0.4 s of one or two channels" in refusal(server, graph)


def test_sound_of_a_low_rate_is_finished_and_drawn(server):
    graph = Studio()
    finished = graph.finish(graph.value("at 2 kHz"), level="loudness", **{"trim": False})
    graph.add("PreviewImage", images=graph.add("DashengSpectrogram", audio=finished, width=256, row_height=128))
    (clip,) = saved(server, graph, finished)
    assert loudness(clip, 2000) == pytest.approx(-23, abs=0.02)


def test_a_list_beside_the_sounds_has_a_value_for_each(server):
    """ComfyUI's rule: the shorter list repeats its last."""
    graph = Studio()
    takes = graph.add("DashengTakes", audio=graph.value())
    many = lambda *values: graph.add("ProbeList", values=json.dumps(values))  # noqa: E731
    cases = {
        "DashengSaveWAV": [
            (takes, dict(filename_prefix=many("list/door", "list/rain"), markers=many("1 a", "", "0.5 b"))),
            # A lone sound under each name.
            (graph.value("loud"), dict(filename_prefix=many("list/x", "list/y"), bit_depth=many("16 bit", "24 bit"))),
        ],
        "DashengFinish": [(graph.value("loud"), {**AS_IT_IS, "level": "true peak", "target": many(-20.0, -10.0)})],
        "DashengConvert": [
            (
                takes,
                dict(sample_rate=many("48000", "as it is"), channels=many("mono", "takes as left and right", "stereo")),
            )
        ],
        "DashengPickTake": [(takes, {**PICK, "transcript": many("one", "one two"), "min_peak": many(-60, -120)})],
    }
    info = server.get("/object_info")
    ours = {name for name, node in info.items() if name.startswith("Dasheng") and node.get("input_is_list")}
    # These have one thing to say of all sounds: they refuse a list.
    assert ours == {*cases, "DashengTakes", "DashengSpectrogram"} or not any(
        "input_is_list" in n for n in info.values()
    )
    for audio, options in cases["DashengSaveWAV"]:
        graph.save(audio, **options)
    for name in ("DashengFinish", "DashengConvert"):
        for audio, options in cases[name]:
            if name == "DashengConvert":
                options["channels"] = many("mono", "mono", "stereo")
            graph.save(graph.add(name, audio=audio, **options), filename_prefix="list/made")
    for audio, options in cases["DashengPickTake"]:
        graph.text(graph.add("DashengPickTake", audio=audio, **options)(1))
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    files, sounds = result.files("audio"), result.audio()
    named = ["door_00001_", "rain_00001_", "rain_00002_", "rain_00003_", "x_00001_", "y_00001_"]
    assert [path.stem for path in files[:6]] == named
    assert [markers_of(path) for path in files[:4]] == [[(16000, "a")], [], [(8000, "b")], [(8000, "b")]]
    assert [soundfile.info(path).subtype for path in files[4:6]] == ["PCM_16", "PCM_24"]
    assert [round(true_peak(clip.T, rate)) for clip, rate in sounds[6:8]] == [-20, -10]
    assert [(clip.shape[1], rate) for clip, rate in sounds[8:]] == [(1, 48000), (1, 16000), (2, 16000), (2, 16000)]
    rows = sorted(row.split("\t") for row in previews(result)[0].splitlines()[2:])
    assert [row[8] for row in rows] == ["0.50", "1.00", "1.00", "1.00"], "words per second"


@pytest.mark.parametrize(
    "node, options, said",
    [
        ("DashengPickTake", dict(number="[1, 2]"), "number is a list of 2 values, expected one"),
        ("DashengSpectrogram", dict(width="[300, 400]"), "width is a list of 2 values, expected one"),
        ("DashengSpectrogram", dict(audio="[]"), "audio is an empty list, expected at least one value"),
        ("DashengTakes", dict(audio="[]"), "audio is an empty list"),
        ("DashengSaveWAV", dict(audio="[]"), "audio is an empty list"),
    ],
)
def test_lists_that_a_node_cannot_use_are_refused(server, node, options, said):
    graph = Studio()
    inputs = {
        "DashengPickTake": PICK,
        "DashengSaveWAV": SAVE,
        "DashengSpectrogram": dict(width=256, row_height=128),
    }.get(node, {})
    wired = {name: graph.add("ProbeList", values=values) for name, values in options.items()}
    made = graph.add(node, **{"audio": graph.value(), **inputs, **wired})
    if node != "DashengSaveWAV":
        graph.add("PreviewAny", source=made)
    assert said in refusal(server, graph)


def test_a_seed_names_a_folder_too(server):
    graph = Studio()
    graph.save(graph.decode(graph.sampled(seed=500, batch_size=2)), filename_prefix="%seed%/rain_%seed%")
    paths = run(server, graph).files("audio")
    assert [path.relative_to(server.output).as_posix() for path in paths] == [
        "500/rain_500_00001_.wav",
        "501/rain_501_00001_.wav",
    ]


@pytest.mark.parametrize(
    "prefix, said",
    [
        ("../x", "'../x', expected a place in ComfyUI's output folder"),
        ("/tmp/x", "'/tmp/x', expected a place in ComfyUI's output folder"),
        ("%seed%" * 37, "where no file can be (File name too long)"),
        ("%a.b%/" * 10**5, "filename_prefix has 600000 letters, expected at most 2000: shorten it"),
        ("", "filename_prefix is '', which ends without a name: write a folder and the beginning of a name"),
        ("rain/..", "filename_prefix is 'rain/..', which ends without a name"),
    ],
    ids=lambda text: text[:40],
)
def test_a_place_where_no_file_can_be_is_refused(server, prefix, said):
    before = len(list(server.output.rglob("*.wav")))
    graph = Studio()
    names = graph.add("ProbeList", values=json.dumps(["fine/x", prefix]))
    graph.save(graph.value(), filename_prefix=names)
    assert said in refusal(server, graph)
    assert len(list(server.output.rglob("*.wav"))) == before


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(number=3), "Refused by the thresholds (take 3: peak -inf dBFS)"),
        (dict(number=5), "number is 5, expected a whole number from 1 to 4"),
        (dict(pick="highest", max_silence=0.0), "Refused by the thresholds (take 1: silence 50%; take 2: silence 50%;"),
        (dict(pick="highest", measure="words per second"), "No take has the measure words per second"),
        (dict(transcript="<|rain|> One two."), "The prompt starts with '<|rain|> One two.', expected <|caption|>"),
    ],
)
def test_what_cannot_be_picked_is_said(server, options, said):
    graph = Studio()
    graph.text(graph.pick(graph.value(), **options)(1))
    assert said in refusal(server, graph)


def test_each_take_is_finished_alone(server):
    graph = Studio()
    finished = graph.finish(graph.value(), level="loudness", target=-23.0)
    graph.text(finished(1))
    clips = saved(server, graph, finished(0))
    assert [clip.shape[-1] for clip in clips] == [16000 + 1600, 16000 + 1600, 32000, 20 + 1740]
    for clip in clips[:2]:
        assert loudness(clip, RATE) == pytest.approx(-23, abs=0.02)
    assert clips[2].abs().max() == 0


def test_the_sound_ends_where_threshold_and_fades_say(server):
    graph = Studio()
    # The tone of the first take is 20 dB below full scale.
    found = saved(server, graph, graph.pick(graph.finish(graph.value(), trim_below=-15.0), number=1))
    assert found[0].shape[-1] == 32000
    graph = Studio()
    (clip,) = saved(server, graph, graph.finish(graph.value("loud"), **{**AS_IT_IS, "fade_in": 0.5}))
    assert clip[0, 0] == 0 and clip[0, 4000] == pytest.approx(0.45, abs=1e-3) and clip[0, -1] == pytest.approx(0.9)


def test_the_node_shows_its_report_and_what_would_clip(server):
    graph = Studio()
    finished = graph.finish(graph.value(), level="loudness", target=-1.0)
    graph.text(finished(1))
    result = run(server, graph)
    (report,) = previews(result)
    assert report in shown(result)
    lines = report.splitlines()
    assert lines[0].startswith("take 1: 1.10 s, 0.90 s cut, -1.0 LUFS (+") and "WOULD CLIP: turn it down by" in lines[0]
    assert lines[2] == "take 3: 2.00 s, 0.00 s cut, silent, level left"
    assert "too short for a loudness" in lines[3]


def test_as_it_is_means_the_same_samples(server):
    graph = Studio()
    for found, expected in zip(
        saved(server, graph, graph.finish(graph.value(), **AS_IT_IS)), original(server), strict=True
    ):
        assert torch.equal(found, expected)


def test_rate_and_channels(server):
    graph, rate = Studio(), 44100
    converted = graph.add("DashengConvert", audio=graph.value(), sample_rate=str(rate), channels="stereo")
    graph.save(converted)
    sounds = run(server, graph).audio()
    assert [(samples.shape, found) for samples, found in sounds] == [((2 * rate, 2), rate)] * 4
    clip = sounds[0][0].T
    assert torch.equal(clip[0], clip[1])
    before = original(server)[0]
    assert loudness(clip, rate) - loudness(before, RATE) == pytest.approx(3.01, abs=0.05)
    assert abs(true_peak(clip, rate) - true_peak(before, RATE)) < 0.1


def test_one_take_alone_is_not_left_and_right(server):
    graph = Studio()
    one = graph.pick(graph.value())
    graph.save(graph.add("DashengConvert", audio=one, sample_rate="as it is", channels="takes as left and right"))
    assert "1 takes cannot be left and right of one another, expected an even number" in refusal(server, graph)


def test_a_mix_keeps_levels_and_says_what_would_clip(server):
    """ComfyUI's Audio Merge turns the same sum down."""
    graph = Studio()
    bed, layer = graph.value(), graph.value("loud")
    mixed = graph.add("DashengMix", bed=bed, layer=layer, at=0.5, layer_db=-6.0)
    graph.text(mixed(1))
    graph.save(mixed)
    result = run(server, graph)
    lines = previews(result)[0].splitlines()
    clip = [line for line in lines if "WOULD CLIP" in line]
    assert clip == [lines[1], lines[3]]
    assert [text for text in shown(result) if text.splitlines() == [*clip, lines[0], lines[2]]]
    for (samples, rate), clip in zip(result.audio(), original(server), strict=True):
        expected = clip.clone()
        expected[:, 8000:24000] += 0.9 * 10 ** (-6 / 20)
        assert rate == RATE
        torch.testing.assert_close(samples.T, expected)


def test_a_mix_of_other_rates_and_channels(server):
    graph = Studio()
    mixed = graph.add(
        "DashengMix", bed=graph.value("loud"), layer=graph.value("stereo at 48 kHz"), at=0.5, layer_db=0.0
    )
    graph.save(mixed)
    ((samples, rate),) = run(server, graph).audio()
    assert rate == 48000 and samples.shape == (72000, 2)
    middle = samples[30000:40000].mean(dim=0)
    assert middle[0] == pytest.approx(1.4, abs=0.01) and middle[1] == pytest.approx(0.9, abs=0.01)


def test_takes_that_do_not_match_are_not_mixed(server):
    graph = Studio()
    graph.save(graph.add("DashengMix", bed=graph.value(), layer=graph.value("pair"), at=0.0, layer_db=0.0))
    assert "The bed has 4 takes, the layer 2, expected as many, or one" in refusal(server, graph)


def test_what_16_bits_clip_is_said_at_the_node(server):
    graph = Studio()
    graph.save(graph.value(), bit_depth="16 bit")
    result = run(server, graph)
    for path, expected in zip(result.files("audio"), original(server), strict=True):
        samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        assert (samples - expected[0].clamp(-1, 1)).abs().max() <= 1.6 * 2**-15
    assert "The peak is 1.25 times full scale and is clipped" in " ".join(shown(result))


def test_nothing_is_overwritten_and_takes_are_numbered(server):
    names = []
    for _ in range(2):
        graph = Studio()
        graph.save(graph.value(), filename_prefix="many/rain")
        names += [path.name for path in run(server, graph).files("audio")]
        server.post("/free", {"free_memory": True})
    assert names == [f"rain_{number:05}_.wav" for number in range(1, 9)]
    # Nor is a graph without its sound.
    (server.output / "many" / "rain_00009_.json").write_text("{}")
    graph = Studio()
    graph.save(graph.value("loud"), filename_prefix="many/rain")
    (path,) = run(server, graph).files("audio")
    assert path.name == "rain_00010_.wav"
    # ComfyUI does not count files with a name of their own.
    (server.output / "many" / "unknown_00001_.json").write_text("{}")
    graph = Studio()
    graph.save(graph.value("loud"), filename_prefix="many/%seed%")
    (path,) = run(server, graph).files("audio")
    assert path.name == "unknown_00002_.wav"
    folder = server.output / "many"
    assert len(list(folder.iterdir())) == 22 and not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_a_name_by_template(server):
    graph = Studio()
    audio = graph.decode(graph.sampled(seed=77, batch_size=1))
    odd = graph.add("PreviewAny", source="x", note='a/b\\c:d*e?f"g<h>i|j')
    graph.nodes[odd()[0]]["_meta"] = {"title": "Odd name"}
    prefix = (
        "named/%year%_%date:yyyy-MM-dd%_%DashengSampler.steps%_%seed%_%Nobody.seed%_%Odd name.note%_%date:yy.hh.mm.ss%"
    )
    before = time.time()
    graph.save(audio, filename_prefix=prefix)
    (path,) = run(server, graph).files("audio")
    assert re.match(r"\d{4}_\d{4}-\d\d-\d\d_2_77_%Nobody\.seed%_a_b_c_d_e_f_g_h_i_j_\d", path.stem), path.stem
    times = range(int(before), int(time.time()) + 1)
    assert path.stem.split("_")[-3] in [time.strftime("%y.%H.%M.%S", time.localtime(second)) for second in times]


def test_folders_as_windows_writes_them(server):
    graph = Studio()
    graph.save(graph.value("ring"), filename_prefix="from\\windows\\rain")
    (path,) = run(server, graph).files("audio")
    assert path.relative_to(server.output).as_posix() == "from/windows/rain_00001_.wav"


def test_a_template_reads_any_graph_and_little_of_a_long_text(server):
    graph = Studio()
    graph.nodes["90"] = {"class_type": "PreviewAny", "inputs": {}, "_meta": None}
    graph.nodes["91"] = {"class_type": "PreviewAny", "inputs": {"note": "a" * 10**6}, "_meta": {"title": "Long"}}
    audio = graph.value("ring")
    graph.save(audio, filename_prefix="/".join(["%Long.note%"] * 150))
    assert "has 226 bytes, expected at most 225" in refusal(server, graph)


def test_the_graph_is_in_the_file_and_beside_it(server):
    """Read back by another library."""
    import av

    graph = Studio()
    graph.save(graph.value())
    path = run(server, graph).files("audio")[0]
    with av.open(str(path)) as file:
        inside = json.loads(file.metadata["comment"])
    assert inside["prompt"] == graph.nodes
    assert json.loads(path.with_suffix(".json").read_text("utf-8")) == graph.nodes


def test_without_metadata_the_graph_is_nowhere(tmp_path):
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    graph = Studio()
    graph.save(graph.value("loud"), markers="0 here")
    with open_server(tmp_path, "--disable-metadata") as server:
        (path,) = run(server, graph).files("audio")
    assert markers_of(path) == [(0, "here")] and b"ICMT" not in path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_loop_points_and_markers(server):
    graph = Studio()
    graph.save(graph.value(), loop=True, loop_start=0.5, markers="1.5 thunder\n0 rain\n")
    labels = "0.000000\t0.500000\train\n\\\t100.0\t2000.0\n0,75\tthunder\n"
    graph.save(graph.value("loud"), loop=True, loop_end=0.75, markers=labels)
    path, *_, other = run(server, graph).files("audio")
    assert loops_of(path) == [(8000, 31999)] and loops_of(other) == [(0, 11999)]
    assert markers_of(path) == [(0, "rain"), (24000, "thunder")]
    # What Audacity exports: a stretch has its end, too.
    assert markers_of(other) == [(0, "rain"), (12000, "thunder")] and b"rgn " in other.read_bytes()


def test_a_loop_has_no_seam_at_another_rate(server):
    """Against the same waves at 48 kHz; without the switch its ends fade into silence, which clicks."""
    turn = torch.arange(19200) * (2 * math.pi / 19200)
    expected = 0.5 * torch.cos(20 * turn) + 0.3 * torch.cos(1001 * turn)
    for loop in (True, False):
        graph = Studio()
        convert = dict(audio=graph.value("ring"), sample_rate="48000", channels="as it is", loop=loop)
        level = graph.finish(graph.add("DashengConvert", **convert), **{**AS_IT_IS, "level": "true peak"})
        graph.save(level, loop=True, loop_start=0.1)
        result = run(server, graph)
        ((samples, rate),) = result.audio()
        assert rate == 48000 and samples.shape == (19200, 1)
        gain = samples[100:-100, 0] @ expected[100:-100] / expected[100:-100].square().sum()
        error = (samples[:, 0] / gain - expected).abs()
        assert error[100:-100].max() < 1e-3
        assert error.max() < 1e-3 if loop else error.max() > 0.05
        assert loops_of(result.files("audio")[0]) == [(4800, 19199)]


def test_a_timeline_marks_what_is_heard_when(server):
    """At any rate, and where the beginning was cut off."""
    graph = Studio()
    _, clip, _ = graph.loaders()
    stretch = dict(fade=0.1, overlap="replace", timeline=graph.encode(clip, "<|caption|> Rain falls. <|sfx|> Rain."))
    knocks = graph.encode(clip, "<|caption|> Knocks on a door in the rain, five of them.")
    stretch["timeline"] = graph.add("DashengTimeline", conditioning=knocks, start=0.6, end=1.4, **stretch)
    stretch["overlap"] = "both"
    wind = graph.encode(clip, "<|caption|> Wind.")
    timeline = graph.add("DashengTimeline", conditioning=wind, start=1.9, end=0.0, **stretch)
    trimmed = graph.add("DashengConvert", audio=graph.finish(graph.value()), sample_rate="48000", channels="as it is")
    graph.save(graph.value(), timeline=timeline, markers="0.5 mine")
    graph.save(trimmed, timeline=timeline)
    graph.save(graph.pick(trimmed, number=4), timeline=wind)
    graph.save(graph.pick(trimmed, number=1), timeline=graph.value("conditioning"))
    found = [markers_of(path) for path in run(server, graph).files("audio")]
    rain, knock = "Rain falls.", "Knocks on a door in the rain, five of th…"
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
    takes, layer = graph.value("takes cut"), graph.value("loud")
    convert = dict(sample_rate="48000", audio=takes)
    # The marker's second in each file; a mix begins where its bed does.
    cases = {
        "DashengTakes": (graph.add("DashengTakes", audio=takes), [1.25, 1.0, 1.5, 0.5]),
        "DashengPickTake": (graph.pick(takes, number=4), [0.5]),
        "DashengFinish": (graph.finish(takes, **AS_IT_IS), [1.25, 1.0, 1.5, 0.5]),
        "DashengConvert": (graph.add("DashengConvert", channels="stereo", **convert), [1.25, 1.0, 1.5, 0.5]),
        "DashengMix": (graph.add("DashengMix", bed=takes, layer=layer, at=0.1, layer_db=0.0), [1.25, 1.0, 1.5, 0.5]),
        "loop": (graph.add("DashengConvert", channels="mono", loop=True, **convert), [1.25, 1.0, 1.5, 0.5]),
        "pairs": (graph.add("DashengConvert", channels="takes as left and right", **convert), [1.25, 1.5]),
        "one bed": (graph.add("DashengMix", bed=graph.pick(takes), layer=takes, at=0.0, layer_db=0.0), [1.25] * 4),
        "trimmed again": (graph.pick(graph.finish(takes)), [0.8]),
        "DashengPlaceInStereo": (graph.add("DashengPlaceInStereo", audio_1=takes, **PLACE), [1.25, 1.0, 1.5, 0.5]),
    }
    model, clip, vae = graph.loaders()
    wind = graph.encode(clip, "<|caption|> Wind. <|env|> Wind.")
    stems = dict(model=model, clip=clip, vae=vae, conditioning=wind, seed=0, rest=True, retake=False, audio=takes)
    rest = graph.add("DashengStems", **stems)
    cases["DashengStems"] = (lambda output=0: rest(4), [1.25, 1.0, 1.5, 0.5])
    ours = [
        name
        for name, info in server.get("/object_info").items()
        if info["category"].startswith("audio/dasheng")
        and "AUDIO" in info["output"]
        and "audio" in str(info["input"]).lower()
    ]
    assert set(ours) - {"DashengDecode"} <= set(cases)
    stretch = dict(start=1.5, end=0.0, fade=0.1, overlap="replace", timeline=graph.encode(clip, "<|caption|> Rain."))
    timeline = graph.add("DashengTimeline", conditioning=graph.encode(clip, "<|caption|> Wind."), **stretch)
    for audio, _ in cases.values():
        graph.save(audio, timeline=timeline)
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    found = [
        [sample / rate for sample, name in markers_of(path) if name == "Wind."]
        for path, (_, rate) in zip(result.files("audio"), result.audio(), strict=True)
    ]
    assert found == [[second] for _, seconds in cases.values() for second in seconds]


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(loop=True, loop_start=1.0, loop_end=0.5), "The loop from 1 to 0.5 s does not lie in take 1"),
        (dict(markers="3 thunder"), "The marker 'thunder' at 3 s lies behind the end of take 1, which is 2.000 s long"),
        (dict(markers="1\t3\tthunder"), "The marker 'thunder' at 1 s ends behind the end of take 1"),
        (dict(markers="thunder"), "The marker 'thunder' does not begin with a second from 0 to 3600"),
        (dict(timeline="conditioning []"), "timeline is an empty list, expected a conditioning"),
    ],
)
def test_marks_outside_of_the_sound_are_refused(server, options, said):
    graph = Studio()
    wires = {"timeline": graph.value(options["timeline"])} if "timeline" in options else {}
    graph.save(graph.value(), **{**options, **wires})
    before = len(list(server.output.rglob("*.wav")))
    assert said in refusal(server, graph)
    assert len(list(server.output.rglob("*.wav"))) == before


def pixels(server, audio: str, finish=None) -> np.ndarray:
    """The picture of Dasheng Spectrogram, 240 lines a take and 800 columns."""
    graph = Studio()
    sound = graph.finish(graph.value(audio), **finish) if finish else graph.value(audio)
    graph.add(
        "SaveImage",
        images=graph.add("DashengSpectrogram", audio=sound, width=800, row_height=240),
        filename_prefix="x",
    )
    (path,) = run(server, graph).files("images")
    return np.asarray(Image.open(path)).astype(int)


def test_takes_are_drawn_on_one_scale(server):
    trimmed = pixels(server, "takes", FINISH)
    # 1.1 s of the 2 s that the silent take has, which is dark.
    row = trimmed[90:214]
    assert (row[:, 52 + 420 : 792] == row[0, 795]).all() and row[:, 300].sum(axis=1).max() > 350
    assert trimmed[480 + 90 : 480 + 214, 54:790].sum(axis=2).max() < 200
    # Full scale has its lines, also above what is quieter.
    loud = pixels(server, "loud")
    limits = [y for y in range(22, 86) if (loud[y, 790] == (150, 60, 60)).all()]
    assert limits == [25, 83]


def test_a_picture_of_gigabytes_is_not_drawn(server):
    graph = Studio()
    drawn = graph.add("DashengSpectrogram", audio=graph.value("a thousand takes"), width=1024, row_height=2048)
    graph.add("PreviewImage", images=drawn)
    assert "The picture would have 1024 by 512000 pixels, expected at most 100,000,000 in all" in refusal(server, graph)


def test_a_spectrogram_shows_time_and_frequency(server):
    """A tone of 1 kHz in the middle half of take 1: bright there, at its height, and nowhere else in the row."""
    picture = pixels(server, "takes")
    assert picture.shape == (960, 800, 3)
    row = picture[:240].sum(axis=2)
    # The plot lies between 52 pixels and 8; the spectrogram between two thirds and the axis.
    bright = row[90:214, 54:790]
    inside, outside = bright[:, 200:540], np.concatenate([bright[:, :150], bright[:, 600:]], axis=1)
    height = inside.mean(axis=1)
    share = math.log10(1 + 1000 / 700) / math.log10(1 + 8000 / 700)
    assert abs((len(height) - np.argmax(height)) / len(height) - share) < 0.05
    assert height.max() > 350 and outside.max() < 200
    # The axes: a line at each fifth of a second, and at 8, 4, 2, 1, 0.5 and 0.1 kHz.
    line = np.array((205, 205, 215))
    assert (picture[218] == line).all(axis=1).nonzero()[0].tolist() == [52 + 74 * i for i in range(10)]
    shares = [math.log10(1 + hertz / 700) / math.log10(1 + 8000 / 700) for hertz in (8000, 4000, 2000, 1000, 500, 100)]
    found = (picture[80:220, 49] == line).all(axis=1).nonzero()[0] + 80
    assert np.abs(found - [216 - 130 * share for share in shares]).max() <= 1


def test_many_takes_are_drawn_side_by_side_and_a_timeline_below_each(server):
    graph = Studio()
    clip = graph.loaders()[1]
    span = dict(fade=0.0, overlap="replace")
    rain, wind, knocks = (graph.encode(clip, f"<|caption|> {name}.") for name in ("Rain", "Wind", "Knocks"))
    timeline = graph.add("DashengTimeline", conditioning=rain, start=0.0, end=1.0, **span)
    timeline = graph.add("DashengTimeline", timeline=timeline, conditioning=wind, start=1.0, end=0.0, **span)
    timeline = graph.add("DashengTimeline", timeline=timeline, conditioning=knocks, start=0.5, end=1.5, **span)
    takes = graph.add("DashengTakes", audio=graph.value())
    graph.add("PreviewImage", images=graph.add("DashengSpectrogram", audio=takes, width=512, row_height=400))
    options = dict(audio=graph.value(), width=800, row_height=240)
    graph.add("PreviewImage", images=graph.add("DashengSpectrogram", **options, timeline=timeline))
    graph.add("PreviewImage", images=graph.add("DashengSpectrogram", **options))
    result = run(server, graph)
    assert result.events[-1][0] == "execution_success", result.error()
    pictures = [
        np.asarray(Image.open(server.temp / item["filename"]).convert("RGB"), dtype=int)
        for node in sorted(result.outputs, key=int)
        for item in result.outputs[node].get("images", [])
    ]
    # Four takes, two by two.
    assert [picture.shape for picture in pictures] == [(800, 512, 3), (960, 800, 3), (960, 800, 3)]
    # Two lanes of 16 pixels above the axis of the first take, 2 s in 740 pixels: rain and wind, which begins where rain
    # ends, and knocks, which overlaps both.
    upper, lower = pictures[1][188, 52:792], pictures[1][204, 52:792]
    rain, wind, knocks = upper[360], upper[730], lower[380]
    assert len({tuple(colour) for colour in (rain, wind, knocks)}) == 3
    is_rain, is_wind = ((upper == colour).all(axis=1).nonzero()[0] for colour in (rain, wind))
    assert (is_rain.min(), is_rain.max(), is_wind.min(), is_wind.max()) == (0, 368, 370, 738)
    is_knocks = (lower == knocks).all(axis=1).nonzero()[0]
    assert abs(is_knocks.min() - 185) <= 1 and abs(is_knocks.max() - 553) <= 1
    assert (pictures[1][30:180, 52 + 370] == (170, 170, 180)).all()
    assert not (pictures[2][30:180, 52 + 370] == (170, 170, 180)).all()


@pytest.mark.parametrize(
    "node", ["DashengTakes", "DashengFinish", "DashengSaveWAV", "DashengSpectrogram", "DashengMix"]
)
@pytest.mark.parametrize("value, said", [("None", "audio is None, expected a sound"), ("waveform NaN", "not numbers")])
def test_what_is_no_sound_is_refused(server, node, value, said):
    graph = Studio()
    inputs = {
        "DashengFinish": FINISH,
        "DashengSaveWAV": SAVE,
        "DashengSpectrogram": dict(width=256, row_height=128),
        "DashengMix": dict(layer=graph.value(), at=0.0, layer_db=0.0),
    }.get(node, {})
    made = graph.add(node, **{"bed" if node == "DashengMix" else "audio": graph.value(value)}, **inputs)
    if node != "DashengSaveWAV":
        graph.add("PreviewAny", source=made)
    assert said in refusal(server, graph)
