"""Named spans of time as coloured bars, those that overlap in lanes of their own; drawn by Pillow."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

# Where a span begins and ends, in seconds, and its name.
NamedSpan = tuple[float, float, str]
BACK, INK = (18, 18, 24), (205, 205, 215)
# One after the other; dark enough for light letters.
BARS = [(40, 90, 150), (130, 70, 40), (50, 110, 70), (110, 55, 120), (120, 100, 35), (45, 105, 115)]
MOST_LETTERS = 200
# More would be thinner than a letter; and each span is compared with each lane.
MOST_LANES = 64


def in_lanes(spans: Sequence[NamedSpan]) -> list[int]:
    """The lane of each span: by their beginnings, the first that is free. When all are taken, the last one."""
    ends: list[float] = []
    found = [0] * len(spans)
    for number in sorted(range(len(spans)), key=lambda number: spans[number][0]):
        start, end, _ = spans[number]
        if all(taken > start for taken in ends) and len(ends) < MOST_LANES:
            ends.append(start)
        found[number] = lane = next((i for i, taken in enumerate(ends) if taken <= start), MOST_LANES - 1)
        ends[lane] = end
    return found


def draw_lanes(spans: Sequence[NamedSpan], seconds: float, width: int, height: int) -> Image.Image:
    """A picture of ``width`` by ``height`` pixels in which spans lie from 0 to ``seconds``; at least one span."""
    picture = Image.new("RGB", (width, height), BACK)
    lanes = in_lanes(spans)
    tall = height / (max(lanes) + 1)
    for number, ((start, end, name), lane) in enumerate(zip(spans, lanes, strict=True)):
        left, right = (round(width * min(max(second / seconds, 0), 1)) for second in (start, end))
        top, bottom = round(tall * lane), round(tall * (lane + 1))
        if right - left < 2 or bottom - top < 2:
            continue
        # On its own, so that its name ends with it.
        bar = Image.new("RGB", (right - left - 1, bottom - top - 1), BARS[number % len(BARS)])
        ImageDraw.Draw(bar).text((4, bar.height / 2), name[:MOST_LETTERS], INK, ImageFont.load_default(11), "lm")
        picture.paste(bar, (left, top))
    return picture
