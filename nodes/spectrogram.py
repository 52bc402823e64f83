"""AUDIO -> IMAGE: waveform and mel spectrogram of each take, drawn by Pillow."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import io
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..dasheng_core.audio_tokenizer.spectral import picture_mel
from ..dasheng_core.delivery.finishing import to_mono
from ..dasheng_core.inputs import as_int
from .common import CATEGORY
from .lists import only
from .takes import TAKES, Take, list_takes
from .versions import schema

LEFT_MARGIN, TOP, BOTTOM = 52, 22, 24
MELS, RANGE_DB = 96, 80.0
# Each takes 27 bytes while it is drawn.
MOST_PIXELS = 100_000_000
HERTZ = (100, 500, 1000, 2000, 4000, 8000, 16000)
BACK, INK, WAVE_COLOUR, LIMIT = (18, 18, 24), (205, 205, 215), (110, 180, 255), (150, 60, 60)
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
            description="Draws waveform and mel spectrogram, one row a take, all on one scale of time and level.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.Int.Input("width", default=1024, min=256, max=8192, tooltip="Pixels of the picture."),
                io.Int.Input("row_height", default=320, min=128, max=2048, tooltip="Pixels of each take."),
            ],
            outputs=[io.Image.Output(tooltip="One picture. The faint red lines of a waveform are full scale.")],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio, width, row_height) -> io.NodeOutput:
        width = as_int(only(width, "width"), "width", 256, 8192, "it is a number of pixels")
        height = as_int(only(row_height, "row_height"), "row_height", 128, 2048, "it is a number of pixels")
        takes = list_takes(audio)
        check_picture(width, height * len(takes))
        return io.NodeOutput(picture_of_takes(takes, width, height)[None])


def check_picture(width: int, height: int) -> None:
    """Raise ValueError for a picture that would take gigabytes."""
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"The picture would have {width} by {height} pixels, expected at most {MOST_PIXELS:,} in all: draw fewer takes, or smaller."
        )


def picture_of_takes(takes: list[Take], width: int, row_height: int) -> Tensor:
    """The picture of all takes, ``[H, W, 3]`` from 0 to 1."""
    seconds = max(take.waveform.shape[-1] / take.sample_rate for take in takes)
    mels = [picture_mel(to_mono(take.waveform), take.sample_rate, MELS)[0] for take in takes]
    loudest = max(mel.max().item() for mel in mels)
    full = max(1.0, *(take.waveform.abs().max().item() for take in takes))
    picture = Image.new("RGB", (width, row_height * len(takes)), BACK)
    for number, (take, mel) in enumerate(zip(takes, mels, strict=True), start=1):
        row = _draw_row(take, number, mel - loudest, (seconds, full), width, row_height)
        picture.paste(row, (0, row_height * (number - 1)))
    return torch.from_numpy(np.array(picture)).float() / 255


def _draw_row(take: Take, number: int, mel: Tensor, scale: tuple[float, float], width: int, height: int) -> Image.Image:
    """A take with its mel spectrogram ``[M, T]`` below 0 dB; ``scale`` is the seconds and the level that fill the row."""
    seconds, full = scale
    row = Image.new("RGB", (width, height), BACK)
    draw = ImageDraw.Draw(row)
    length = take.waveform.shape[-1] / take.sample_rate
    plot, drawn = width - LEFT_MARGIN - 8, height - TOP - BOTTOM
    columns = max(1, round(plot * length / seconds))
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
    for hertz in HERTZ:
        if hertz <= take.sample_rate / 2:
            share = math.log10(1 + hertz / 700) / math.log10(1 + take.sample_rate / 2 / 700)
            y = TOP + drawn - share * (TOP + drawn - split)
            draw.line([(LEFT_MARGIN - 4, y), (LEFT_MARGIN, y)], INK)
            _write(draw, (LEFT_MARGIN - 6, y), f"{hertz} Hz" if hertz < 1000 else f"{hertz // 1000} kHz", "rm")
    for tick in _ticks(seconds):
        x = LEFT_MARGIN + plot * tick / seconds
        draw.line([(x, TOP + drawn), (x, TOP + drawn + 4)], INK)
        _write(draw, (x, TOP + drawn + 6), f"{tick:g} s", "ma")
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
