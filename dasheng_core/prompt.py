"""Scene prompts: compose them from aspects, take them apart, and warn of what a tokenizer cannot read.

A scene prompt is one string of tagged aspects in a fixed order::

    <|caption|> Rain on a tin roof. <|asr|> We should go. <|env|> Distant thunder.
"""

import re
import unicodedata
from collections.abc import Callable

import regex

from .quoting import plain

ASPECTS = ("caption", "speech", "asr", "sfx", "music", "env")
SPECIAL_TOKENS = tuple(f"<|{aspect}|>" for aspect in ASPECTS)
# Fast speech has about 4 words per second, calm speech 2 to 3.
WORDS_A_SECOND = 4

_TAG = re.compile(r"<\|([^|<>]*)\|>")
# What a tag becomes by a typing error: <music>, < |music| >, <|music| piano, |music|>.
_LOOKALIKE = re.compile(
    r"<\s*\|\s*(?:{0})\b[\s|>]*|<\s*(?:{0})\s*[|>]|\b(?:{0})\s*\|\s*>".format("|".join(ASPECTS)), re.IGNORECASE
)
# <Laughter:1>, [sigh], 【sigh】, {rain|wind}, *sighs*, (rain:1.3), but not (at 7:30).
_MARKUP = (
    r"<[^<>\s][^<>]*>|\[[^\[\]]+\]|【[^【】]+】|\{[^{}]+\}|(?<![\w*])\*{1,3}[^*\s](?:[^*]*[^*\s])?\*{1,3}(?![\w*])"
    r"|\([^()]*[^()\d\s]:\s?(?:\d(?:\.\d+)?|\.\d+)\)"
)
# (laughs), (sighs softly): what a voice does. In a transcript any such word is one.
_VOICED = "laugh|giggle|chuckle|sigh|sob|crie|cough|sneeze|sniff|gasp|groan|moan|yawn|whisper|shout|scream|yell"
_DESCRIBED = re.compile(rf"{_MARKUP}|\((?:\w+ly )?(?:{_VOICED})s(?: \w+ly)?\)", re.IGNORECASE)
_SPOKEN_TO = re.compile(
    rf"{_MARKUP}|\((?:\w+ly )?\w+(?:s|ing|ed)(?: \w+ly| throat)?\)|\((?:pause|beat|silence|laughter|applause|music|[一-鿿]{{1,3}})\)",
    re.IGNORECASE,
)
# What is spoken, by Unicode's properties: a word keeps its combining marks, joiners, apostrophes and hyphens.
_SYLLABLES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Bopomofo}\p{Yi}"
_UNSPACED = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_SPOKEN = regex.compile(
    rf"""(?xV1)
    (?P<digits> \p{{Nd}}+ )
    | (?P<syllable> [[{_SYLLABLES}]&&\p{{L}}] )
    | (?P<letter> [[{_UNSPACED}]&&\p{{L}}] )
    | (?P<word> (?: ['’ʼ"״׳·-]? [\p{{L}}--[{_SYLLABLES}{_UNSPACED}]] [\p{{M}}\u200c\u200d]* )+ )
    | (?P<sign> [\p{{Sc}}%‰&+=@°\#] | (?<=\p{{Nd}})[.,:](?=\p{{Nd}}) )
    """
)
# 1,000,000 and 1 000 000 are one number; 1.500 and 1,500 are ambiguous, and a few words in either reading.
_THOUSANDS = regex.compile(r"(?<=\p{Nd})[,.  ’'](?=\p{Nd}{3}(?!\p{Nd}))")

NO_CAPTION = "The caption is empty: say in one English sentence what the whole scene sounds like."


