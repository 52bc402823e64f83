"""Videos drawn with known hits: cuts, flashes, things that appear, movement that starts and stops; and balls that bounce.

What is no hit happens in them too: noise, a picture that drifts, light that comes and goes slowly, a dissolve, a thing that moves all the
time. A hit is the first frame that shows it; of a stop, the first frame that shows the thing where it stays.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CHANGE_KINDS = ("cut", "flash", "appears", "starts", "stops")
HITS, LEAST_GAP, MOST_GAP = 10, 1.3, 1.7
RATES, SHAPES = (24, 25, 30), ((180, 320), (320, 180), (240, 426))
# Share of the videos in which each of these goes on.
DRIFTS, BREATHES, DISSOLVES, MOVES = 0.35, 0.35, 0.25, 0.35
# Least difference of a thing from what is behind it, of full scale.
CONTRAST = 0.3


@dataclass(frozen=True)
class DrawnVideo:
    """A video of ``count`` frames ``[H, W, 3]`` uint8, drawn from its seed one at a time; and the frame and kind of each hit."""

    seed: int
    fps: int
    shape: tuple[int, int]
    count: int
    hits: tuple[tuple[int, str], ...]

    @property
    def seconds(self) -> float:
        return self.count / self.fps


def drawn_video(seed: int) -> DrawnVideo:
    """Ten hits, as many of each kind, in another order for each seed; each start has its stop behind it."""
    rng = np.random.default_rng((seed, 0))
    fps, shape = int(rng.choice(RATES)), SHAPES[rng.integers(len(SHAPES))]
    kinds = [["cut"], ["cut"], ["flash"], ["flash"], ["appears"], ["appears"], ["starts", "stops"], ["starts", "stops"]]
    order = [kind for i in rng.permutation(len(kinds)) for kind in kinds[i]]
    frames = np.cumsum([round(gap * fps) for gap in rng.uniform(LEAST_GAP, MOST_GAP, HITS + 1)])
    return DrawnVideo(seed, fps, shape, int(frames[-1]), tuple(zip(map(int, frames[:HITS]), order, strict=True)))


def draw_frames(video: DrawnVideo) -> Iterator[np.ndarray]:
    rng = np.random.default_rng((video.seed, 1))
    height, width = video.shape
    going_on = [rng.random() < share for share in (DRIFTS, BREATHES, DISSOLVES, MOVES)]
    drifts, breathes, dissolves, moves = going_on
    drift = rng.uniform(0.2, 0.8, 2) if drifts else np.zeros(2)
    noise, hits = rng.uniform(0, 0.02), dict(video.hits)
    back, things = _texture(rng, video.shape), []
    mover, orbit = _Thing.drawn(rng, video.shape), _Thing.drawn(rng, video.shape)
    angle, speed, radius = 0.0, 0.0, min(video.shape) * rng.uniform(0.2, 0.3)
    turns, flash, dissolve, other = rng.uniform(0.04, 0.08), (0, None), 0.0, None
    # Between two hits of which neither is a cut, and longer than the time around a hit.
    places = [a + 8 for (a, one), (_, two) in zip(video.hits, video.hits[1:], strict=False) if "cut" not in (one, two)]
    begins = int(rng.choice(places)) if dissolves and places else None
    for frame in range(video.count):
        kind = hits.get(frame)
        if kind == "cut":
            back, things = _texture(rng, video.shape), []
        elif kind == "flash":
            where = (
                None if rng.random() < 0.5 else (rng.uniform(0.2, 0.8, 2) * video.shape, rng.uniform(0.1, 0.2) * height)
            )
            flash = (int(rng.integers(1, 4)), where)
        elif kind == "appears":
            things.append(_Thing.drawn(rng, video.shape, back))
        elif kind == "starts":
            speed = rng.uniform(2.5, 6) / radius * rng.choice([-1, 1])
        if frame == begins:
            other = _texture(rng, video.shape)
        angle += speed
        if kind == "stops":
            speed = 0.0
        picture = back
        if other is not None:
            dissolve += 1 / video.fps
            picture = back * (1 - dissolve) + other * dissolve
            if dissolve >= 1:
                back, other, dissolve = other, None, 0.0
        # A picture that drifts is sampled between its pixels.
        picture = _shifted(picture, drift * frame)
        picture = picture.copy()
        for thing in things:
            thing.draw(picture, thing.place)
        centre = np.array(video.shape) / 2
        mover.draw(picture, centre + radius * np.array([math.sin(angle), math.cos(angle)]))
        if moves:
            far = min(video.shape) * 0.4
            orbit.draw(picture, centre + far * np.array([math.sin(turns * frame), math.cos(turns * frame)]))
        if breathes:
            picture *= 0.85 + 0.15 * math.sin(2 * math.pi * frame / video.fps / 8)
        left, where = flash
        if left:
            flash = left - 1, where
            picture += 0.5 if where is None else 0.6 * _disc(video.shape, *where)[..., None]
        picture += rng.normal(0, 1, picture.shape).astype(np.float32) * noise
        yield (picture.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class BouncingBall:
    """A ball that falls and bounces: ``count`` frames, and the frame nearest to each bounce."""

    seed: int
    fps: int
    count: int
    hits: tuple[int, ...]
    places: tuple[tuple[float, float], ...]


def bouncing_ball(seed: int, fps: int = 25, height: int = 180, width: int = 320) -> BouncingBall:
    """Each bounce keeps most of the speed; the last is before the video's end."""
    rng = np.random.default_rng((seed, 2))
    gravity, keeps, floor = rng.uniform(500, 800), rng.uniform(0.85, 0.95), height - 16.0
    y, speed, x, across = 30.0, 0.0, 40.0, rng.uniform(20, 40)
    places, hits, step = [], [], 200
    for tick in range(5 * fps * step):
        speed += gravity / fps / step
        y += speed / fps / step
        x += across / fps / step
        if y >= floor and speed > 0:
            speed *= -keeps
            hits.append(round(tick / step))
        if tick % step == 0:
            places.append((y, x))
    return BouncingBall(seed, fps, len(places), tuple(hits), tuple(places))


