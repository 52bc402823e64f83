"""Hits of a video, in the library and in ComfyUI; takes that begin to sound on them; a sound exactly as long as its pictures."""

import math
import weakref

import pytest
import torch

from dasheng_core.delivery.hits import Hit, HitOptions, find_changes, hit_curve, pick_hits, read_hits, write_hits
from dasheng_core.delivery.placing import onset_of, place_takes
from graphs import Graph, complete, refusal, run
from mini.videos import bouncing_ball, draw_ball, draw_frames, drawn_video
from tools.example_inputs import FPS, FRAMES, HITS

RATE = 16000
FINISH = dict(trim=True, trim_below=-60.0, padding=0.05, fade_in=0.0, fade_out=0.0, level="as it is", target=-23.0)
SAVED = dict(
    filename_prefix="test", bit_depth="32 bit float", loop=False, loop_start=0.0, loop_end=0.0, markers=""
)  # fmt: skip
FIND = dict(sensitivity=0.5, least_distance=0.2, most=200, bounces=False)


def pictures(frames):
    return (torch.from_numpy(frame) / 255 for frame in frames)


def frames_hit(frames, fps, **options) -> list[int]:
    options = HitOptions(**options)
    curve = hit_curve(*find_changes(frames), fps, options)
    return [round(hit.seconds * fps) for hit in pick_hits(curve, [n / fps for n in range(len(curve))], options)]


def flat(levels, size=(36, 64)) -> list[torch.Tensor]:
    return [torch.full((*size, 3), float(level)) for level in levels]


# ---- hits


@pytest.mark.parametrize("seed", [1000, 1002])
def test_every_hit_of_a_drawn_video_is_found_on_its_frame(seed):
    video = drawn_video(seed)
    assert frames_hit(pictures(draw_frames(video)), video.fps) == [frame for frame, _ in video.hits]


def test_bounces_are_found_where_asked_for():
    ball = bouncing_ball(1000)
    assert frames_hit(pictures(draw_ball(ball)), ball.fps, bounces=True) == list(ball.hits)
    assert frames_hit(pictures(draw_ball(ball)), ball.fps) == []


def test_a_picture_that_changes_all_the_time_has_no_hit():
    """From the first frame to the last: a fade, noise, and pictures that repeat so that every other difference is none."""
    noise = torch.Generator().manual_seed(0)
    assert frames_hit(flat(n / 40 for n in range(40)), 24) == []
    assert frames_hit([torch.rand(36, 64, 3, generator=noise) for _ in range(40)], 24) == []
    assert frames_hit(flat(n // 2 / 20 for n in range(40)), 24) == []
    assert frames_hit(flat([0.3] * 40), 24) == []


def test_sensitivity_distance_and_most_do_what_they_say():
    # A hard cut, a faint one, and a flash of two frames.
    levels = [0.2] * 20 + [0.7] * 20 + [0.73] * 20 + [1.0] * 2 + [0.73] * 20
    assert frames_hit(flat(levels), 25) == [20, 40, 60]
    assert frames_hit(flat(levels), 25, sensitivity=0.1) == [20, 60]
    assert frames_hit(flat(levels), 25, sensitivity=1.0, distance=0.0) == [20, 40, 60, 62]
    assert frames_hit(flat(levels), 25, most=1) == [20]
    # Of two within the distance the first stays, but for one that is twice as strong.
    times = [0.0, 0.1, 0.2]
    assert pick_hits(torch.tensor([0.3, 0.0, 0.5]), times, HitOptions(distance=0.3)) == [Hit(0.0, pytest.approx(0.3))]
    assert pick_hits(torch.tensor([0.2, 0.0, 0.5]), times, HitOptions(distance=0.3)) == [Hit(0.2, 0.5)]


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (180, 7), (90, 400)])
def test_a_picture_may_have_any_size(size):
    assert frames_hit(flat([0.2] * 20 + [0.7] * 20, size), 25) == [20]


