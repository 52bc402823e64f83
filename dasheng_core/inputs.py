"""The check of user input, in one place: converted where that is harmless, refused by name where it is not.

Every error is a ValueError of one sentence: the value, what was expected, what to do. Nothing is computed before it. Numbers and
texts are here, without torch; tensors are in :mod:`dasheng_core.tensors`. Arrays and tensors are recognised by their methods.
"""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from .duration import MAX_SECONDS
from .quoting import plain

# The highest rate of any sound hardware.
MAX_RATE = 768_000


def shown(value: Any) -> str:
    """A value as an error can show it: short, and a tensor by its shape."""
    if _is_array(value):
        if value.shape:
            return f"a tensor of shape {list(value.shape)}"
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 256:
        # Python refuses to write thousands of digits.
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (str, Real)):
        return f"'{plain(value, 40)}'" if isinstance(value, str) else plain(repr(value), 40)
    return f"an object of type {type(value).__name__}" if value != [] else "an empty list"


def as_float(value: object, name: str, least: float, most: float, remedy: str) -> float:
    """A number from ``least`` to ``most``: Python's, numpy's, or torch's of one element."""
    number = _number(value)
    # NaN is in no range.
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} is {shown(value)}, expected a number from {least:g} to {most:g}: {remedy}.")
    return float(number)


def as_int(value: object, name: str, least: int, most: int, remedy: str) -> int:
    """A whole number from ``least`` to ``most``, of any numeric type."""
    number = _number(value)
    if number is None or not least <= number <= most or number != math.floor(number):
        raise ValueError(f"{name} is {shown(value)}, expected a whole number from {least} to {most}: {remedy}.")
    return int(number)


def as_seconds(value: object, count: int) -> list[float]:
    """Lengths of so many clips in seconds, above 0: one for all, or one for each."""
    given = as_list(value)
    lengths = given * count if given == [value] else given
    if len(lengths) != count:
        raise ValueError(f"{len(lengths)} durations for {count} prompts: give one number, or one per prompt.")
    remedy = "training clips were 10 s long, and more than ten minutes need too much memory"
    seconds = [as_float(length, "A duration in seconds", 0, MAX_SECONDS, remedy) for length in lengths]
    if 0 in seconds:
        raise ValueError(f"A duration of 0 seconds, expected more than 0: {remedy}.")
    return seconds


def as_choice(value: object, name: str, options: Iterable[str]) -> str:
    """One of some names."""
    if value not in list(options):
        raise ValueError(f"{name} is {shown(value)}, expected {', '.join(options)}.")
    return value


def as_list(value: Any) -> list[Any]:
    """The items of a list, tuple, array or tensor; anything else is one item."""
    if _is_array(value):
        return list(value.tolist()) if value.shape else [value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else [value]


def as_prompts(value: object) -> list[str]:
    """One prompt or several, at least one."""
    prompts = as_list(value)
    if not prompts:
        raise ValueError("prompts is an empty list, expected at least one prompt.")
    for prompt in prompts:
        as_text(prompt, "A prompt")
    return prompts


def as_text(value: object, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, expected a text.")
    return value


def _number(value: Any) -> int | float | None:
    if _is_array(value) and math.prod(value.shape) == 1:
        value = value.item()
    # To Python, True is a number.
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def as_rate(value: object) -> int:
    """A sample rate in Hz."""
    return as_int(value, "The sample rate of the audio", 1, MAX_RATE, "16000 and 44100 are usual")


def _is_array(value: Any) -> bool:
    """Whether it is a tensor, an array, or one number of such."""
    return all(hasattr(value, name) for name in ("shape", "item", "tolist"))
