"""Lines of a second and a text, as people write them and as Audacity exports its labels."""

import re
from typing import NamedTuple

_NUMBER = r"\d+(?:[.,]\d*)?|[.,]\d+"
# Audacity: start, end and name with tabs between them; people: a second, any space, and a text.
_LABEL = re.compile(rf"({_NUMBER})\t({_NUMBER})(?:\t(.*))?")
_LINE = re.compile(rf"({_NUMBER})(?:\s+(.*))?")


class Label(NamedTuple):
    """A text from a second on; ``end`` None: it has none."""

    start: float
    text: str
    end: float | None = None


def read_label(line: str) -> Label | None:
    """The label on a line; None where it does not begin with a second. A comma may stand for the point of a number."""
    line = line.strip()
    if match := _LABEL.fullmatch(line):
        start, end = _seconds(match[1]), _seconds(match[2])
        if end >= start:
            return Label(start, (match[3] or "").strip(), end if end > start else None)
    match = _LINE.fullmatch(line)
    return Label(_seconds(match[1]), (match[2] or "").strip()) if match else None


def is_frequency_range(line: str) -> bool:
    """Whether a line is what Audacity writes below a label that selects frequencies: it names no second."""
    return line.startswith("\\\t")


def _seconds(text: str) -> float:
    return float(text.replace(",", "."))
