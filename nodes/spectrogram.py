"""AUDIO -> IMAGE: waveform and mel spectrogram of each take, and the spans of its timeline, drawn by Pillow."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..dasheng_core.audio_tokenizer.spectral import picture_mel
from ..dasheng_core.delivery.finishing import to_mono
from ..dasheng_core.inputs import as_int
from ..dasheng_core.quoting import plain
from .comfy.scene import named_spans
from .common import CATEGORY
from .inputs import check_conditioning
from .lanes import BACK, INK, NamedSpan, draw_lanes, in_lanes
from .lists import calls, only
from .takes import TAKES, Take, list_takes
from .versions import schema

LEFT_MARGIN, TOP, BOTTOM = 52, 22, 24
MELS, RANGE_DB = 96, 80.0
# Each takes 27 bytes while it is drawn.
MOST_PIXELS = 100_000_000
HERTZ = (100, 500, 1000, 2000, 4000, 8000, 16000)
WAVE_COLOUR, LIMIT, JOIN = (110, 180, 255), (150, 60, 60), (170, 170, 180)
# Pixels of a lane of a timeline, where there is room; the least width of a take beside others.
LANE, LEAST_WIDTH = 16, 256
# From silent to loud, even steps.
COLOURS = [(10, 8, 30), (60, 20, 95), (135, 35, 105), (210, 70, 70), (250, 150, 50), (255, 245, 180)]


class DashengSpectrogram(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengSpectrogram",
            display_name="Dasheng Spectrogram",
            category=CATEGORY,
            search_aliases=["waveform", "mel", "plot audio"],
            description="A picture of each take: waveform and mel spectrogram, all on one scale of time and level, "
            "many takes side by side.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.Int.Input("width", default=1024, min=256, max=8192, tooltip="Pixels of the picture."),
                io.Int.Input("row_height", default=320, min=128, max=2048, tooltip="Pixels of each take."),
                io.Conditioning.Input(
                    "timeline",
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="From Dasheng Timeline: a bar for each prompt, from where it begins to where it ends, named by its "
                    "first words.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="One picture. The faint red lines of a waveform are full scale.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, audio, width, row_height, timeline=None) -> io.NodeOutput:
        width = as_int(only(width, "width"), "width", 256, 8192, "it is a number of pixels")
        height = as_int(only(row_height, "row_height"), "row_height", 128, 2048, "it is a number of pixels")
        takes, scenes = [], []
        for sound, scene in calls(audio=audio, timeline=timeline):
            if scene is not None:
                check_conditioning(scene, None, "timeline")
            found = list_takes([sound])
            takes += found
            scenes += [[] if scene is None else named_spans(scene)] * len(found)
        check_picture(width, height * math.ceil(len(takes) / _columns(len(takes), width, height)))
        picture = picture_of_takes(takes, width, height, scenes)[None]
        return io.NodeOutput(picture, ui=ui.PreviewImage(picture, cls=cls))


def check_picture(width: int, height: int) -> None:
    """Raise ValueError for a picture that would take gigabytes."""
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"The picture would have {width} by {height} pixels, expected at most {MOST_PIXELS:,} in all: draw fewer takes, or smaller."
        )


def _columns(takes: int, width: int, row_height: int) -> int:
    """How many takes lie side by side, so that the picture is about as wide as high."""
    return max(1, min(round(math.sqrt(takes * row_height / width)), width // LEAST_WIDTH))


def picture_of_takes(
    takes: list[Take], width: int, row_height: int, scenes: list[list[NamedSpan]] | None = None
) -> Tensor:
    """The picture of all takes, ``[H, W, 3]`` from 0 to 1; ``scenes``: the spans of the timeline of each."""
    seconds = max(take.waveform.shape[-1] / take.sample_rate for take in takes)
    mels = [picture_mel(to_mono(take.waveform), take.sample_rate, MELS)[0] for take in takes]
    loudest = max(mel.max().item() for mel in mels)
    full = max(1.0, *(take.waveform.abs().max().item() for take in takes))
    columns = _columns(len(takes), width, row_height)
    picture = Image.new("RGB", (width, row_height * math.ceil(len(takes) / columns)), BACK)
    for i, (take, mel) in enumerate(zip(takes, mels, strict=True)):
        # Second 0 of a timeline is the clip's before its beginning was cut off.
        spans = [(start - take.cut, end - take.cut, plain(name)) for start, end, name in scenes[i]] if scenes else []
        row = _draw_row(take, i + 1, mel - loudest, (seconds, full), (width // columns, row_height), spans)
        picture.paste(row, (width // columns * (i % columns), row_height * (i // columns)))
    return torch.from_numpy(np.array(picture)).float() / 255


def _draw_row(
    take: Take,
    number: int,
    mel: Tensor,
    scale: tuple[float, float],
    size: tuple[int, int],
    spans: list[NamedSpan],
) -> Image.Image:
    """A take with its mel spectrogram ``[M, T]`` below 0 dB; ``scale`` is the seconds and the level that fill the row."""
    (seconds, full), (width, height) = scale, size
    row = Image.new("RGB", (width, height), BACK)
    draw = ImageDraw.Draw(row)
    length = take.waveform.shape[-1] / take.sample_rate
    plot, drawn = width - LEFT_MARGIN - 8, height - TOP - BOTTOM
    columns = max(1, round(plot * length / seconds))
    # What is cut off at either end is in no lane.
    spans = [(max(start, 0.0), min(end, length), name) for start, end, name in spans if start < length and end > 0]
    if spans:
        tall = min(LANE * (max(in_lanes(spans)) + 1), drawn // 3)
        row.paste(draw_lanes(spans, length, columns, tall), (LEFT_MARGIN, TOP + drawn - tall))
        drawn -= tall
    split = TOP + drawn // 3
    seed = "" if take.seed is None else f", seed {take.seed}"
    _write(draw, (LEFT_MARGIN, 4), f"take {number}: {length:.2f} s, {take.sample_rate} Hz{seed}", "la")

    top = F.adaptive_max_pool1d(take.waveform.amax(dim=0)[None], columns)[0]
    bottom = -F.adaptive_max_pool1d(-take.waveform.amin(dim=0)[None], columns)[0]
    middle, half = (TOP + split) / 2, (split - TOP) / 2 - 3
    for level in (-1, 1):
        draw.line(
            [(LEFT_MARGIN, middle - level * half / full), (LEFT_MARGIN + plot, middle - level * half / full)], LIMIT
        )
    for x, (high, low) in enumerate(zip(top.tolist(), bottom.tolist(), strict=True), start=LEFT_MARGIN):
        draw.line([(x, middle - high * half / full), (x, middle - low * half / full)], WAVE_COLOUR)

    bands = F.adaptive_max_pool1d(mel, columns).flip(0)
    pixels = Image.fromarray(_colours(1 + bands / RANGE_DB)).resize((columns, TOP + drawn - split), Image.BILINEAR)
    row.paste(pixels, (LEFT_MARGIN, split))
    for start, _, _ in spans:
        if start > 0:
            x = LEFT_MARGIN + columns * start / length
            draw.line([(x, TOP), (x, TOP + drawn)], JOIN)
    for hertz in HERTZ:
        if hertz <= take.sample_rate / 2:
            share = math.log10(1 + hertz / 700) / math.log10(1 + take.sample_rate / 2 / 700)
            y = TOP + drawn - share * (TOP + drawn - split)
            draw.line([(LEFT_MARGIN - 4, y), (LEFT_MARGIN, y)], INK)
            _write(draw, (LEFT_MARGIN - 6, y), f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz", "rm")
    for tick in _ticks(seconds):
        x = LEFT_MARGIN + plot * tick / seconds
        draw.line([(x, height - BOTTOM), (x, height - BOTTOM + 4)], INK)
        _write(draw, (x, height - BOTTOM + 6), f"{tick:g} s", "ma")
    return row


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str) -> None:
    draw.text(place, text, INK, ImageFont.load_default(11), anchor)


def _colours(share: Tensor) -> np.ndarray:
    """``[H, W]``, 0 silent to 1 loud -> uint8 ``[H, W, 3]``."""
    at = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(share.numpy(), at, [colour[channel] for colour in COLOURS]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _ticks(seconds: float) -> list[float]:
    """About ten round numbers from 0 on."""
    rough = seconds / 10
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    # The last one would stand over the edge.
    return [round(step * i, 6) for i in range(int(seconds * 0.98 / step) + 1)]
