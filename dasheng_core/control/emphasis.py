"""Emphasis: faders, a weight for each aspect of a prompt, and the prompts without an aspect that they compare with."""

import re
from collections.abc import Collection, Mapping

from ..inputs import as_float, shown
from ..prompt import ASPECTS, compose_prompt, lint_pace, parse_prompt, spoken_words
from .timeline import Timeline, prompts_of, sections

MAX_EMPHASIS = 100.0
# Words that name no sound.
SMALL_WORDS = frozenset("and are the for from into its that then this while with".split())


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


def without_aspect(scene: str | Timeline, aspect: str) -> str | Timeline:
    """The scene less one aspect; of a timeline, each entry that has it. Raises ValueError where none has."""
    texts = [parse_prompt(prompt) for prompt in prompts_of(scene)]
    if not any(text.get(aspect) for text in texts):
        raise ValueError(
            f"emphasis names {aspect}, which the prompt does not have: its aspects are {', '.join(texts[0])}; add <|{aspect}|> and "
            "what sounds."
        )

    def less(prompt: str) -> str:
        return compose_prompt(**{name: text for name, text in parse_prompt(prompt).items() if name != aspect})

    return scene.each(less) if isinstance(scene, Timeline) else less(scene)


def lint_emphasis(prompt: str, aspects: Collection[str]) -> list[str]:
    """A sentence for each of these aspects whose words the caption has to a half or more, so that its fader changes little."""
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


def lint_scene(scene: str | Timeline, frames: int, aspects: Collection[str]) -> list[str]:
    """What may sound poor of a clip of so many frames, whose faders are of these aspects."""
    doubts = []
    for prompt, seconds in sections(scene, frames):
        doubts += [*lint_pace(spoken_words(prompt), seconds), *lint_emphasis(prompt, aspects)]
    return doubts


def _word_starts(text: str) -> dict[str, str]:
    """The words of a text by their first four letters, as knock, knocks and knocking are one."""
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return {word[:4]: word for word in words if word not in SMALL_WORDS}
