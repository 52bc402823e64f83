"""ComfyUI's lists, for nodes that get them whole: a list of sounds, and beside it one of names, levels or lengths."""

from collections.abc import Sequence


def calls(**inputs: Sequence | None) -> list[tuple]:
    """The values of each call, in the order of ``inputs``, were the node to run once for each item of its lists.

    ComfyUI's own rule: as many calls as the longest list has items, and a shorter list repeats its last one. An input that
    is not connected is None in each.

    Raises ValueError for an empty list.
    """
    lists = {name: [None] if values is None else _filled(values, name) for name, values in inputs.items()}
    count = max(map(len, lists.values()))
    return [tuple(values[min(i, len(values) - 1)] for values in lists.values()) for i in range(count)]


def only(values: Sequence, name: str) -> object:
    """The value of an input that is read once for all. Raises ValueError for a list of several, or of none."""
    first, *more = _filled(values, name)
    if any(value != first for value in more):
        raise ValueError(
            f"{name} is a list of {len(values)} values, expected one: it counts for all takes together; use a node for each value."
        )
    return first


def _filled(values: Sequence, name: str) -> Sequence:
    if not len(values):
        raise ValueError(
            f"{name} is an empty list, expected at least one value: the node before gives none; connect another."
        )
    return values
