"""Variations of one sound, as games play them in turn: they begin at one moment, are equally loud, and lie within distances.

The distance of two sounds is that of their latents of the audio tokenizer ``[C, T]``, pooled over time: the root mean square
difference of C means and C standard deviations. It compares what they sound like, not when.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..control.timeline import Timeline
from ..duration import SAMPLE_RATE
from ..inputs import as_float, as_int
from ..options import DISTANCES, MOST_VARIATIONS
from ..sampling import item_seeds
from .finishing import FAINTEST, fade
from .measures import loudness, onset_seconds

# Takes that are drawn for each variation, at most.
DRAWS = 4
# Seconds in which a moved sound rises and falls at its ends.
RISE, FALL = 0.001, 0.005


@dataclass(frozen=True)
class Variations:
    """A set of N sounds.

    Attributes:
        sounds: ``[N, samples]`` at 16 kHz.
        numbers: of each, its number among the takes that were drawn, from 0, in rising order.
        distances: of each pair, ``[N, N]``.
        refused: why a take of that number is not in the set.
    """

    sounds: Tensor
    numbers: list[int]
    distances: Tensor
    refused: dict[int, str]


def make_variations(
    model: Any,
    prompt: str | Timeline,
    count: int,
    seed: int,
    apart: tuple[float, float] = DISTANCES,
    together: int = MOST_VARIATIONS,
    **options: Any,
) -> Variations:
    """Draw takes of a prompt, of ``seed``, ``seed + 1`` and so on, until ``count`` of them are a set.

    Args:
        model: a :class:`DashengAudioGen`.
        apart: the least and the largest distance of any two.
        together: how many takes are made in one evaluation, at most.
        options: of :meth:`DashengAudioGen.generate`.

    Raises ValueError where 4 takes for each variation hold no such set, and as ``generate`` does; ImportError without scipy.
    """
    count = as_int(count, "variations", 2, MOST_VARIATIONS, "they are one set")
    seeds = item_seeds(seed, count * DRAWS)

    def draws() -> Iterator[Tensor]:
        place = 0
        while some := seeds[place : place + min(together, count - place if place < count else max(1, count // 4))]:
            yield from model.generate([prompt] * len(some), seed=some, **options)
            place += len(some)

    return choose_variations(draws(), model.encode, count, apart, bool(options.get("loop")))


def choose_variations(
    takes: Iterable[Tensor],
    encode: Callable[[Tensor], Tensor],
    count: int,
    apart: tuple[float, float] = DISTANCES,
    loop: bool = False,
) -> Variations:
    """The first takes that are a set, beside that of the first ``count`` which is nearest to the others of these.

    Each is moved and levelled to the median onset and loudness of the first ``count``; no take is asked for without need.

    Args:
        takes: ``[samples]`` each, at 16 kHz, all of one length.
        encode: ``[1, samples]`` -> latent ``[1, C, T]``.
        apart: the least and the largest distance of any two.
        loop: what leaves a moved sound at one end comes in at the other.

    Raises ValueError where the takes hold no such set, or are under 0.4 s; ImportError without scipy.
    """
    near, far = (as_float(bound, "A distance", 0, 1000, "0 is the same sound") for bound in apart)
    takes = iter(takes)
    first = list(islice(takes, count))
    heard = [
        (onset_seconds(take[None], SAMPLE_RATE) or 0.0, level)
        for take in first
        if (level := loudness(take[None], SAMPLE_RATE)) > FAINTEST
    ]
    if not heard:
        raise ValueError(
            f"All of the first {len(first)} takes are silent, expected sounds: use another prompt or seed."
        )
    onset, level = (median(values) for values in zip(*heard, strict=True))
    refused: dict[int, str] = {}

    def prepared(take: Tensor) -> tuple[Tensor, Tensor] | None:
        """A take moved and levelled, and its pooled latent; None of silence."""
        sound = _moved(take, onset, loop)
        own = loudness(sound[None], SAMPLE_RATE)
        if own < FAINTEST:
            return None
        sound = sound * 10 ** ((level - own) / 20)
        return sound, _pooled(encode(sound[None])[0])

    begun = {number: found for number, take in enumerate(first) if (found := prepared(take))}
    middle = min(begun, key=lambda i: median(_distance(begun[i][1], other) for _, other in begun.values()))
    chosen = {middle: begun[middle]}
    candidates = chain(((i, begun.get(i)) for i in range(len(first))), enumerate(map(prepared, takes), len(first)))
    while len(chosen) < count:
        number, found = next(candidates, (None, None))
        if number is None:
            reasons = "; ".join(f"take {i + 1} is {why}" for i, why in [*refused.items()][:4])
            raise ValueError(
                f"Of {len(chosen) + len(refused)} takes {len(chosen)} lie from {near:g} to {far:g} apart, expected {count} ({reasons}, ...): "
                "ask for fewer variations, or move the bounds."
            )
        if number == middle:
            continue
        distances = [_distance(found[1], other) for _, other in chosen.values()] if found else []
        if not found:
            refused[number] = "silent"
        elif min(distances) < near:
            refused[number] = f"too alike ({min(distances):.3f} from another)"
        elif max(distances) > far:
            refused[number] = f"too far ({max(distances):.3f} from another)"
        else:
            chosen[number] = found
    numbers = sorted(chosen)
    sounds, pooled = (torch.stack(kept) for kept in zip(*(chosen[number] for number in numbers), strict=True))
    return Variations(sounds, numbers, torch.stack([_distances(pooled, one) for one in pooled]), refused)


def pooled_distances(encode: Callable[[Tensor], Tensor], sounds: Tensor) -> Tensor:
    """The distance of each pair of sounds ``[N, samples]`` at 16 kHz, ``[N, N]``."""
    pooled = torch.stack([_pooled(encode(sound[None])[0]) for sound in sounds])
    return torch.stack([_distances(pooled, one) for one in pooled])


def _pooled(latent: Tensor) -> Tensor:
    """``[C, T]`` -> ``[2 C]``."""
    latent = latent.float().cpu()
    return torch.cat([latent.mean(dim=-1), latent.std(dim=-1, correction=0)])


def _moved(take: Tensor, onset: float, loop: bool) -> Tensor:
    """``[samples]`` that begins to sound at a second: what that pushes out is cut, what it opens is silent."""
    own = onset_seconds(take[None], SAMPLE_RATE)
    later = 0 if own is None else round((onset - own) * SAMPLE_RATE)
    if loop or not later:
        return take.roll(later)
    piece = take[:-later] if later > 0 else take[-later:]
    return F.pad(fade(piece, SAMPLE_RATE, RISE, FALL), (max(later, 0), max(-later, 0)))


def _distances(pooled: Tensor, one: Tensor) -> Tensor:
    """Of pooled latents ``[N, 2 C]`` from one ``[2 C]``: ``[N]``."""
    return (pooled - one).square().mean(dim=-1).sqrt()


def _distance(one: Tensor, other: Tensor) -> float:
    return float(_distances(one[None], other))
