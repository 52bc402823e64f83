"""Direction: timelines, faders, stretches that are kept, loops, windows. Plain functions on prompts, conditions and latents.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width, N frames that are evaluated.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .backbone import Condition
from .duration import FRAME_RATE, MAX_SECONDS, frames_from_seconds
from .inputs import as_float, as_list, as_prompts, shown
from .prompt import ASPECTS, compose_prompt, parse_prompt

MAX_EMPHASIS = 100.0
# Seconds in which one prompt of a timeline gives way to the next.
FADE = 0.4
# Of 1000. From this timestep up the stretches of a timeline do not hear each other: what sounds, and where, is decided there
# for each as if it were a clip of its own. Below, they do, which holds the joins together.
APART = 800
# Words that say nothing of a sound.
SMALL_WORDS = frozenset("and are the for from into its that then this while with".split())
IN_SECONDS = "times are seconds from the start of the clip"

# ---- timeline


class Span(NamedTuple):
    """The stretch that an entry of a timeline speaks for, in seconds.

    Around each end that lies inside the clip its weight goes from 0 to 1 in ``fade`` seconds. Under ``replace`` the
    entries before it lose there what it gets; otherwise both are read.
    """

    start: float = 0.0
    end: float = math.inf
    fade: float = 0.0
    replace: bool = True


def as_span(start: object, end: object = math.inf, fade: object = 0.0, replace: bool = True) -> Span:
    """A span. Raises ValueError for numbers that are none, and for an end that is not after its start."""
    start = as_float(start, "The start of a stretch", 0, MAX_SECONDS, IN_SECONDS)
    if end != math.inf:
        end = as_float(end, "The end of a stretch", 0, MAX_SECONDS, IN_SECONDS)
    if end <= start:
        raise ValueError(f"A stretch goes from {start:g} to {end:g} s, expected an end after its start: {IN_SECONDS}.")
    return Span(start, end, as_float(fade, "fade", 0, MAX_SECONDS, "it is in seconds, and 0 is none"), replace)


@dataclass(frozen=True)
class Timeline:
    """Another prompt for each stretch of one clip; stands wherever a prompt stands.

    Attributes:
        entries: (second from which it holds, tagged prompt), each until the next. What comes before the first is what
            the unconditional branch hears.
        fade: seconds around each start in which a frame reads both prompts, in proportion.

    Raises:
        PromptError: an entry that is no tagged prompt.
        ValueError: no entries, or starts that do not rise.
    """

    entries: Sequence[tuple[float, str]]
    fade: float = FADE

    def __post_init__(self):
        pairs = [as_list(entry) for entry in as_list(self.entries)]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                f"The timeline is {shown(self.entries)}, expected pairs of a second and a prompt: [(0.0, '<|caption|> ...'), ...]."
            )
        spans = [as_span(start, fade=self.fade) for start, _ in pairs]
        starts = [span.start for span in spans]
        if any(b <= a for a, b in zip(starts, starts[1:], strict=False)):
            raise ValueError(f"The timeline starts its entries at {starts} s, expected each after the one before it.")
        entries = tuple((s, compose_prompt(prompt=prompt)) for s, (_, prompt) in zip(starts, pairs, strict=True))
        object.__setattr__(self, "entries", entries)
        object.__setattr__(self, "fade", spans[0].fade)

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, prompt in self.entries]

    @property
    def spans(self) -> list[Span]:
        # Each replaces those before it to the end of the clip.
        return [Span(start, fade=self.fade) for start, _ in self.entries]

    def each(self, change: Callable[[str], str]) -> "Timeline":
        """The timeline of changed prompts."""
        return Timeline([(start, change(prompt)) for start, prompt in self.entries], self.fade)


def as_scenes(value: object) -> list[str | Timeline]:
    """One prompt or timeline, or several, at least one."""
    scenes = as_list(value)
    as_prompts([scene.prompts[0] if isinstance(scene, Timeline) else scene for scene in scenes])
    return [scene if isinstance(scene, Timeline) else compose_prompt(prompt=scene) for scene in scenes]


def prompts_of(scene: str | Timeline) -> list[str]:
    return scene.prompts if isinstance(scene, Timeline) else [scene]


def spans_of(scene: str | Timeline) -> list[Span]:
    return scene.spans if isinstance(scene, Timeline) else [Span()]


def stretches(scene: str | Timeline, frames: int) -> list[tuple[str, float]]:
    """Each prompt of a clip, and how many seconds it has. Raises ValueError for a time beyond the clip."""
    check_spans(spans_of(scene), frames)
    starts = [*(span.start for span in spans_of(scene)), frames / FRAME_RATE]
    return [(prompt, b - a) for prompt, a, b in zip(prompts_of(scene), starts, starts[1:], strict=False)]


def check_spans(spans: Sequence[Span], frames: int) -> None:
    """Raise ValueError for a time beyond a clip of so many frames."""
    seconds = frames / FRAME_RATE
    for start, end, *_ in spans:
        # A length given in seconds was rounded to frames.
        if start >= seconds or seconds + 0.5 / FRAME_RATE < end < math.inf:
            beyond = start if start >= seconds else end
            raise ValueError(
                f"A stretch has the time {beyond:g} s, expected one inside the clip of {seconds:g} s: make the clip longer, "
                "or the time earlier."
            )


def timeline_weights(spans: Sequence[Span], frames: int) -> Tensor:
    """How much of each entry a frame reads, ``[T, 1 + entries]``, not negative; the first is that of no prompt at all.

    Raises:
        ValueError: a time beyond the clip.
    """
    check_spans(spans, frames)
    seconds = (torch.arange(frames, dtype=torch.float64, device="cpu") + 0.5) / FRAME_RATE
    weights = [torch.ones(frames, dtype=torch.float64, device="cpu")]
    for start, end, fade, replace in spans:
        rise = _ramp(seconds - start, fade) if start > 0 else torch.ones_like(seconds)
        weight = rise * (_ramp(end - seconds, fade) if end < frames / FRAME_RATE else 1)
        weights = [w * (1 - weight) if replace or i == 0 else w for i, w in enumerate(weights)] + [weight]
    return torch.stack(weights, dim=1).float()


def timeline_mask(spans: Sequence[Span], tokens: Sequence[int], frames: int) -> Tensor:
    """What to add to the scores of attention to a :func:`timeline_context`, ``[T, 1 + sum of tokens]``: log-weights, 0 to -inf.

    A frame always reads something: where no entry speaks, the token of no prompt. Rows can be taken out by frame.
    """
    columns = torch.tensor([1, *tokens], device="cpu")
    return timeline_weights(spans, frames).log().repeat_interleave(columns, dim=1)


def timeline_context(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts ``[..., S_k, X]`` side by side after one token of zeros: who reads only that finds what the unconditional branch finds."""
    return torch.cat([torch.zeros_like(contexts[0][..., :1, :]), *contexts], dim=-2)


