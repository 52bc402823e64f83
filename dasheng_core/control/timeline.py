"""Timelines: another prompt for each span of one clip, as masks over the contexts of all prompts.

Dimensions: B batch, T latent frames, S text tokens, X context width, E prompts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..duration import FRAME_RATE, MAX_SECONDS
from ..inputs import as_float, as_list, as_prompts, as_seconds, shown
from ..options import FADE
from ..prompt import compose_prompt, spoken_words

IN_SECONDS = "times are seconds from the start of the clip"


class Span(NamedTuple):
    """The seconds for which an entry of a timeline holds.

    Around each end that lies inside the clip its weight goes from 0 to 1 in ``fade`` seconds. With ``replace``,
    the entries before it lose the weight that it gets; otherwise both are read.
    """

    start: float = 0.0
    end: float = math.inf
    fade: float = 0.0
    replace: bool = True


def as_span(start: object, end: object = math.inf, fade: object = 0.0, replace: bool = True) -> Span:
    """A span. Raises ValueError for numbers that are none, and for an end that is not after its start."""
    start = as_float(start, "The start of a span", 0, MAX_SECONDS, IN_SECONDS)
    if end != math.inf:
        end = as_float(end, "The end of a span", 0, MAX_SECONDS, IN_SECONDS)
    if end <= start:
        raise ValueError(f"A span goes from {start:g} to {end:g} s, expected an end after its start: {IN_SECONDS}.")
    return Span(start, end, as_float(fade, "fade", 0, MAX_SECONDS, "it is in seconds, and 0 is none"), replace)


@dataclass(frozen=True)
class Timeline:
    """Another prompt for each span of one clip; stands wherever a prompt stands.

    Attributes:
        entries: (second from which it holds, tagged prompt), each until the next. What comes before the first is what
            the unconditional branch reads.
        fade: seconds around each start in which a frame reads both prompts, in proportion.
        seconds: the clip's length, where nothing else says it; None: the model's estimate.

    Raises:
        PromptError: an entry that is no tagged prompt.
        ValueError: no entries, starts that do not rise, or an impossible length.
    """

    entries: Sequence[tuple[float, str]]
    fade: float = FADE
    seconds: float | None = None

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
        if self.seconds is not None:
            object.__setattr__(self, "seconds", as_seconds(self.seconds, 1)[0])

    @property
    def prompts(self) -> list[str]:
        return [prompt for _, prompt in self.entries]

    @property
    def spans(self) -> list[Span]:
        # Each replaces those before it to the end of the clip.
        return [Span(start, fade=self.fade) for start, _ in self.entries]

    def each(self, change: Callable[[str], str]) -> "Timeline":
        """The timeline of changed prompts."""
        return Timeline([(start, change(prompt)) for start, prompt in self.entries], self.fade, self.seconds)


def as_scenes(value: object) -> list[str | Timeline]:
    """One prompt or timeline, or several, at least one."""
    scenes = as_list(value)
    as_prompts([scene.prompts[0] if isinstance(scene, Timeline) else scene for scene in scenes])
    return [scene if isinstance(scene, Timeline) else compose_prompt(prompt=scene) for scene in scenes]


def prompts_of(scene: str | Timeline) -> list[str]:
    return scene.prompts if isinstance(scene, Timeline) else [scene]


def spans_of(scene: str | Timeline) -> list[Span]:
    return scene.spans if isinstance(scene, Timeline) else [Span()]


def sections(scene: str | Timeline, frames: int) -> list[tuple[str, float]]:
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
                f"A span has the time {beyond:g} s, expected one inside the clip of {seconds:g} s: make the clip longer, "
                "or the time earlier."
            )


def timeline_weights(spans: Sequence[Span], frames: int) -> Tensor:
    """How much of each entry a frame reads, ``[T, 1 + entries]``, not negative; the first is that of no prompt at all.

    Raises ValueError for a time beyond the clip.
    """
    check_spans(spans, frames)
    seconds = (torch.arange(frames, dtype=torch.float64, device="cpu") + 0.5) / FRAME_RATE
    # Backwards: ``left`` is the weight that later entries leave to this one, ``silent`` the weight of no prompt.
    weights, left, silent = [], torch.ones_like(seconds), torch.ones_like(seconds)
    for start, end, fade, replace in reversed(spans):
        rise = _ramp(seconds - start, fade) if start > 0 else torch.ones_like(seconds)
        weight = rise * (_ramp(end - seconds, fade) if end < frames / FRAME_RATE else 1)
        weights.append(weight * left)
        left, silent = left * (1 - weight) if replace else left, silent * (1 - weight)
    return torch.stack([silent, *reversed(weights)], dim=1).float()


def timeline_mask(spans: Sequence[Span], tokens: Sequence[int], frames: int) -> Tensor:
    """What to add to the scores of attention to a :func:`timeline_context`, ``[T, 1 + sum of tokens]``: log-weights, 0 to -inf.

    A frame always reads something: where no entry holds, the token of no prompt. Rows can be selected by frame.
    """
    columns = torch.tensor([1, *tokens], device="cpu")
    return timeline_weights(spans, frames).log().repeat_interleave(columns, dim=1)


def timeline_context(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts ``[..., S_k, X]`` side by side after one token of zeros: a frame that reads only that is computed as in the unconditional branch."""
    return torch.cat([torch.zeros_like(contexts[0][..., :1, :]), *contexts], dim=-2)


