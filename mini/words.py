"""What the mini model has words for: ``python -m mini.words "PROMPT"`` says what of a prompt is beyond them.

The two grammars hold every word that it was trained on and tested with, the vocabulary every word that its voices say.
Standard library only, so that dev.py can ask before anything is installed.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields

from mini.grammars import GRAMMAR_ATTRIBUTES, HELD_OUT, LENGTH_CLASSES, LENGTHS, TRAINING
from mini.vocabulary import AMBIENCES, DIGITS, EFFECTS, LONGEST_SECONDS, MIN_SECONDS, MUSIC

# One of the prompts that it was made for.
SMALL_PROMPT = (
    "<|caption|> A high voice speaking in the rain, about three seconds long. <|speech|> A high voice. <|asr|> one two three "
    "<|env|> Rain in the background."
)
# What changes nothing, wherever it stands.
SMALL_WORDS = tuple(
    "a an the and or but of off to by at as in on into onto from for with without over under near behind while during "
    "before after then there here this that these those it its is are was be been being has have some any one's very "
    "again once i you he she we they my your his her their what which who".split()
)
# What the wordings call a sound, beside the name of its kind.
OTHER_NAMES = tuple(
    "tone glide thud chime buzzer motor chord note rhythm drum speech speak talk voice spoken drops rainfall gusts sea surf "
    "crowd chatter silence silent static".split()
)
ENDINGS = ("ing", "ed", "es", "ly", "s")


def beyond(prompt: str) -> list[str]:
    """What of a prompt, tagged or plain, is outside the mini model's world: a sentence each, none where nothing is."""
    pieces = re.split(r"<\|(\w+)\|>", prompt)
    # A plain sentence is a caption; before the first tag stands nothing.
    aspects = dict(zip(pieces[1::2], pieces[2::2], strict=True)) or {"caption": prompt}
    spoken = words_in(aspects.pop("asr", ""))
    described = [word for text in aspects.values() for word in words_in(text)]
    sentences = []
    if strange := [word for word in described if stem(word) not in KNOWN_WORDS]:
        sentences.append(f"The mini model has no idea of: {listed(strange)}.")
    if strange := [word for word in spoken if word not in DIGITS]:
        sentences.append(f"Its voices never said: {listed(strange)}. They say {DIGITS[0]} to {DIGITS[-1]}.")
    if not {stem(word) for word in described} & NAMES:
        sentences.append("The prompt names no sound that the mini model knows.")
    if sentences:
        kinds = ", ".join((*EFFECTS, *MUSIC, *AMBIENCES))
        sentences.append(
            f"Its world: {kinds}, a low or high voice; clips of {MIN_SECONDS:g} to {LONGEST_SECONDS:g} seconds."
        )
    return sentences


def words_in(text: str) -> list[str]:
    """Words and numbers, in small letters and in their order."""
    return re.findall(r"[^\W\d_]+(?:'\w+)?|\d+(?:\.\d+)?", text.lower())


def stem(word: str) -> str:
    """A word without its ending, roughly: the same for "knock", "knocks" and "knocking"."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) > 2:
            word = word.removesuffix(ending)
            break
    word = word.removesuffix("e")
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def templates(value) -> Iterator[str]:
    """Every text in nested dicts and tuples, without placeholders."""
    if isinstance(value, str):
        yield re.sub(r"\{s\}", "s", re.sub(r"\{[a-z]{2,}\}", " ", value.replace("(n)", "n")))
    elif isinstance(value, dict):
        yield from templates(tuple(value.values()))
    elif isinstance(value, tuple):
        for inner in value:
            yield from templates(inner)


def stems(*values) -> frozenset[str]:
    return frozenset(stem(word) for text in templates(values) for word in words_in(text))


_NUMERALS = tuple(f"{halves / 2:g}" for halves in range(1, len(LENGTHS) + 1))
_GRAMMARS = tuple(getattr(grammar, field.name) for grammar in (TRAINING, HELD_OUT) for field in fields(grammar))
NAMES = stems(EFFECTS, MUSIC, AMBIENCES, OTHER_NAMES)
KNOWN_WORDS = stems(SMALL_WORDS, GRAMMAR_ATTRIBUTES, LENGTHS, _NUMERALS, LENGTH_CLASSES, _GRAMMARS)

if __name__ == "__main__":
    sys.stdout.writelines(f"{sentence}\n" for sentence in beyond(sys.argv[1]))