def timeline_aligned(embedding: Tensor, mask: Tensor) -> Tensor:
    """The time-aligned context under a mask ``[B, T, 1 + S]``: ``embedding`` ``[X]``, or zeros where mostly no prompt speaks.

    Returns:
        ``[B, T, X]``, or ``[1, 1, X]`` where all frames have the same.
    """
    silent = mask[..., :1] > math.log(0.5)
    return torch.where(silent, 0, embedding) if bool(silent.any()) else embedding[None, None]


def timeline_entries(mask: Tensor) -> Tensor:
    """Masks ``[B, T, 1 + S]`` -> how much of each entry a frame reads, ``[B, T, E]``; the tokens of an entry are read alike."""
    each = [torch.unique_consecutive(item, dim=1).float().exp() for item in mask]
    return pad_sequence([item.T for item in each], batch_first=True).mT


def apart(condition: Condition, timestep: float) -> Condition:
    """The condition as a step reads it: below :data:`APART` the stretches of a timeline hear each other."""
    return condition if timestep >= APART else condition._replace(entries=None)


def read_scenes(scenes: Sequence[str | Timeline], contexts: Mapping[str, Tensor], frames: int) -> tuple[Tensor, Tensor]:
    """What clips of so many frames read, by the context ``[S, X]`` of each prompt.

    Returns:
        context ``[B, S, X]`` and mask, bool ``[B, S]``, or where a timeline is among them ``[B, T, S]`` to add to scores.
    """
    parts = [[contexts[prompt] for prompt in prompts_of(scene)] for scene in scenes]
    if not any(isinstance(scene, Timeline) for scene in scenes):
        rows = [row for (row,) in parts]
        masks = [row.new_ones(len(row), dtype=torch.bool) for row in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)
    columns = [timeline_mask(spans_of(s), [len(c) for c in p], frames).T for s, p in zip(scenes, parts, strict=True)]
    mask = pad_sequence(columns, batch_first=True, padding_value=-math.inf).mT
    return pad_sequence([timeline_context(p) for p in parts], batch_first=True), mask


def _ramp(distance: Tensor, fade: float) -> Tensor:
    return (distance / fade + 0.5).clamp(0, 1) if fade else (distance >= 0).double()


