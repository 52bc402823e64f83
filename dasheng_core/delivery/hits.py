"""Where the picture of a video changes at once: cuts, flashes, what appears, movement that starts, stops or bounces.

All of it is differences between frames: nothing here knows what a picture shows.

Dimensions: T frames, H x W pixels, R x C cells of a picture, r x c tiles of TILE x TILE cells. Full scale is 1.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..inputs import as_float, as_int, as_text
from ..quoting import plain
from ..tensors import check_finite

# Cells along the longer side of a picture, and along each side of a tile.
CELLS, TILE = 64, 4
# A change must pass RATIO times what moves within SIDE seconds in its tile and those next to it, by so much at sensitivity 0 and at 1.
SIDE, RATIO, CHANGES = 0.15, 2.0, (0.2, 0.002)
# Of two hits within the least distance the first counts, unless the other is so many times as strong.
STRONGER = 2.0
# A bounce turns so many times as sharply as what moves around it, from and into so many cells per frame.
SHARPER, SPEED = 3.0, 0.25
# An hour at 60 frames per second, which takes about 1.5 GB.
MOST_FRAMES = 216_000
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(?:(\d{1,4}):)?(\d{1,5}(?:[.,]\d{0,9})?)(?=$|[\s-])")
_LEVEL = re.compile(r"\s*([+-]?\d{1,2}(?:[.,]\d{1,3})?)\s*dB\b", re.IGNORECASE)


class Hit(NamedTuple):
    """A second of a video, and how much of full scale changes there more than around it."""

    seconds: float
    strength: float


@dataclass(frozen=True)
class HitOptions:
    """What counts as a hit; a ValueError names a number that is out of its range."""

    # 0: hard cuts and flashes; 1: whatever moves a little.
    sensitivity: float = 0.5
    # Seconds between two hits at least; and how many at most, the strongest.
    distance: float = 0.2
    most: int = 200
    # Whether what moves and turns sharply is a hit too: the centroid of all that changes is followed.
    bounces: bool = False

    def __post_init__(self) -> None:
        as_float(self.sensitivity, "sensitivity", 0, 1, "0 finds hard cuts, and 1 every small movement")
        as_float(self.distance, "least_distance", 0, 60, "it is in seconds")
        as_int(self.most, "most", 1, 10_000, "the strongest stay")

    @property
    def threshold(self) -> float:
        return CHANGES[0] * (CHANGES[1] / CHANGES[0]) ** self.sensitivity


def grid_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of cells of a picture, whole tiles: CELLS along its longer side."""
    rows, columns = (max(1, round(CELLS / TILE * side / max(height, width))) * TILE for side in (height, width))
    return rows, columns