def timeline_aligned(embedding: Tensor, mask: Tensor) -> Tensor:
    """The time-aligned context under a mask ``[B, T, 1 + S]``: ``embedding`` ``[X]``, or zeros where no prompt has most of the weight.

    Returns:
        ``[B, T, X]``, or ``[1, 1, X]`` where all frames have the same.
    """
    silent = mask[..., :1] > math.log(0.5)
    return torch.where(silent, 0, embedding) if bool(silent.any()) else embedding[None, None]


def timeline_entries(mask: Tensor) -> Tensor:
    """Masks ``[B, T, 1 + S]`` -> how much of each entry a frame reads, ``[B, T, E]``; the tokens of an entry are read alike."""
    each = [torch.unique_consecutive(item, dim=1).float().exp() for item in mask]
    return pad_sequence([item.T for item in each], batch_first=True).mT


def spoken_frames(spans: Sequence[Span], spoken: Sequence[float], frames: int) -> Tensor | None:
    """The number of the entry whose words a frame says, or 0, ``[1, T]``; None where all are alike.

    Args:
        spoken: how many words each entry has.
    """
    if len(spans) == 1 or not any(spoken):
        return None
    weights, numbers = timeline_weights(spans, frames), torch.zeros(frames, dtype=torch.float32, device="cpu")
    for number in (n for n, words in enumerate(spoken, start=1) if words):
        numbers[weights[:, number] >= 0.5] = number
    return numbers[None] if bool((numbers != numbers[0]).any()) else None


def spoken_of(scenes: Sequence[str | Timeline], frames: int) -> Tensor | None:
    """:func:`spoken_frames` of several clips, ``[B, T]``."""
    rows = [spoken_frames(spans_of(scene), [*map(spoken_words, prompts_of(scene))], frames) for scene in scenes]
    if all(row is None for row in rows):
        return None
    return torch.cat(
        [torch.zeros(1, frames, dtype=torch.float32, device="cpu") if row is None else row for row in rows]
    )


def pad_contexts(
    scenes: Sequence[str | Timeline], contexts: Mapping[str, Tensor], frames: int
) -> tuple[Tensor, Tensor]:
    """The padded contexts of clips of so many frames, from the context ``[S, X]`` of each prompt.

    Returns:
        context ``[B, S, X]`` and mask, bool ``[B, S]``, or where one of them is a timeline ``[B, T, S]`` to add to scores.
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
