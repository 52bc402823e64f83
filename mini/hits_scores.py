"""Are hits found, and do takes sound on them? ``python -m mini.hits_scores --json mini/hits_scores.json --page docs/hits.md``.

Twenty drawn videos (mini/videos.py) of seeds that nothing was tuned on, ten hits each, as they were drawn and after H.264; balls that
bounce, apart. Then each video gets sound by the mini model: an ambience as long as it, and takes of an effect on the hits that were
found, in wordings kept out of training, judged by mini/judges.py. An onset is measured by another rule than the one that places it.
"""

import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from functools import cache

import av
import numpy as np
import torch
from torch import Tensor

from dasheng_core.delivery.hits import Hit, HitOptions, find_changes, hit_curve, pick_hits
from dasheng_core.delivery.placing import LEAD, onset_of, place_takes
from dasheng_core.duration import SAMPLE_RATE
from mini.direction import clips_of, cut, prompt, sounds_as
from mini.levels import spectrogram
from mini.measuring import measure_command
from mini.videos import CHANGE_KINDS, LEAST_GAP, bouncing_ball, draw_ball, draw_frames, drawn_video
from mini.vocabulary import Effect

HIT_MARKS = "<!-- figures: python -m mini.hits_scores -->", "<!-- end of figures -->"
VIDEOS, BALLS, TAKES_PLACED, AS_DRAWN = 20, 10, 4, "as drawn"
EFFECTS_PLACED = {
    "knock": Effect("knock", count=1),
    "bell": Effect("bell"),
    "buzz": Effect("buzz"),
    "beep": Effect("beep", pitch="middle"),
}
BEDS = ("rain", "wind")
# Seconds of a take; of a bed's windows; and around a hit in which an effect is judged, and its onset looked for.
TAKE_SECONDS, BED_WINDOW, JUDGED, HEARD_AT = 1.2, 4.0, (-0.05, LEAST_GAP - 0.1), (-0.1, 0.5)
# dBFS: the root mean square of a bed and the peak of a take.
BED_LEVEL, TAKE_PEAK = -36.0, -14.0
# A sound begins where 16 ms of it come within so many dB of its loudest, and 3 dB above the bed's loudest hundredth.
NEAR_PEAK, WINDOW, HOP = 8.0, 256, 16


def main() -> int:
    return measure_command(
        __doc__, HIT_MEASURES, HIT_MARKS, seed=(0, "of the first video"), videos=(VIDEOS, "how many")
    )


# ---- hits


def hits_in(frames: Iterable[np.ndarray], fps: int, options: HitOptions) -> list[Hit]:
    curve = hit_curve(*find_changes(torch.from_numpy(frame) / 255 for frame in frames), fps, options)
    return pick_hits(curve, [number / fps for number in range(len(curve))], options)


@cache
def hits_of_video(seed: int) -> dict[str, list[Hit]]:
    """At the defaults, of the frames as they were drawn, and after a file of H.264's default quality."""
    video, file = drawn_video(seed), io.BytesIO()
    frames = list(draw_frames(video))
    with av.open(file, "w", format="mp4") as container:
        height, width = video.shape
        stream = container.add_stream("h264", rate=Fraction(video.fps), width=width, height=height, pix_fmt="yuv420p")
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        decoded = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        filed = hits_in(decoded, video.fps, HitOptions())
    return {AS_DRAWN: hits_in(frames, video.fps, HitOptions()), "after H.264": filed}


def changes(model, args):
    seeds = range(args.seed, args.seed + args.videos)
    for name in hits_of_video(args.seed):
        asked, right, false, found = Counter(), Counter(), 0, 0
        for seed in seeds:
            video, hits = drawn_video(seed), hits_of_video(seed)[name]
            frames = {round(hit.seconds * video.fps) for hit in hits}
            true = dict(video.hits)
            asked.update(true.values())
            right.update(kind for frame, kind in true.items() if frame in frames)
            missed = {frame: kind for frame, kind in true.items() if frame not in frames}
            wrong = sorted(frames - true.keys())
            found, false = found + len(frames), false + len(wrong)
            print(name, seed, "missed", missed, "false", wrong, file=sys.stderr, flush=True)
        yield f"{name}: hits found on their frame", asked.total(), right.total() / asked.total(), ">= 0.95"
        yield f"{name}: false ones among those found", found, false / max(found, 1), "<= 0.05"
        for kind in CHANGE_KINDS:
            yield f"{name}, {kind}: found", asked[kind], right[kind] / asked[kind], ""


def bounces(model, args):
    for bounced in (True, False):
        right = false = asked = found = 0
        for seed in range(args.seed, args.seed + BALLS):
            ball = bouncing_ball(seed)
            frames = [
                round(hit.seconds * ball.fps) for hit in hits_in(draw_ball(ball), ball.fps, HitOptions(bounces=bounced))
            ]
            asked, found = asked + len(ball.hits), found + len(frames)
            right += sum(any(abs(frame - at) <= 1 for frame in frames) for at in ball.hits)
            false += sum(all(abs(frame - at) > 1 for at in ball.hits) for frame in frames)
        name = "bounces" if bounced else "bounces not asked for"
        yield f"{name}: found within a frame, false ones", asked, (right / asked, false / max(found, 1)), ""


