"""The score tables of the mini model's page, and the picture, are what was measured."""

import json

import numpy as np
import pytest
from PIL import Image

from mini import direction, hits_scores, script_scores, stems_scores, tables, variation_scores
from mini import picture as pictures
from mini.measuring import table_of
from mini.words import SMALL_PROMPT, beyond
from tools.comfyui import ROOT
from tools.pages import between


def row(layers, attribute, kind, right):
    interval = {column: [0.25, 0.75] for column in right}
    return dict(layers=layers, attribute=attribute, kind=kind, chance=0.125, asked=40, right=right, interval=interval)


SCORES = {
    "rows": [
        row("layered", "effect", None, {"truth": 36, "round trip": 30, "g 5, 25 steps": 20, "detail": 10}),
        row("one layer", "pitch", "beep, low", {"truth": 40, "round trip": 38, "g 5, 25 steps": 35}),
        row("one layer", "effect", "bell", {"truth": 40, "round trip": 40, "g 5, 25 steps": 39}),
        row("one layer", "effect", None, {"truth": 40, "round trip": 39, "g 5, 25 steps": 38, "g 5, 5 steps": 10}),
    ]
}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_table_says_what_was_counted():
    heads, rule, effect = cells(tables.summary(SCORES))
    assert len(heads) == len(rule) == len(effect) and set(rule) == {"---"}
    told = dict(zip(heads, effect, strict=True))
    assert told["asked"] == "40" and told["chance"] == "12" and told["true sound"] == "100"
    assert (told["**defaults**"], told["5 steps"], told["guidance 1"], told["layered"]) == ("95", "25", "", "50")
    assert told["detail in its aspect"] == "25" and told["their true sound"] == "90"
    _, _, *kinds = cells(tables.every_kind(SCORES))
    assert [kind[1] for kind in kinds] == ["effect: bell", "pitch: beep, low"]
    assert kinds[0][-4:] == ["98", "25 to 75", "", ""]


def test_a_table_replaces_the_one_between_the_marks():
    first, last = tables.SCORE_MARKS
    page = f"Before.\n{first}\n| old |\n{last}\nAfter.\n"
    once = between(page, tables.SCORE_MARKS, "| \\1 new |")
    assert once == f"Before.\n{first}\n\n| \\1 new |\n\n{last}\nAfter.\n"
    assert between(once, tables.SCORE_MARKS, "| \\1 new |") == once
    for wrong in ("No marks.", page + first, f"{last} {first}"):
        with pytest.raises(ValueError, match="needs one line"):
            between(wrong, tables.SCORE_MARKS, "| new |")


def test_the_page_holds_what_the_json_gives():
    scores = json.loads(tables.SCORES.read_text("utf-8"))
    text = tables.PAGE.read_text("utf-8")
    assert between(text, tables.SCORE_MARKS, tables.tables(scores)) == text
    assert scores["prompts"] >= 300 and {"g 1, 25 steps", "g 5, 5 steps"} <= set(scores["rows"][0]["right"])


@pytest.mark.parametrize(
    "page, kept, marks",
    [
        ("direction", "direction", direction.FIGURE_MARKS),
        ("hits", "hits_scores", hits_scores.HIT_MARKS),
        ("script", "script_scores", script_scores.SCRIPT_MARKS),
        ("stems", "stems_scores", stems_scores.STEM_MARKS),
        ("variations", "variation_scores", variation_scores.VARIATION_MARKS),
    ],
)
def test_the_pages_of_capabilities_hold_what_was_measured(page, kept, marks):
    rows = json.loads((ROOT / "mini" / f"{kept}.json").read_text("utf-8"))["rows"]
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    assert rows and between(text, marks, table_of(rows)) == text


def test_the_card_says_how_it_was_trained():
    card = (ROOT / "mini" / "README.md").read_text("utf-8")
    assert "[TRAINING" not in card and "python -m mini.train" in card


def test_the_picture_is_of_its_prompts():
    assert len(pictures.PROMPTS) == 6 and SMALL_PROMPT in pictures.PROMPTS
    assert not [prompt for prompt in pictures.PROMPTS if beyond(prompt)]
    clock = np.arange(16000) / 16000
    clips = [(prompt, np.sin(2 * np.pi * 440 * clock).astype(np.float32)) for prompt in pictures.PROMPTS]
    with Image.open(ROOT / "mini" / "picture.png") as picture:
        assert picture.size == pictures.draw(clips).size
    # A tone is one light line, where its frequency is.
    light = np.asarray(pictures.panel(clips[0][1]).convert("L"), float)
    expected = pictures.HEIGHT * np.log(pictures.HIGHEST / 440) / np.log(pictures.HIGHEST / pictures.LOWEST)
    assert abs(light[:, 70].argmax() - expected) < 4 and np.median(light) < light.max() / 4