def test_one_frame_is_held_at_a_time():
    held, most = weakref.WeakSet(), 0

    def frames():
        nonlocal most
        for level in range(50):
            picture = torch.full((90, 160, 3), level / 50)
            held.add(picture)
            most = max(most, len(held))
            yield picture

    find_changes(frames())
    assert most <= 2


def test_what_is_no_video_is_refused():
    for frames, sentence in (
        (flat([0.1, 0.2]), "The video has 2 frames, expected at least 3"),
        (flat([0.1] * 3) + flat([0.1], (64, 36)), "frames of several sizes, expected one size"),
        (flat([0.1, math.nan, 0.1]), "A frame of the video has values that are not numbers"),
    ):
        with pytest.raises(ValueError, match=sentence):
            find_changes(frames)
    for changed, name in (
        (dict(sensitivity=2), "sensitivity"),
        (dict(distance=-1), "least_distance"),
        (dict(most=0), "most"),
    ):
        with pytest.raises(ValueError, match=f"{name} is "):
            HitOptions(**changed)


def test_times_are_written_and_read():
    hits = [Hit(0.0, 1.0), Hit(1.25, 1.0), Hit(59.9996, 1.0), Hit(3725.5, 1.0)]
    text = write_hits(hits)
    assert text.splitlines() == ["0:00.000", "0:01.250", "1:00.000", "62:05.500"]
    assert [second for second, _ in read_hits(text)] == pytest.approx([0.0, 1.25, 60.0, 3725.5])
    written = "0:02-0:04 sfx: a door\n\n 1:02:05,5 -6 dB\n0.5 +3dB loud\n3.25\t3.5\tlabel"
    assert read_hits(written) == [(0.5, 3.0), (2.0, 0.0), (3.25, 0.0), (3725.5, -6.0)]
    with pytest.raises(ValueError, match="Line 2 of hits is 'a door', expected a time first"):
        read_hits("0:01\na door")


# ---- takes on hits


def knock(at: float, tone: float, channels: int = 1) -> torch.Tensor:
    """A second with a sound that begins at ``at`` at once and dies away, in faint noise."""
    time = torch.arange(RATE, dtype=torch.float64) / RATE - at
    wave = torch.where(time >= 0, 0.5 * torch.exp(-time / 0.05) * torch.cos(2 * math.pi * tone * time), 0.0)
    noise = 1e-4 * torch.randn(RATE, generator=torch.Generator().manual_seed(int(tone)), dtype=torch.float64)
    return (wave + noise).float().expand(channels, -1)


@pytest.fixture
def bed() -> torch.Tensor:
    return 0.05 * torch.randn(1, 3 * RATE, generator=torch.Generator().manual_seed(0))


def test_each_take_begins_to_sound_on_its_hit_and_nothing_else_changes(bed):
    takes = [knock(0.1, 500), knock(0.333, 900), knock(0.02, 1500)]
    assert [onset_of(take) for take in takes] == [1600, 5328, 320]
    hits = [(8000, 0.0), (16001, -6.0), (24000, 3.0), (32000, 0.0)]
    added = place_takes(bed, takes, RATE, hits) - bed
    for number, (at, gain) in enumerate(hits):
        # From 10 ms before the hit, in which the noise of the take rises from 0.
        assert not added[:, at - 1600 : at - 160].any() and 0 < added[:, at - 160 : at].abs().max() < 0.01
        take = takes[number % 3]
        sound = take[:, onset_of(take) :][:, :1000] * 10 ** (gain / 20)
        torch.testing.assert_close(added[:, at : at + 1000], sound, rtol=0, atol=1e-6)
        # What is left is silence of the take.
        assert not added[:, at + 8000 - 1600 : at + 8000 - 160].any()


def test_a_sound_that_rises_begins_within_8_db_of_its_peak():
    assert onset_of(torch.cat([torch.zeros(500), torch.arange(1001) / 1000])[None]) == 500 + 400


