"""Spectrograms of what direction does, by the mini model: ``python -m mini.direction_pictures docs/direction``.

Axes are those of mini/picture.py. White ticks are the moments that a panel's title names.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dasheng_core import DashengAudioGen, Timeline
from dasheng_core.control.listening import prompt_parts
from dasheng_core.duration import SAMPLE_RATE
from mini import ROOT
from mini.direction import PLACED, STEADY, clips_of, listening_curves, prompt, spoken, steady_latents
from mini.picture import PITCH_MARKS, panel, pitch_share

# Pixels.
WIDTH, HEIGHT, LEFT, TOP, BELOW, CURVE = 420, 110, 48, 18, 18, 34
COLOURS = 24


class Panel(NamedTuple):
    """A sound, what it is, the moments to mark, and curves over time with their names."""

    title: str
    waveform: np.ndarray
    moments: tuple[float, ...] = ()
    curves: tuple[tuple[str, np.ndarray], ...] = ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the pictures go")
    parser.add_argument("--only", nargs="*", choices=PICTURES, default=list(PICTURES), help="which pictures")
    parser.add_argument("--model", type=Path, default=ROOT / "mini", metavar="FOLDER", help="where the three parts are")
    args = parser.parse_args()
    model = DashengAudioGen.from_pretrained(args.model)
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        page(list(PICTURES[name](model))).save(args.folder / f"{name}.png", optimize=True)
    return 0


def timeline(model) -> Iterator[Panel]:
    rain, wind, whistle = (
        prompt(6.0, **layers)
        for layers in ({"ambience": "rain"}, {"ambience": "wind"}, {"effect": PLACED["whistle"], "ambience": "rain"})
    )
    scenes = [Timeline([(0.0, rain), (3.0, wind)]), Timeline([(0.0, rain), (2.0, whistle), (4.0, rain)])]
    titles = "rain, from 3 s on wind", "rain, from 2 to 4 s a whistle with rain"
    for title, moments, clip in zip(titles, ((3.0,), (2.0, 4.0)), clips_of(model, scenes, [0, 0], 6.0), strict=True):
        yield Panel(title, clip, moments)


def emphasis(model) -> Iterator[Panel]:
    text = prompt(4.0, unnamed=["effect"], effect=PLACED["bell"], ambience="rain")
    for weight in (-3.0, 0.0, 3.0):
        (clip,) = clips_of(model, [text], [0], 4.0, emphasis={"sfx": weight})
        yield Panel(f"a bell in rain, sfx {weight:g}", clip)


def keep(model) -> Iterator[Panel]:
    first = steady_latents(model, "arpeggio", [0], 100)
    anew = steady_latents(model, "arpeggio", [100], 100, latent=first, keep=[(0.0, 2.0)])
    longer = steady_latents(model, "arpeggio", [100], 150, latent=first, keep=[(0.0, 4.0)])
    titles = "a clip", "its first 2 s kept, the rest made anew", "all of it kept, 2 s more"
    for title, latent, moments in zip(titles, (first, anew, longer), ((), (2.0,), (4.0,)), strict=True):
        yield Panel(title, model.decode(latent)[0].numpy(), moments)


def loop(model) -> Iterator[Panel]:
    for title, looped in (("waves, twice", False), ("as a loop, twice", True)):
        (clip,) = clips_of(model, [prompt(4.0, ambience="waves")], [0], 4.0, loop=looped)
        yield Panel(title, np.tile(clip, 2), (4.0,))


def window(model) -> Iterator[Panel]:
    rain, wind = (prompt(4.0, **STEADY[kind]) for kind in ("rain", "wind"))
    scene = Timeline([(0.0, rain), (20.0, wind), (40.0, rain)])
    for title, told, size, moments in (
        ("rain, from 20 to 40 s wind, in windows of 4 s", scene, 4.0, (20.0, 40.0)),
        ("wind in windows of 4 s", wind, 4.0, ()),
        ("the wind in one pass of 60 s", wind, None, ()),
    ):
        (clip,) = clips_of(model, [told], [0], 60.0, window=size)
        yield Panel(title, clip, moments)


def listening(model) -> Iterator[Panel]:
    rain, text = prompt(6.0, ambience="rain"), prompt(6.0, effect=PLACED["bell"], ambience="rain")
    (clip,) = clips_of(model, [Timeline([(0.0, rain), (2.0, text), (4.0, rain)])], [0], 6.0)
    parts = [part for part in prompt_parts(model.tokenizer.file.encode, text) if part.name in ("sfx", "env")]
    with torch.inference_mode():
        curves = listening_curves(model, clip, model.encode_text(text)[0][0], parts)
    named = tuple((part.name, curve.numpy()) for part, curve in zip(parts, curves, strict=True))
    yield Panel("rain, from 2 to 4 s a bell with rain: where its sfx and env are heard", clip, (2.0, 4.0), named)


def stems(model) -> Iterator[Panel]:
    text = spoken("seven two", 3.0, effect=PLACED["bell"], ambience="rain")
    (clip,) = clips_of(model, [text], [3], 3.0)
    yield Panel("two words, a bell and rain", clip)
    for name, stem in model.stems(text, audio=torch.from_numpy(clip)[None]).items():
        yield Panel(f"the stem {name}", stem[0].numpy())


PICTURES: dict[str, Callable[[DashengAudioGen], Iterator[Panel]]] = {
    "timeline": timeline,
    "emphasis": emphasis,
    "keep": keep,
    "loop": loop,
    "window": window,
    "listening": listening,
    "stems": stems,
}


def page(panels: list[Panel]) -> Image.Image:
    """The panels one below the other, on one scale of time."""
    seconds = max(len(panel.waveform) for panel in panels) / SAMPLE_RATE
    rows = [row(panel, seconds) for panel in panels]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    for number, one in enumerate(rows):
        sheet.paste(one, (0, sum(row.height for row in rows[:number])))
    return sheet.quantize(COLOURS)


def row(told: Panel, seconds: float) -> Image.Image:
    second = WIDTH / seconds
    bottom = TOP + HEIGHT
    sheet = Image.new("RGB", (LEFT + WIDTH + 12, bottom + CURVE * len(told.curves) + BELOW), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    pen.text((LEFT, 2), told.title, "black", font)
    sheet.paste(panel(told.waveform, seconds, second, HEIGHT), (LEFT, TOP))
    for hz, name in PITCH_MARKS.items():
        y = TOP + HEIGHT * pitch_share(hz)
        pen.line((LEFT - 4, y, LEFT, y), "black")
        pen.text((LEFT - 6, y), name, "black", font, anchor="rm")
    for moment in told.moments:
        x = LEFT + moment * second
        pen.line((x, TOP, x, TOP + 8), "white", 2)
        pen.line((x, bottom - 8, x, bottom), "white", 2)
    for name, curve in told.curves:
        bottom += CURVE
        places = LEFT + (np.arange(len(curve)) + 0.5) / len(curve) * len(told.waveform) / SAMPLE_RATE * second
        tops = bottom - curve / max(curve.max(), 1e-12) * (CURVE - 6)
        pen.polygon([(LEFT, bottom), *zip(places, tops, strict=True), (places[-1], bottom)], (190, 50, 90))
        pen.text((LEFT - 6, bottom - 8), name, "black", font, anchor="rm")
    step = 1 if seconds <= 10 else 10
    for tick in range(0, int(seconds) + 1, step):
        x = LEFT + tick * second
        pen.line((x, bottom, x, bottom + 3), "black")
        pen.text((x, bottom + 4), f"{tick} s", "black", font, anchor="ma")
    return sheet


if __name__ == "__main__":
    sys.exit(main())
