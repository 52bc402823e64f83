"""Foreign text in messages is one short line that cannot act."""

import pytest

from dasheng_core.quoting import plain


@pytest.mark.parametrize(
    "text, quoted",
    [
        ("rain on a roof", "rain on a roof"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("two\nlines\r\0", "two\\nlines\\r\\x00"),
        ("half \ud800", "half \\ud800"),
        ("one\u2028two", "one\\u2028two"),
        ("नमस्ते, می‌خواهم, 👩‍🚒", "नमस्ते, می‌خواهم, 👩‍🚒"),
        (b"bytes", "b'bytes'"),
    ],
    ids=ascii,
)
def test_what_could_act_is_escaped_and_what_is_spelt_stays(text, quoted):
    assert plain(text) == quoted


def test_a_long_text_keeps_its_two_ends():
    quoted = plain("begin" + "a" * 1_000_000 + "end")
    assert len(quoted) < 160 and quoted.startswith("begin") and quoted.endswith("end") and "999888 more" in quoted
