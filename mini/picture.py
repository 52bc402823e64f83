"""Spectrograms of six prompts by the mini model: ``python -m mini.picture`` writes mini/picture.png.

Frequency is logarithmic from 80 Hz up, level goes from 70 dB below the loudest moment of each clip (dark) to it (light).
"""

import argparse
import sys
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dasheng_core import DashengAudioGen
from dasheng_core.duration import SAMPLE_RATE
from mini import ROOT
from mini.levels import FRAMES_A_SECOND, LEVEL_HOP, LEVEL_WINDOW, level_in_db, spectrogram
from mini.words import SMALL_PROMPT
from tools.comfyui import SMALL

PROMPTS = (
    SMALL_PROMPT,
    "<|caption|> A rising sweep, about two seconds long. <|sfx|> A rising sweep.",
    "<|caption|> A slow bright arpeggio in a low register, about three seconds long. "
    "<|music|> A slow bright arpeggio in a low register.",
    "<|caption|> A bell ringing for about three seconds. <|sfx|> A bell ringing.",
    "<|caption|> Ocean waves, about three seconds long. <|env|> Ocean waves.",
    "<|caption|> Three knocks in a quiet room, about three seconds long. <|sfx|> Three knocks. <|env|> A quiet room.",
)
COLUMNS = 3
# Pixels. A panel is as wide as the longest clip that is shown whole.
PANEL_SECONDS, SECOND, HEIGHT, MARGIN, GAP, TEXT_COLOUR = 3.2, 145, 200, 52, 16, 62
LOWEST, HIGHEST, RANGE = 80.0, 7900.0, 70.0
PITCH_MARKS = {100: "100 Hz", 1000: "1 kHz", 4000: "4 kHz"}
# Level from 0 to 1 -> red, green, blue.
COLOURS = ((0, 0, 0, 20), (0.3, 70, 20, 110), (0.55, 190, 50, 90), (0.8, 250, 150, 50), (1, 255, 250, 200))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SMALL, metavar="FOLDER", help="where the three parts are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "mini" / "picture.png")
    args = parser.parse_args()
    model = DashengAudioGen.from_pretrained(args.model)
    clips = [model.generate(prompt, seed=args.seed)[0].numpy() for prompt in PROMPTS]
    draw(list(zip(PROMPTS, clips, strict=True))).save(args.output, optimize=True)
    return 0


def draw(clips: list[tuple[str, np.ndarray]]) -> Image.Image:
    """A page of panels, row by row, each with its prompt below."""
    width, height = MARGIN + round(PANEL_SECONDS * SECOND) + GAP, HEIGHT + TEXT_COLOUR
    page = Image.new("RGB", (COLUMNS * width, -(-len(clips) // COLUMNS) * height + 12), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, (prompt, waveform) in enumerate(clips):
        left, top = number % COLUMNS * width + MARGIN, number // COLUMNS * height + 12
        page.paste(panel(waveform), (left, top))
        for hz, name in PITCH_MARKS.items():
            y = top + HEIGHT * pitch_share(hz)
            pen.line((left - 5, y, left, y), "black")
            pen.text((left - 7, y), name, "black", font, anchor="rm")
        for second in range(int(min(len(waveform) / SAMPLE_RATE, PANEL_SECONDS)) + 1):
            pen.line((left + second * SECOND, top + HEIGHT, left + second * SECOND, top + HEIGHT + 4), "black")
        told = "\n".join(textwrap.wrap(prompt, 72))
        pen.multiline_text((left, top + HEIGHT + 8), told, "black", font, spacing=2)
    return page.quantize(128)


def pitch_share(hz: float) -> float:
    """How far below a panel's top a frequency stands: 0 to 1."""
    return 1 - np.log(hz / LOWEST) / np.log(HIGHEST / LOWEST)


def panel(
    waveform: np.ndarray, seconds: float = PANEL_SECONDS, second: float = SECOND, height: int = HEIGHT
) -> Image.Image:
    """One spectrogram in colour, a pixel column for each moment, ``second`` of them a second."""
    power = level_in_db(spectrogram(waveform, LEVEL_WINDOW, LEVEL_HOP))[: round(seconds * FRAMES_A_SECOND)]
    hz = np.geomspace(HIGHEST, LOWEST, height)
    bins = hz * LEVEL_WINDOW / SAMPLE_RATE
    columns = np.arange(0, len(power) / FRAMES_A_SECOND, 1 / second)
    moments = np.minimum(columns * FRAMES_A_SECOND, len(power) - 1).round().astype(int)
    below = bins.astype(int)
    level = power[moments][:, below].T * (1 - bins % 1)[:, None] + power[moments][:, below + 1].T * (bins % 1)[:, None]
    level = np.clip(1 + (level - level.max()) / RANGE, 0, 1)
    places, *channels = zip(*COLOURS, strict=True)
    return Image.fromarray(np.stack([np.interp(level, places, channel) for channel in channels], -1).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