# ---- takes on them


def at_level(wave: np.ndarray, level: float, measured_as: float) -> Tensor:
    return torch.from_numpy(wave * 10 ** (level / 20) / max(measured_as, 1e-9)).float()[None]


def heard_onset(wave: np.ndarray, bed: np.ndarray, at: float) -> float:
    """The second near ``at`` at which something louder than the bed begins; NaN without."""
    bed_level, power = (10 * np.log10(spectrogram(each, WINDOW, HOP)[:, 2:].sum(1) + 1e-10) for each in (bed, wave))
    time = np.arange(len(power)) * HOP / SAMPLE_RATE
    here = (time >= at + HEARD_AT[0]) & (time < at + HEARD_AT[1])
    loud = here & (power > power[here].max() - NEAR_PEAK) & (power > np.percentile(bed_level, 99) + 3)
    return float(time[loud][0]) if loud.any() else np.nan


def placed(model, args):
    off, off_alone, right, alone, beds, beds_alone, elsewhere, louder = ([] for _ in range(8))
    for seed in range(args.seed, args.seed + args.videos):
        kind, effect = list(EFFECTS_PLACED.items())[seed % len(EFFECTS_PLACED)]
        ambience = BEDS[seed // len(EFFECTS_PLACED) % len(BEDS)]
        video, seconds = drawn_video(seed), drawn_video(seed).seconds
        (wave,) = clips_of(model, [prompt(4.0, seed, ambience=ambience)], [seed], seconds, window=BED_WINDOW)
        bed = at_level(wave, BED_LEVEL, np.sqrt(np.square(wave).mean()))
        text = prompt(TAKE_SECONDS, seed, effect=effect)
        made = clips_of(
            model, [text] * TAKES_PLACED, [TAKES_PLACED * seed + take for take in range(TAKES_PLACED)], TAKE_SECONDS
        )
        takes = [at_level(take, TAKE_PEAK, np.abs(take).max()) for take in made]
        true = {frame / video.fps for frame, _ in video.hits}
        hits = [hit.seconds for hit in hits_of_video(seed)[AS_DRAWN] if hit.seconds < seconds - LEAST_GAP]
        places = [(round(second * SAMPLE_RATE), 0.0) for second in hits]
        mixed, effects = place_takes(bed, takes, SAMPLE_RATE, places), place_takes(0 * bed, takes, SAMPLE_RATE, places)
        elsewhere.append(float((mixed - bed)[effects == 0].abs().max()))
        sounds = [sound[0].numpy() for sound in (mixed, bed, effects)]
        shown = [second for second in hits if second in true]
        off += [1000 * abs(heard_onset(sounds[0], sounds[1], second) - second) for second in shown]
        off_alone += [1000 * abs(heard_onset(sounds[2], 0 * sounds[1], second) - second) for second in shown]
        spans = [(second + JUDGED[0], second + JUDGED[1]) for second in hits]
        right += [sounds_as(cut(sounds[0], *span), {"effect": effect}) for span in spans]
        alone += [sounds_as(cut(sounds[2], *span), {"effect": effect}) for span in spans]
        beds.append(sounds_as(sounds[0], {"ambience": ambience}))
        beds_alone.append(sounds_as(sounds[1], {"ambience": ambience}))
        # Where a take is cut, its largest step against its largest anywhere.
        lead = round(LEAD * SAMPLE_RATE)
        for (at, _), take in zip(places, itertools.cycle(takes), strict=False):
            begins = at - min(lead, onset_of(take), at)
            step = effects[:, begins - 32 : begins + 32].diff().abs().max() / take.diff().abs().max()
            louder.append(step.item())
        print("placed", seed, kind, ambience, len(hits), np.round(off[-len(hits) :], 1), file=sys.stderr, flush=True)
    for name, some in (("in the bed", off), ("alone", off_alone)):
        within = float(np.mean(np.array(some) <= 20))
        yield f"onset {name} within 20 ms of the video's hit", len(some), within, ">= 0.95"
        values = [float(np.nanpercentile(some, percent)) for percent in (50, 90, 100)]
        yield f"onset {name}, ms off: median, 90 %, most", len(some), values, ""
    yield (
        "effect judged right: in the bed, alone; ratio",
        len(right),
        (
            float(np.mean(right)),
            float(np.mean(alone)),
            float(np.mean(right) / np.mean(alone)),
        ),
        "ratio >= 0.9",
    )
    yield (
        "bed judged right: with the effects, alone",
        len(beds),
        (float(np.mean(beds)), float(np.mean(beds_alone))),
        "as alone",
    )
    yield "bed changed elsewhere by", len(elsewhere), max(elsewhere), "0"
    yield (
        "largest step of an effect where it is cut / anywhere",
        len(louder),
        (float(np.median(louder)), max(louder)),
        "<= 1",
    )


HIT_MEASURES = {"changes": changes, "bounces": bounces, "placed": placed}

if __name__ == "__main__":
    sys.exit(main())