def test_nothing_clicks_where_a_take_is_cut(bed):
    hum = 0.3 * torch.sin(torch.arange(2 * RATE) * 0.1)[None]
    added = place_takes(bed, [hum], RATE, [(0, 0.0), (RATE, 0.0), (3 * RATE - 900, 0.0)]) - bed
    steps = added.diff(dim=1).abs()
    # It begins at full level, runs on over the bed's end, and starts while an earlier one sounds: no step is larger than its own.
    assert steps.max() < 2 * 1.2 * hum.diff(dim=1).abs().max()
    assert added[0, 0] == 0 and added[0, -1] == 0


def test_the_bed_decides_on_channels(bed):
    hits = [(8000, 0.0)]
    stereo = place_takes(bed.expand(2, -1), [knock(0.1, 500)], RATE, hits)
    assert stereo.shape == (2, 3 * RATE) and torch.equal(*stereo)
    wide = torch.cat([knock(0.1, 500), torch.zeros(1, RATE)])
    torch.testing.assert_close(
        place_takes(bed, [wide], RATE, hits) - bed, place_takes(bed, [wide[:1] / 2], RATE, hits) - bed
    )


def test_a_silent_take_and_no_hit_leave_the_bed(bed):
    assert onset_of(torch.zeros(1, 100)) is None
    assert torch.equal(place_takes(bed, [torch.zeros(1, 100)], RATE, [(8000, 0.0)]), bed)
    assert torch.equal(place_takes(bed, [knock(0.1, 500)], RATE, []), bed)


# ---- in ComfyUI


def loaded(graph: Graph):
    return graph.add("LoadVideo", file="video.mp4")


EXPECTED = "\n".join(f"0:{frame / FPS:06.3f}" for frame in HITS)


def test_a_video_and_its_frames_have_the_same_hits(server):
    graph = Graph()
    video = loaded(graph)
    parts = graph.add("GetVideoComponents", video=video)
    made = graph.add("CreateVideo", images=parts, fps=float(FPS))
    found = [
        graph.add("DashengHits", **FIND, video=video),
        graph.add("DashengHits", **FIND, images=parts, fps=parts(2)),
        graph.add("DashengHits", **FIND, video=made),
        graph.add("DashengHits", **{**FIND, "most": 1}, video=video),
    ]
    result = complete(server, graph.show(*found))
    assert result.texts()[:3] == [EXPECTED] * 3 and result.texts()[3] in EXPECTED.splitlines()
    assert result.said(found[0]) == [f"{len(HITS)} hits in {FRAMES} frames"]
    assert result.outputs[found[0]()[0]]["images"]


def test_a_part_of_a_video_has_its_own_times_and_length(server):
    """Where ComfyUI has a node that cuts one."""
    if "Video Slice" not in server.get("/object_info"):
        pytest.skip("this ComfyUI has no Video Slice")
    graph = Graph()
    part = graph.add("Video Slice", video=loaded(graph), start_time=0.5, duration=1.0, strict_duration=False)
    found = graph.add("DashengHits", **FIND, video=part)
    empty = graph.add("EmptyDashengLatentAudio", seconds=9.0, batch_size=1, like_video=part)
    result = complete(server, graph.save(empty).show(found))
    # From frame 5 on: a start at frame 8, a stop at 12.
    assert result.said(found) == ["2 hits in 10 frames"] and result.texts() == ["0:00.300\n0:00.700"]
    assert [latent.shape[-1] for latent in result.latents()] == [25]


def test_takes_lie_on_the_hits_of_a_video(server):
    graph = Graph()
    hits = graph.add("DashengHits", **FIND, video=loaded(graph))
    bed = graph.value("takes")
    placed = graph.add("DashengPlace", bed=bed, effect=graph.value("ring"), hits=hits, effect_db=-6.0)
    for sound in (bed, placed):
        graph.add("DashengSaveWAV", audio=sound, **SAVED)
    result = complete(server, graph.show(placed(1)))
    sounds = [samples for samples, _ in result.audio()]
    before, after = sounds[:4], sounds[4:]
    for one, other in zip(before, after, strict=True):
        changed = (one != other).any(dim=1).nonzero()[:, 0]
        # The ring begins at full level: its fade begins on the hit.
        assert changed[0] / RATE == pytest.approx(HITS[0] / FPS, abs=0.001) and len(other) == len(one)
    (report,) = result.texts()
    assert "effect 1 begins to sound at 0.000 s" in report and "one take for all hits" in report
    assert report.count("4 hits") == 4


