"""What a CONDITIONING says beside its context: spans of a timeline, and faders. ComfyUI's own nodes hand it on as it is.

Dimensions: S text tokens, X context width, T latent frames.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...dasheng_core.control.timeline import Span, timeline_weights

PROMPT_SPANS, FADERS = "dasheng_prompt_spans", "dasheng_faders"
# Which tokens are which aspect; and the same with each word of the transcript apart.
PARTS = "dasheng_parts"
# The first words of its caption, and the tagged prompt itself.
NAME, PROMPT_TEXT = "dasheng_name", "dasheng_prompt"
# The lines of a script, each from when to when and its text.
LINES = "dasheng_lines"
WHOLE = Span()


class PromptSpan(NamedTuple):
    """What one prompt of a timeline speaks for; its tokens stand behind those of the prompts before it."""

    span: Span
    tokens: int
    spoken_words: int = 0
    name: str = ""
    prompt: str = ""


class AspectFader(NamedTuple):
    """An aspect that is moved: its weight in each span, the scene, and that without it, of so many tokens in each span."""

    aspect: str
    weights: tuple[float, ...]
    scene: Tensor
    context: Tensor
    tokens: tuple[int, ...]


def prompt_spans_of(context: Tensor, options: Mapping) -> tuple[PromptSpan, ...]:
    """The spans of one entry of a CONDITIONING, at least one: a prompt speaks for the whole clip."""
    tokens = context.shape[1]
    whole = PromptSpan(
        WHOLE, tokens, options.get("spoken_words", 0), options.get(NAME, ""), options.get(PROMPT_TEXT, "")
    )
    prompt_spans = options.get(PROMPT_SPANS) or (whole,)
    if sum(each.tokens for each in prompt_spans) != tokens:
        raise ValueError(
            f"A timeline has {tokens} tokens, expected {sum(each.tokens for each in prompt_spans)}, those of its prompts: a node "
            "has joined it with another conditioning; use Dasheng Timeline for that."
        )
    return prompt_spans


def joins(conditioning: list) -> list[tuple[float, str]]:
    """The seconds at which other prompts are heard than before, and the names of those heard from there on."""
    prompt_spans = [each for context, options in conditioning for each in prompt_spans_of(context, options)]
    found = []
    for second in sorted({end for each in prompt_spans for end in each.span[:2] if end < math.inf}):
        heard: list[str] = []
        for (start, end, _, replace), _, _, name, _ in prompt_spans:
            if start <= second < end:
                heard = [*(() if replace else heard), name]
        found.append((second, " + ".join(filter(None, heard))))
    return found


def named_spans(conditioning: list) -> list[tuple[float, float, str]]:
    """When each prompt of a CONDITIONING, or line of a script, begins and ends, in seconds, and its name; inf for the end of the clip."""
    if len(conditioning) == 1 and LINES in conditioning[0][1]:
        return list(conditioning[0][1][LINES])
    prompt_spans = [each for context, options in conditioning for each in prompt_spans_of(context, options)]
    return [
        (each.span.start, each.span.end, each.name or f"prompt {number}")
        for number, each in enumerate(prompt_spans, start=1)
    ]


def joined(timeline: list | None, conditioning: list, span: Span) -> list:
    """One CONDITIONING of what a timeline was so far and a conditioning that speaks for a span."""
    (context, options), *more = conditioning
    if more or PROMPT_SPANS in options:
        raise ValueError(
            f"conditioning {'has several entries' if more else 'is a timeline'}, expected one prompt: connect Dasheng Text Encode, and "
            "what was so far to timeline."
        )
    (own,) = prompt_spans_of(context, options)
    own, faders = own._replace(span=span), options.get(FADERS, ())
    if timeline is None:
        return [[context, {**options, PROMPT_SPANS: (own,)}]]
    (first, settings), *more = timeline
    if more:
        raise ValueError(
            "timeline has several entries, expected one: join them by Dasheng Timeline, not by Conditioning Combine."
        )
    if (first.shape[0], first.shape[2]) != (context.shape[0], context.shape[2]):
        raise ValueError(
            f"conditioning has shape {list(context.shape)}, expected one that fits the timeline's {list(first.shape)}: encode both by one "
            "text encoder."
        )
    earlier = prompt_spans_of(first, settings)
    made = {key: value for key, value in settings.items() if key != LINES} | {PROMPT_SPANS: (*earlier, own)}
    moved = dict.fromkeys(fader.aspect for fader in (*settings.get(FADERS, ()), *faders))
    if moved:
        halves = ((first, earlier, settings.get(FADERS, ())), (context, (own,), faders))
        made[FADERS] = tuple(_joined_fader(aspect, halves) for aspect in moved)
    return [[torch.cat([first, context], dim=1), made]]


def prompts_of_scene(conditioning: list) -> tuple[list[str], list[Span]]:
    """The tagged prompts of a CONDITIONING, and their spans. Raises ValueError where another node made it."""
    prompt_spans = [each for context, options in conditioning for each in prompt_spans_of(context, options)]
    if len(conditioning) > 1 or not all(each.prompt for each in prompt_spans):
        raise ValueError(
            "conditioning does not say which prompts it is made of, expected one of Dasheng Text Encode, Dasheng Emphasis or Dasheng "
            "Timeline: connect it as that node gives it."
        )
    return [each.prompt for each in prompt_spans], [each.span for each in prompt_spans]


def scene_of(conditionings: list[list], spans: list[Span]) -> list:
    """One CONDITIONING of one prompt without faders for each span; of a single prompt as it is."""
    if len(spans) == 1:
        return conditionings[0]
    parts = [
        (*prompt_spans_of(*conditioning[0]), span) for conditioning, span in zip(conditionings, spans, strict=True)
    ]
    own = tuple(part._replace(span=span) for part, span in parts)
    context = torch.cat([conditioning[0][0] for conditioning in conditionings], dim=1)
    return [[context, {**conditionings[0][0][1], PROMPT_SPANS: own}]]


def _joined_fader(aspect: str, halves: tuple) -> AspectFader:
    """One fader of two: a half that does not move the aspect is heard as it is, with weight 0."""
    parts = []
    for context, prompt_spans, faders in halves:
        still = AspectFader(
            aspect, (0.0,) * len(prompt_spans), context, context, tuple(each.tokens for each in prompt_spans)
        )
        parts.append(next((fader for fader in faders if fader.aspect == aspect), still))
    (_, *a), (_, *b) = parts
    scene, context = (torch.cat([a[i], b[i]], dim=1) for i in (1, 2))
    return AspectFader(aspect, a[0] + b[0], scene, context, a[3] + b[3])


def entry_without(options: Mapping, fader: AspectFader) -> tuple[Tensor, dict]:
    """The entry of a CONDITIONING, ``options`` its own, that a fader compares with."""
    options = {key: value for key, value in options.items() if key not in (FADERS, "spoken_words")}
    if PROMPT_SPANS in options:
        pairs = zip(options[PROMPT_SPANS], fader.tokens, strict=True)
        options[PROMPT_SPANS] = tuple(PromptSpan(each.span, tokens, each.spoken_words) for each, tokens in pairs)
    return fader.context, options


def weight_of(options: Mapping, fader: AspectFader, latent: Tensor) -> float | Tensor:
    """A fader's weight: a number, or of a timeline one for each frame of a latent ``[B, C, T]``, on its device."""
    if PROMPT_SPANS not in options:
        return fader.weights[0]
    shares = timeline_weights([each.span for each in options[PROMPT_SPANS]], latent.shape[-1])[:, 1:]
    return (shares @ torch.tensor(fader.weights, dtype=torch.float32, device="cpu")).to(latent.device)


def silence_of(conditioning: list) -> list:
    """The unconditional branch of a CONDITIONING: zeros, which have no faders."""
    return [
        [torch.zeros_like(context), {key: value for key, value in options.items() if key != FADERS}]
        for context, options in conditioning
    ]
