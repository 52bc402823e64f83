"""Scene prompts: compose them from aspects, take them apart, say what is wrong with them.

A scene prompt is one string of tagged aspects in a fixed order::

    <|caption|> Rain on a tin roof. <|asr|> We should go. <|env|> Distant thunder.
"""

import logging
import re

log = logging.getLogger(__name__)

ASPECTS = ("caption", "speech", "asr", "sfx", "music", "env")
SPECIAL_TOKENS = tuple(f"<|{aspect}|>" for aspect in ASPECTS)

# What describes the scene, and is English in training; asr is in the language spoken.
DESCRIPTIVE = tuple(aspect for aspect in ASPECTS if aspect != "asr")
# Frequent small words of other languages that are no English words.
FOREIGN_WORDS = frozenset(
    "el los las una unos que por con del est une des dans avec pour qui sur le les du et der das und ein eine einer mit "
    "auf von ist nicht il lo gli che di della sono um uma dos da em os och ett det av het een van zijn".split()
)

_TAG = re.compile(r"<\|([^|<>]*)\|>")


class PromptError(ValueError):
    """A prompt the model was never trained to read."""


def compose_prompt(
    caption: str | None = None,
    speech: str | None = None,
    asr: str | None = None,
    sfx: str | None = None,
    music: str | None = None,
    env: str | None = None,
    *,
    prompt: str | None = None,
) -> str:
    """Write the tagged prompt of a scene.

    Args:
        caption: what the whole scene sounds like; required unless ``prompt`` is given.
        speech: who speaks, and how.
        asr: the words spoken, in their own language.
        sfx: sound effects.
        music: music.
        env: ambience and recording quality.
        prompt: a ready-made tagged prompt, checked and stripped but otherwise kept as written.

    Returns:
        ``tag + " " + text`` for each non-empty aspect, in the order of :data:`ASPECTS`, joined by spaces.

    Raises:
        PromptError: no caption, a tag inside an aspect's text, or a ``prompt`` that
            :func:`parse_prompt` refuses.
    """
    texts = dict(zip(ASPECTS, (caption, speech, asr, sfx, music, env), strict=True))
    filled = {aspect: text.strip() for aspect, text in texts.items() if text and text.strip()}
    if prompt is not None:
        if filled:
            raise PromptError(
                f"Give either a ready-made prompt or aspects, not both (also given: {', '.join(filled)})."
            )
        parse_prompt(prompt)
        return prompt.strip()
    if "caption" not in filled:
        raise PromptError("The caption is empty: say in one English sentence what the whole scene sounds like.")
    for aspect, text in filled.items():
        if tag := _TAG.search(text):
            raise PromptError(
                f"The {aspect} text contains the tag {tag.group()}: write plain text there; "
                "tags are added for you, one per aspect."
            )
    return " ".join(f"<|{aspect}|> {text}" for aspect, text in filled.items())


def parse_prompt(prompt: str) -> dict[str, str]:
    """Take a tagged prompt apart into ``{aspect: text}``, in the order written.

    Raises:
        PromptError: it does not start with ``<|caption|>``, has an empty caption, or has an
            unknown or repeated tag.
    """
    prompt = prompt.strip()
    if not prompt.startswith("<|caption|>"):
        raise PromptError(
            f"The prompt starts with {prompt[:40]!r}, expected <|caption|>: a scene prompt reads "
            "'<|caption|> what is heard', then any of <|speech|> <|asr|> <|sfx|> <|music|> <|env|>."
        )
    aspects = {}
    pieces = _TAG.split(prompt)[1:]
    for aspect, text in zip(pieces[::2], pieces[1::2], strict=True):
        if aspect not in ASPECTS:
            raise PromptError(f"<|{aspect}|> is not a tag of this model: use {' '.join(SPECIAL_TOKENS)}.")
        if aspect in aspects:
            raise PromptError(f"<|{aspect}|> stands twice in the prompt: write each aspect once.")
        aspects[aspect] = text.strip()
    if not aspects["caption"]:
        raise PromptError("Nothing follows <|caption|>: say in one English sentence what the whole scene sounds like.")
    return aspects


def checked_prompt(prompt: str) -> str:
    """A tagged prompt, stripped, that the model can read; what is doubtful in it is logged.

    Raises:
        PromptError: see :func:`parse_prompt`.
    """
    for doubt in lint_prompt(prompt):
        log.warning(doubt)
    return prompt.strip()


def lint_prompt(prompt: str) -> list[str]:
    """What is allowed in a tagged prompt and yet doubtful, a sentence each: descriptions that are not English."""
    doubts = []
    for aspect, text in parse_prompt(prompt).items():
        if aspect not in DESCRIPTIVE:
            continue
        words = re.findall(r"[^\W\d_]+", text)
        strange = [word for word in words if not word.isascii()]
        small = {word.lower() for word in words} & FOREIGN_WORDS
        # One can be a name or a loanword.
        if len(small) > 1:
            strange += sorted(small)
        if strange:
            doubts.append(
                f"The {aspect} text does not read as English ({', '.join(strange[:5])}): the model was trained on English "
                "descriptions; only asr, the words spoken, is in another language."
            )
    return doubts