def find_changes(frames: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Compare each frame ``[H, W, channels]``, 0 to 1, with the one before; one is held at a time.

    Returns how much each tile changes, ``[T, r, c]``, and row and column of its centroid, ``[T, 2]``, NaN where nothing stands out.
    Raises ValueError for fewer than three frames, more than MOST_FRAMES, several sizes, or values that are not finite.
    """
    tiles, centroids, before = [], [], None
    for frame in frames:
        grid = grid_of(*frame.shape[:2])
        cells = F.adaptive_avg_pool2d(frame.movedim(-1, 0).float(), grid)
        if before is not None and before.shape != cells.shape:
            raise ValueError("The video has frames of several sizes, expected one size: scale them first.")
        change = torch.zeros_like(cells[0]) if before is None else (cells - before).abs().amax(dim=0)
        before = check_finite(cells, "A frame of the video", "make it again")
        tiles.append(F.avg_pool2d(change.square()[None], TILE)[0].sqrt())
        # What changes everywhere, by noise, is in no place.
        weights = (change - 4 * change.median() - CHANGES[1]).clamp(min=0)
        places = [torch.arange(size, device="cpu") for size in grid]
        sums = (weights.sum(dim=1) * places[0]).sum(), (weights.sum(dim=0) * places[1]).sum()
        centroids.append(torch.stack(sums) / weights.sum())
        if len(tiles) > MOST_FRAMES:
            raise ValueError(f"The video has more than {MOST_FRAMES:,} frames, which need too much memory: cut it.")
    if len(tiles) < 3:
        raise ValueError(f"The video has {len(tiles)} frames, expected at least 3: a change needs some around it.")
    return torch.stack(tiles), torch.stack(centroids)


def hit_curve(tiles: Tensor, centroids: Tensor, fps: float, options: HitOptions) -> Tensor:
    """How much each frame changes beyond what moves around it, ``[T]``.

    A start is compared with what moves before it and a stop with what moves after it. The hit is the first frame that shows what has
    begun, or that shows what moved where it stays.
    """
    side = max(2, round(SIDE * fps))
    starts = tiles - RATIO * _most_before(tiles, side)
    stops = tiles - RATIO * _most_before(tiles.flip(0), side).flip(0)
    # What lies beyond the ends is not known.
    starts[:side] = stops[-side:] = 0
    curve = torch.maximum(starts, stops).amax(dim=(1, 2)).clamp(min=0)
    if options.bounces:
        curve = torch.maximum(curve, _turns(centroids, 3 * side) * tiles.amax(dim=(1, 2)))
    return curve


def pick_hits(curve: Tensor, times: Sequence[float], options: HitOptions) -> list[Hit]:
    """The hits of a curve ``[T]``, in order; ``times``: the second of each frame."""
    kept: list[Hit] = []
    for frame in (curve >= options.threshold).nonzero()[:, 0].tolist():
        hit = Hit(times[frame], curve[frame].item())
        if not kept or hit.seconds - kept[-1].seconds >= options.distance:
            kept.append(hit)
        elif hit.strength > STRONGER * kept[-1].strength:
            kept[-1] = hit
    return sorted(sorted(kept, key=lambda hit: -hit.strength)[: options.most])


def write_hits(hits: Iterable[Hit]) -> str:
    """A line for each hit, ``M:SS.mmm``."""
    clocks = (divmod(round(hit.seconds * 1000), 60_000) for hit in hits)
    return "\n".join(f"{minutes}:{thousandths / 1000:06.3f}" for minutes, thousandths in clocks)


def read_hits(text: str) -> list[tuple[float, float]]:
    """Seconds and dB of each line: ``M:SS.mmm``, ``H:MM:SS`` or seconds, then a level (``-6 dB``), 0 without, or any text.

    Raises ValueError for a line that begins with something else.
    """
    found = []
    for number, line in enumerate(as_text(text, "hits").splitlines(), start=1):
        clock = _CLOCK.match(line := line.strip())
        if clock:
            first, second, seconds = clock.groups(default="0")
            minutes = int(first) if clock[2] is None else 60 * int(first) + int(second)
            level = _LEVEL.match(line, clock.end())
            gain = float(level[1].replace(",", ".")) if level else 0.0
            found.append((60 * minutes + float(seconds.replace(",", ".")), gain))
        elif line:
            raise ValueError(
                f"Line {number} of hits is '{plain(line, 40)}', expected a time first, as 0:01.250: correct it."
            )
    return sorted(found)


def _most_before(tiles: Tensor, side: int) -> Tensor:
    """The most that changes in the ``side`` frames before each, in a tile and those next to it."""
    earlier = torch.cat([tiles[:1].expand(side, -1, -1), tiles[:-1]])
    return F.max_pool3d(earlier[None, None], (side, 3, 3), stride=1, padding=(0, 1, 1))[0, 0]


def _turns(centroids: Tensor, around: int) -> Tensor:
    """Whether what moves turns sharply at each frame, ``[T]`` bool."""
    # A difference lies half a frame before its frame: from one to the next is the speed at the frame.
    speed = F.pad(centroids.diff(dim=0), (0, 0, 1, 2), value=math.nan)
    before, after = speed[:-2], speed[2:]
    turn = (after - before).abs()
    usual = F.pad(turn, (0, 0, around, around), value=math.nan).unfold(0, 2 * around + 1, 1).nanmedian(dim=-1)[0]
    fast = torch.minimum(before.abs(), after.abs()) > SPEED
    return ((before * after < 0) & fast & (turn > SHARPER * usual)).any(dim=1)
