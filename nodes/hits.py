"""The pictures of a video -> STRING, a line with the time of each hit; and an IMAGE of what changes."""

import math

import comfy.model_management as mm
import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont

from ..dasheng_core.delivery.hits import Hit, HitOptions, find_changes, hit_curve, pick_hits, write_hits
from .common import number_input
from .lanes import BACK, INK
from .node_text import said
from .pictures import picture_inputs, read_frames
from .versions import schema

SIZE = 1024, 240
MARGIN, FOOT = 8, 20
CURVE, THRESHOLD, AT = (110, 180, 255), (150, 60, 60), (250, 150, 50)
# Pixels of a time below a hit; where the next is nearer, its time is left out.
TIME_WIDTH = 56


class DashengHits(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengHits",
            display_name="Dasheng Hits",
            search_aliases=["cuts", "scene detection", "video to audio", "sync", "markers", "foley", "shot detection"],
            description="Finds when the picture of a video changes at once: cuts, flashes, what appears, movement that starts or stops. It "
            "compares frames, and does not know what is seen.",
            inputs=[
                number_input(
                    "sensitivity", 0.5, 0.0, 1.0, 0.05, "0: hard cuts and flashes. 1: whatever moves a little."
                ),
                number_input("least_distance", 0.2, 0.0, 60.0, 0.05, "Seconds between two hits at least."),
                io.Int.Input("most", default=200, min=1, max=10_000, tooltip="The strongest hits, at most so many."),
                io.Boolean.Input(
                    "bounces",
                    default=False,
                    tooltip="Also where what moves turns sharply. It follows the centre of all that moves: for one thing at a time.",
                ),
                *picture_inputs("what is searched for hits.", prefix=""),
            ],
            outputs=[
                io.String.Output(
                    display_name="hits",
                    tooltip="A line for each hit, as 0:01.250, for Dasheng Place; or write behind each what is to sound.",
                ),
                io.Image.Output(
                    display_name="curve", tooltip="How much changes over time, the threshold and the hits."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, sensitivity, least_distance, most, bounces, images=None, fps=24.0, video=None) -> io.NodeOutput:
        options = HitOptions(sensitivity, least_distance, most, bounces)
        if (images is None) == (video is None):
            raise ValueError("images and video: expected one of them connected, the video whose hits are looked for.")
        count, rate, frames = read_frames(images, fps, video)
        bar, times = comfy.utils.ProgressBar(max(1, count)), []

        def pictures():
            for second, picture in frames:
                mm.throw_exception_if_processing_interrupted()
                times.append(second)
                bar.update(1)
                yield picture

        curve = hit_curve(*find_changes(pictures()), rate, options)
        hits = pick_hits(curve, times, options)
        drawn = draw_hits(curve.tolist(), times, hits, options.threshold)
        picture = torch.from_numpy(np.array(drawn)).float()[None] / 255
        line = f"{len(hits)} hits in {len(times)} frames" if hits else "no hit: raise sensitivity"
        return io.NodeOutput(
            write_hits(hits), picture, ui={**ui.PreviewImage(picture, cls=cls).as_dict(), **said(line)}
        )


def draw_hits(curve: list[float], times: list[float], hits: list[Hit], threshold: float) -> Image.Image:
    """What changes at each frame, from a tenth of the threshold to full scale in even ratios; and where the hits are."""
    width, height = SIZE
    picture = Image.new("RGB", SIZE, BACK)
    draw, bottom = ImageDraw.Draw(picture), height - FOOT
    scale = (width - 2 * MARGIN) / times[-1]

    def level(value: float) -> float:
        share = math.log10(max(10 * value / threshold, 1)) / math.log10(10 / threshold)
        return bottom - min(share, 1) * (bottom - MARGIN)

    draw.line([(MARGIN, level(threshold)), (width - MARGIN, level(threshold))], THRESHOLD)
    written = -TIME_WIDTH
    for hit, line in zip(hits, write_hits(hits).splitlines(), strict=True):
        x = MARGIN + scale * hit.seconds
        draw.line([(x, MARGIN), (x, bottom)], AT)
        if x - written >= TIME_WIDTH:
            draw.text((min(x, width - TIME_WIDTH), height - 4), line, INK, ImageFont.load_default(11), "ls")
            written = x
    draw.line([(MARGIN + scale * at, level(value)) for at, value in zip(times, curve, strict=True)], CURVE)
    return picture