class PromptError(ValueError):
    """A prompt that the model cannot read."""


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
        prompt: a ready-made tagged prompt, checked and otherwise kept as written.

    Returns:
        ``tag + " " + text`` for each non-empty aspect, in the order of :data:`ASPECTS`, joined by spaces. White space
        of any kind and length is one space, as T5's own tokenizer reads it.

    Raises:
        PromptError: no caption, a tag inside an aspect's text, something that is not a text, or a ``prompt`` that
            :func:`parse_prompt` refuses.
    """
    texts = dict(zip(ASPECTS, (caption, speech, asr, sfx, music, env), strict=True))
    filled = {aspect: text for aspect, given in texts.items() if given is not None and (text := _plain(aspect, given))}
    if prompt is not None:
        if filled:
            raise PromptError(f"Give a ready-made prompt or aspects, not both (also given: {', '.join(filled)}).")
        parse_prompt(prompt)
        return _plain("prompt", prompt)
    if "caption" not in filled:
        raise PromptError(NO_CAPTION)
    for aspect, text in filled.items():
        if tag := _TAG.search(text):
            raise PromptError(
                f"The {aspect} text contains the tag {plain(first_words(tag.group()))}: write plain text there; "
                "tags are added for you, one per aspect."
            )
    return " ".join(f"<|{aspect}|> {text}" for aspect, text in filled.items())


def parse_prompt(prompt: str) -> dict[str, str]:
    """Take a tagged prompt apart into ``{aspect: text}``, in the order written.

    Raises:
        PromptError: it is not a text, does not start with ``<|caption|>``, has an empty caption, or has an unknown or
            repeated tag.
    """
    prompt = _plain("prompt", prompt)
    if not prompt.startswith("<|caption|>"):
        raise PromptError(
            f"The prompt starts with {first_words(prompt)!r}, expected <|caption|>: a scene prompt reads "
            "'<|caption|> what is heard', then any of <|speech|> <|asr|> <|sfx|> <|music|> <|env|>."
        )
    aspects = {}
    pieces = _TAG.split(prompt)[1:]
    for aspect, text in zip(pieces[::2], pieces[1::2], strict=True):
        if aspect not in ASPECTS:
            raise PromptError(
                f"<|{plain(first_words(aspect))}|> is not a tag of this model: use {' '.join(SPECIAL_TOKENS)}."
            )
        if aspect in aspects:
            raise PromptError(f"<|{aspect}|> stands twice in the prompt: write each aspect once.")
        aspects[aspect] = text.strip()
    if not aspects["caption"]:
        raise PromptError("Nothing follows <|caption|>: say in one English sentence what the whole scene sounds like.")
    return aspects


def lint_prompt(prompt: str, read: Callable[[str], tuple[str, list[str]]]) -> list[str]:
    """The doubts about a tagged prompt, one sentence each, by what a tokenizer reads of it.

    Args:
        read: text -> the part of it in the tokenizer's vocabulary, and the pieces outside it.

    Raises:
        PromptError: see :func:`parse_prompt`; or no word of an aspect is in the tokenizer's vocabulary.
    """
    doubts = []
    for aspect, text in parse_prompt(prompt).items():
        if not text:
            continue
        known, unknown = read(text)
        start = f"The {aspect} text {first_words(text)!r}"
        if not known.strip() or (unknown and not _has_words(known)):
            raise PromptError(
                f"{start} has nothing that the model can read: write it in words. Only the multilingual model reads "
                "scripts other than the Latin one."
            )
        marks = ""
        if found := _LOOKALIKE.search(usual := unicodedata.normalize("NFKC", text)):
            marks = found.group().strip()
            doubts.append(
                f"{start} has {first_words(marks)!r}, which is read as text: a tag is written exactly as in "
                f"{' '.join(SPECIAL_TOKENS)}."
            )
        elif found := (_SPOKEN_TO if aspect == "asr" else _DESCRIBED).search(usual):
            marks = found.group()
            doubts.append(
                f"{start} has {first_words(marks)!r}: the model knows no markup and reads it as text; say in words what is "
                "heard."
            )
        shown = set(marks)
        if pieces := [
            piece for piece in dict.fromkeys(unknown) if not shown.issuperset(unicodedata.normalize("NFKC", piece))
        ]:
            some = ", ".join(repr(first_words(piece, 12)) for piece in pieces[:5])
            more = f" and {len(pieces) - 5} more" if len(pieces) > 5 else ""
            doubts.append(
                f"{start} has pieces that the model does not know ({some}{more}): write it otherwise; other languages "
                "need the multilingual model."
            )
        elif not _has_words(text):
            doubts.append(f"{start} has no words: say in words what is heard.")
    return doubts


def spoken_words(prompt: str) -> float:
    """How many words the asr aspect has, numbers as they are spoken.

    Of scripts that put no spaces between words, letters are counted: two Chinese, Japanese or Korean ones, or four Thai, Lao,
    Khmer or Burmese ones, take the time of a word.
    """
    # Syllables as one letter each, and letters of other widths as their own, as the tokenizer reads them.
    text = unicodedata.normalize("NFKC", parse_prompt(prompt).get("asr", ""))
    found = [(match.lastgroup, match.group()) for match in _SPOKEN.finditer(_THOUSANDS.sub("", text))]
    shares = {"word": 1.0, "sign": 1.0, "syllable": 1 / 2, "letter": 1 / 4}
    return sum(_number_words(spoken) if kind == "digits" else shares[str(kind)] for kind, spoken in found)


def _number_words(number: str) -> int:
    """Words of a number in English: "one million" are two. At most as many as digits, by which long ones are read."""
    digits = [unicodedata.decimal(digit, 0) for digit in number]
    if digits[0] == 0:
        return len(digits)
    words, padded = 0, [0] * (-len(digits) % 3) + digits
    for start in range(0, len(padded), 3):
        hundreds, tens, ones = padded[start : start + 3]
        last = 2 if tens > 1 and ones else int(tens + ones > 0)
        named = 2 * (hundreds > 0) + last
        # Thousand, million and so on.
        words += named + (named > 0 and start + 3 < len(padded))
    return min(words, len(digits))


def lint_pace(words: float, seconds: float) -> list[str]:
    """A sentence where a clip of so many seconds is too short for so many spoken words; else nothing."""
    if words <= WORDS_A_SECOND * seconds:
        return []
    return [
        f"The asr text has {words:g} words for a clip of {seconds:g} seconds, and people say 2 to 3 words per second: the "
        "model will drop or slur some; make the clip longer or the text shorter."
    ]


def first_words(text: str, length: int = 40) -> str:
    """The beginning of a text, as much as a message quotes."""
    return text if len(text) <= length else text[:length] + "…"


def _plain(name: str, text: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"The {name} is {first_words(repr(text))}, expected a text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The {name} text has half a character ({text[error.start]!a}) after {text[max(0, error.start - 20) : error.start]!r}: "
            "write that character again."
        ) from error
    return " ".join(text.split())


def _has_words(text: str) -> bool:
    return any(letter.isalnum() for letter in text)
