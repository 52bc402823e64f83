"""Tables of figures, and the pages that hold them between two marks."""


def table(lines: list[list[str]]) -> str:
    """Markdown, the first line as heads."""
    head, *rest = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def between(page: str, marks: tuple[str, str], text: str) -> str:
    """The page with ``text`` between its two marks.

    Raises:
        ValueError: it does not have each of them once, in this order.
    """
    first, last = marks
    before, *rest = page.split(first)
    _, *after = "".join(rest).split(last)
    if len(rest) != 1 or len(after) != 1:
        raise ValueError(f"The page needs one line {first} and one line {last} after it.")
    return f"{before}{first}\n\n{text}\n\n{last}{after[0]}"
