"""Foreign text as a message, a terminal or a file name may show it: one line, short, and inert.

What a file, a prompt, a table, a server or the environment says goes through :func:`plain` before it is quoted.
"""

import os
import unicodedata

# Letters of these kinds move what stands around them, end a line, or have no glyph: controls, formats (U+202E writes
# backwards), halves of surrogates, separators of lines and paragraphs, and code points that nobody has assigned.
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
    return "".join(
        letter if unicodedata.category(letter) not in _ACTING or letter in _SPELLING else _escaped(letter)
        for letter in letters
    )


def plain_lines(text: object, most: int = MESSAGE) -> str:
    """The same of each line: the last guard of what shows whole messages, whatever they quote."""
    return "\n".join(plain(line, most) for line in str(text).split("\n"))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