# ---- emphasis


def as_emphasis(value: object) -> dict[str, float]:
    """Faders by aspect, those at 0 left out. Raises ValueError for an aspect that has none, or a weight out of range."""
    if not isinstance(value, Mapping):
        raise ValueError(f"emphasis is {shown(value)}, expected a dict of aspects and weights: {{'sfx': 2.0}}.")
    faders = {}
    for aspect, weight in value.items():
        if aspect not in ASPECTS[1:]:
            raise ValueError(
                f"emphasis names {shown(aspect)}, expected {', '.join(ASPECTS[1:])}: a scene cannot be without its caption."
            )
        remedy = "0 is as written, 2 is more of it, and below 0 takes it away"
        faders[aspect] = as_float(weight, f"The emphasis on {aspect}", -MAX_EMPHASIS, MAX_EMPHASIS, remedy)
    return {aspect: weight for aspect, weight in faders.items() if weight}


def without(scene: str | Timeline, aspect: str) -> str | Timeline:
    """The scene less one aspect; of a timeline, each entry that has it. Raises ValueError where none has."""
    texts = [parse_prompt(prompt) for prompt in prompts_of(scene)]
    if not any(text.get(aspect) for text in texts):
        raise ValueError(
            f"emphasis names {aspect}, which the prompt does not have: its aspects are {', '.join(texts[0])}; add <|{aspect}|> and "
            "what is heard."
        )

    def less(prompt: str) -> str:
        return compose_prompt(**{name: text for name, text in parse_prompt(prompt).items() if name != aspect})

    return scene.each(less) if isinstance(scene, Timeline) else less(scene)


def lint_emphasis(prompt: str, aspects: Collection[str]) -> list[str]:
    """Of which of these aspects the caption says half the words or more, so that a fader moves little: a sentence each."""
    texts, doubts = parse_prompt(prompt), []
    caption = _word_starts(texts["caption"])
    for aspect in aspects:
        own = _word_starts(texts.get(aspect, ""))
        again = [word for start, word in own.items() if start in caption]
        if again and 2 * len(again) >= len(own):
            doubts.append(
                f"The caption says {len(again)} of {len(own)} words of {aspect} too ({', '.join(again)}): emphasis compares with the "
                f"scene less {aspect}, which then sounds much the same; leave them to {aspect} alone."
            )
    return doubts


def _word_starts(text: str) -> dict[str, str]:
    """The words of a text by their first four letters, as knock, knocks and knocking are one."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return {word[:4]: word for word in words if word not in SMALL_WORDS}


# ---- keep, replace, extend


def time_mask(start: float, end: float, frames: int, feather: float = 0.0) -> Tensor:
    """``[T]``: 1 from ``start`` to ``end``, in seconds, and 0 elsewhere; between them it falls within ``feather`` seconds.

    In a graph it marks what is made anew, in the library what is kept; frames of the feather are both in part.
    """
    check_spans([as_span(start, end)], frames)
    seconds = (torch.arange(frames, dtype=torch.float32, device="cpu") + 0.5) / FRAME_RATE
    outside = torch.maximum(start - seconds, seconds - end).clamp(min=0)
    return (1 - outside / feather).clamp(min=0) if feather else (outside <= 0).float()


class Kept(NamedTuple):
    """A latent ``[B, C, T]`` and how much of each frame stays: float ``[T]``, from 0, made anew, to 1, as it is.

    ComfyUI's samplers do the same with a noise mask ``1 - share``: the network sees the known sound in part, and what it
    makes of that is in part replaced by the known sound.
    """

    latent: Tensor
    share: Tensor

    def of(self, items: Sequence[int], frames: int) -> "Kept":
        """Some of the items, for a clip of so many frames."""
        more = (0, frames - len(self.share))
        return Kept(F.pad(self.latent[items], more), F.pad(self.share, more))

    def seen(self, latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """What the network sees in place of the latent."""
        return torch.lerp(latent, torch.lerp(self.latent, noise, sigma), self.share)

    def velocity(self, velocity: Tensor, latent: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The velocity of a latent towards that mixture of what the network makes and what is known."""
        # How far the latent is from the known sound with its noise; wholly kept frames are never off it.
        off = (latent - torch.lerp(self.latent, noise, sigma)) / sigma
        return torch.lerp(velocity, noise - self.latent, self.share) + self.share * (2 - self.share) * off

    def put_back(self, latent: Tensor) -> Tensor:
        return torch.where(self.share == 1, self.latent, latent)