def draw_ball(ball: BouncingBall, height: int = 180, width: int = 320) -> Iterator[np.ndarray]:
    rng = np.random.default_rng((ball.seed, 3))
    back = _texture(rng, (height, width))
    for place in ball.places:
        picture = back.copy()
        picture[_disc((height, width), np.array(place), 12) > 0.5] = (0.95, 0.3, 0.1)
        picture += rng.normal(0, 0.01, picture.shape).astype(np.float32)
        yield (picture.clip(0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class _Thing:
    colour: np.ndarray
    half: np.ndarray
    place: np.ndarray

    @classmethod
    def drawn(cls, rng, shape, back: np.ndarray | None = None) -> "_Thing":
        """A box of any colour; before a picture of one that differs from it."""
        half, place = rng.uniform(0.05, 0.14, 2) * min(shape), rng.uniform(0.2, 0.8, 2) * shape
        colour = rng.uniform(0, 1, 3)
        if back is not None:
            behind = back[int(place[0]), int(place[1])]
            while np.abs(colour - behind).max() < CONTRAST:
                colour = rng.uniform(0, 1, 3)
        return cls(colour.astype(np.float32), half, place)

    def draw(self, picture: np.ndarray, place: np.ndarray) -> None:
        """With edges between pixels where it lies between them."""
        cover = [
            np.clip(half + 0.5 - np.abs(np.arange(size) - middle), 0, 1).astype(np.float32)
            for size, middle, half in zip(picture.shape, place, self.half, strict=False)
        ]
        mask = (cover[0][:, None] * cover[1])[..., None]
        picture *= 1 - mask
        picture += mask * self.colour


def _texture(rng, shape: tuple[int, int]) -> np.ndarray:
    """A soft picture ``[H, W, 3]`` of some patches."""
    coarse = rng.uniform(0.1, 0.9, (6, 9, 3))
    for axis, size in enumerate(shape):
        at = np.linspace(0, coarse.shape[axis] - 1.001, size)
        low, share = at.astype(int), (at % 1).reshape([-1 if i == axis else 1 for i in range(3)])
        coarse = np.take(coarse, low, axis) * (1 - share) + np.take(coarse, low + 1, axis) * share
    return coarse.astype(np.float32)


def _shifted(picture: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A picture that has moved by a part of a pixel too, mirrored beyond its edges."""
    for axis, distance in enumerate(shift):
        size = picture.shape[axis]
        at = np.arange(size) + distance
        # To and fro, so that nothing jumps where it turns.
        at = np.abs((at + size - 1) % (2 * (size - 1)) - (size - 1))
        low = np.minimum(at.astype(int), size - 2)
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        picture = np.take(picture, low, axis) * (1 - share) + np.take(picture, low + 1, axis) * share
    return picture


def _disc(shape: tuple[int, int], place: np.ndarray, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    away = np.hypot(rows - place[0], columns - place[1])
    return np.clip(radius + 0.5 - away, 0, 1).astype(np.float32)