def test_hits_outside_of_the_bed_are_said(server):
    graph = Graph()
    placed = graph.add(
        "DashengPlace", bed=graph.value("takes"), effect=graph.value("ring"), hits="0:01\n0:09", effect_db=0.0
    )
    graph.show(placed(1))
    result = complete(server, graph)
    assert result.said(placed)[0].endswith("1 of 2 hits lie outside of the bed's take 1: left out.")
    for hits in ("a door", "99:99:99:99"):
        graph = Graph()
        graph.show(
            graph.add("DashengPlace", bed=graph.value("ring"), effect=graph.value("ring"), hits=hits, effect_db=0.0)(1)
        )
        assert "expected a time first" in refusal(server, graph)


def test_a_sound_gets_exactly_as_many_samples_as_its_pictures(server):
    graph = Graph()
    short, long = (graph.add("EmptyImage", width=16, height=16, batch_size=count, color=0) for count in (37, 61))
    rates = 30000 / 1001, 24.0
    for images, fps in zip((short, long), rates, strict=True):
        cut = graph.add("DashengFinish", audio=graph.value("takes"), **FINISH, like_images=images, fps=fps)
        graph.add("DashengSaveWAV", audio=cut, **SAVED)
    video = loaded(graph)
    same = graph.add("DashengFinish", audio=graph.value("takes"), **FINISH, like_video=video)
    graph.add("DashengSaveWAV", audio=same, **SAVED)
    empty = graph.add("EmptyDashengLatentAudio", seconds=9.0, batch_size=1, like_video=video)
    odd = graph.add("EmptyDashengLatentAudio", seconds=9.0, batch_size=1, like_images=short, fps=rates[0])
    graph.save(empty, odd)
    graph.show(same(1), cut(1))
    result = complete(server, graph)
    lengths = [len(samples) for samples, _ in result.audio()]
    assert lengths == [round(37 * RATE / rates[0])] * 4 + [round(61 * RATE / 24)] * 4 + [2 * RATE] * 4
    # The sound stays where it is: nothing is trimmed.
    assert result.audio()[4][0][8001].abs() > 0 and not result.audio()[4][0][:8000].any()
    assert [latent.shape[-1] for latent in result.latents()] == [50, 31]
    assert result.said(empty) == ["2 s"]
    assert result.said(odd) == ["1.24 s, the video 1.235 s: Dasheng Finish makes the sound as long"]
    one, other = result.texts()
    assert "0 samples of silence added for the video" in one and f"{lengths[4] - 32000} samples of silence" in other


def test_a_connection_that_says_nothing_or_two_things_is_refused(server):
    images = dict(width=16, height=16, batch_size=5, color=0)
    for name, more, sentence in (
        ("DashengHits", FIND, "images and video: expected one of them connected"),
        ("DashengFinish", FINISH, "like_images and like_video are connected, expected one of them"),
        ("EmptyDashengLatentAudio", dict(seconds=1.0, batch_size=1), "like_images and like_video are connected"),
    ):
        graph = Graph()
        prefix = "" if name == "DashengHits" else "like_"
        wires = {f"{prefix}images": graph.add("EmptyImage", **images), f"{prefix}video": loaded(graph)}
        if name == "DashengFinish":
            wires["audio"] = graph.value("ring")
        node = graph.add(name, **more, **wires)
        graph.show(node) if name != "EmptyDashengLatentAudio" else graph.save(node)
        assert sentence in refusal(server, graph)


def test_a_broken_video_is_refused_by_a_sentence(server):
    (server.base / "input" / "broken.mp4").write_bytes(b"no video")
    graph = Graph()
    graph.show(graph.add("DashengHits", **FIND, video=graph.add("LoadVideo", file="broken.mp4")))
    assert run(server, graph).error().startswith("The video cannot be read (")
