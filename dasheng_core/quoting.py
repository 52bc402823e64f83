"""Foreign text as a message, a terminal or a file name may show it: one line, short, and inert.

Text of a file, a prompt, a table, a server or the environment goes through :func:`plain` before it is quoted.
"""

from __future__ import annotations

import os
import re
import unicodedata

# Letters of these kinds move what stands around them, end a line, or have no glyph: controls, formats (U+202E writes
# backwards), halves of surrogates, separators of lines and paragraphs, and unassigned code points.
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp", "Cn"}
# Two formats that several scripts, and emoji, are spelt with.
_SPELLING = "\u200c\u200d"


# Letters of a quoted text, and of a path, which is of use only as a whole.
MOST, PATH = 120, 600
# Letters of a message.
MESSAGE = 2000


def plain(text: object, most: int | None = None) -> str:
    """``text`` in one line of about ``most`` letters: the middle of a longer one is left out, what could act is escaped.

    Args:
        most: None: 120, and 600 of a path.
    """
    letters = str(text)
    most = most or (PATH if isinstance(text, os.PathLike) else MOST)
    if len(letters) > most:
        half = most // 2
        return f"{plain(letters[:half], half)}[... {len(letters) - 2 * half} more ...]{plain(letters[-half:], half)}"
    return "".join(letter.encode("unicode_escape").decode() if _acts(letter) else letter for letter in letters)


def plain_lines(text: object, most: int = MESSAGE) -> str:
    """The same of each line: the last check where whole messages are shown."""
    return "\n".join(plain(line, most) for line in str(text).split("\n"))


def file_name(text: str, most: int) -> str:
    """A name, or a path, that no foreign text makes act where it is listed: what could act, ``<`` and ``>`` become ``_``.

    Raises ValueError where a part of it has more bytes than ``most``.
    """
    # The length first: each letter takes time.
    for part in re.split(r"[/\\]", text):
        size = len(part.encode("utf-8", "replace"))
        if size > most:
            raise ValueError(f"The name {plain(part, 40)} has {size} bytes, expected at most {most}: shorten it.")
    return "".join("_" if letter in "<>" or _acts(letter) else letter for letter in text)


def _acts(letter: str) -> bool:
    return unicodedata.category(letter) in _ACTING and letter not in _SPELLING