def keep_stretches(latent: Tensor, keep: Iterable[tuple[float, float]], feather: float = 0.0) -> Kept:
    """Stretches of a latent in seconds, see :func:`time_mask`.

    Raises:
        ValueError: a stretch that is none, or not of this latent; a feather that is no length of time.
    """
    feather = as_float(feather, "feather", 0, MAX_SECONDS, "it is in seconds, and 0 is none")
    share = latent.new_zeros(latent.shape[-1])
    for stretch in keep:
        ends = as_list(stretch)
        if len(ends) != 2:
            raise ValueError(f"keep has {shown(stretch)}, expected pairs of seconds: [(0.0, 2.0)].")
        share = torch.maximum(share, time_mask(ends[0], ends[1], len(share), feather).to(share.device))
    return Kept(latent, share)


def extend(latent: Tensor, before: float = 0.0, after: float = 0.0) -> tuple[Tensor, Tensor]:
    """``[B, C, T]`` -> a latent that is longer by so many seconds at either end, and its mask, see :func:`time_mask`."""
    ends = [round(s * FRAME_RATE) for s in (before, after)]
    mask = F.pad(latent.new_zeros(latent.shape[-1]), ends, value=1.0)
    return F.pad(latent, ends), mask


# ---- loop and windows


def loop_shift(seed: int, sigma: float, frames: int) -> int:
    """By how many frames a looping clip is turned for the evaluations at a sigma: any number of them, known by heart."""
    digest = hashlib.sha256(f"{seed} {round(sigma * 1e6)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % frames


def loop_wrap(latent: Tensor, reach: int) -> Tensor:
    """``[..., T]`` -> ``[..., T + 2 reach]``: before the first frame stand the last ones, and after the last the first ones."""
    return latent[..., torch.arange(-reach, latent.shape[-1] + reach, device=latent.device) % latent.shape[-1]]


def window_frames(window: float) -> int:
    """A window's length. Raises ValueError for one that cannot overlap the next."""
    remedy = "it is in seconds; 9.92 is what the published model was trained on"
    return frames_from_seconds(as_float(window, "window", 2 / FRAME_RATE, MAX_SECONDS, remedy))


def places(frames: int, window: int | None, shifts: Tensor) -> list[Tensor]:
    """Which frames each evaluation of a step sees, ``[B, N]``: one after the other, half over the one before.

    Args:
        window: frames, None for all.
        shifts: ``[B]``, see :func:`loop_shift`; zeros for a clip that does not loop.
    """
    size = min(window or frames, frames)
    every = torch.arange(size, device=shifts.device)
    starts = [*range(0, frames - size, max(1, size // 2)), frames - size]
    return [(start + every + shifts[:, None]) % frames for start in starts]


def at_frames(condition: Condition, index: Tensor) -> Condition:
    """The condition as the frames ``index`` ``[B or 1, N]`` of a clip read it."""
    constant, frames, entries = condition.constant, condition.frames, condition.entries
    if constant.shape[2] > 1:
        constant = torch.take_along_dim(constant, index[None, :, :, None], dim=2)
    if frames is not None and frames.shape[2] > 1:
        frames = torch.take_along_dim(frames, index[:, None, :, None], dim=2)
    if entries is not None:
        entries = torch.take_along_dim(entries, index[:, :, None], dim=1)
    return condition._replace(constant=constant, frames=frames, entries=entries)


def evaluate_places(
    evaluate: Callable[[Tensor, list[Condition]], Tensor],
    latent: Tensor,
    conditions: Sequence[Condition],
    where: Sequence[Tensor],
) -> Tensor:
    """Velocities of all branches, blended from several evaluations with weights that fall from the middle of each.

    Args:
        evaluate: latent ``[B, C, N]``, conditions -> velocities ``[G, B, C, N]``, a branch for each condition.
        latent: ``[B, C, T]``.
        where: see :func:`places`.

    Returns:
        ``[G, B, C, T]``.
    """
    total, share = latent.new_zeros(len(conditions), *latent.shape), torch.zeros_like(latent[:, :1])
    for index in where:
        index = index.expand(len(latent), -1)
        found = evaluate(torch.take_along_dim(latent, index[:, None], dim=2), [at_frames(c, index) for c in conditions])
        N = index.shape[1]
        ramp = torch.arange(1, N + 1, device=latent.device, dtype=latent.dtype)
        weight = torch.minimum(ramp, ramp.flip(0)) if len(where) > 1 else torch.ones_like(ramp)
        total.scatter_add_(3, index[None, :, None].expand_as(found), found * weight)
        share.scatter_add_(2, index[:, None], weight.expand(len(latent), 1, N))
    return total / share
