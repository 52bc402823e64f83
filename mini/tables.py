"""Write the mini model's scores into its page, mini/README.md: ``python -m mini.tables``.

Numbers come from mini/scores.json, which ``python -m mini.scores ... --json mini/scores.json``
measures; they go between the two MARKS of the page.
"""

import json
import sys

from mini import ROOT
from mini.judges import ROWS
from tools.pages import between, table

SCORES = ROOT / "mini" / "scores.json"
PAGE = ROOT / "mini" / "README.md"
SCORE_MARKS = "<!-- scores: python -m mini.tables -->", "<!-- end of scores -->"
# Columns of the JSON -> heads of the tables, in their order.
HEADS = {
    "truth": "true sound",
    "round trip": "round trip",
    "g 1, 25 steps": "guidance 1",
    "g 5, 25 steps": "**defaults**",
    "g 5, 5 steps": "5 steps",
    "aspects": "aspects alone",
}
# Columns of layered scenes, and their heads.
LAYERED_HEADS = {
    "g 5, 25 steps": "layered",
    "aspects": "aspects alone",
    "detail": "detail in its aspect",
    "truth": "their true sound",
}
DEFAULT_SAMPLING = "g 5, 25 steps"
TABLE_ATTRIBUTES = {
    "effect": "which effect",
    "pitch": "a beep's pitch",
    "direction": "a sweep's direction",
    "count": "how many knocks",
    "music": "which music",
    "tempo": "its tempo",
    "register": "its register",
    "timbre": "its timbre",
    "ambience": "which ambience",
    "quality": "static or studio",
    "voice": "low or high voice",
    "words": "a word, in its place",
    "length": "length to 0.3 s",
    "windows": "any two seconds like the whole",
}


def main() -> int:
    scores = json.loads(SCORES.read_text("utf-8"))
    PAGE.write_text(between(PAGE.read_text("utf-8"), SCORE_MARKS, tables(scores)), "utf-8")
    return 0


def tables(scores: dict) -> str:
    return f"{summary(scores)}\n\n{every_kind(scores)}"


def summary(scores: dict) -> str:
    """One row an attribute: clips with one layer in every setting and told in two ways, layered ones told in three."""
    rows = {(row["layers"], row["attribute"]): row for row in scores["rows"] if row["kind"] is None}
    lines = [["right answers, %", "asked", "chance", *HEADS.values(), *LAYERED_HEADS.values()]]
    for name in ROWS:
        if row := rows.get(("one layer", name)):
            cells = [percent(row, column) for column in HEADS]
            layered = rows.get(("layered", name))
            cells += [percent(layered, column) if layered else "" for column in LAYERED_HEADS]
            lines.append([TABLE_ATTRIBUTES[name], str(row["asked"]), f"{100 * row['chance']:.0f}", *cells])
    return table(lines)


def every_kind(scores: dict) -> str:
    """One row a kind, at the defaults, with its 95 % interval; and told by aspects in the two ways."""
    lines = [["", "", "asked", "chance", "true sound", "round trip", "defaults", "95 % interval", "aspects", "detail"]]
    rows = [row for row in scores["rows"] if row["kind"] is not None]
    for row in sorted(rows, key=lambda row: (row["layers"] != "one layer", ROWS.index(row["attribute"]), row["kind"])):
        low, high = row["interval"][DEFAULT_SAMPLING]
        cells = [percent(row, column) for column in ("truth", "round trip", DEFAULT_SAMPLING)]
        asked, chance = str(row["asked"]), f"{100 * row['chance']:.0f}"
        told = [row["layers"], f"{row['attribute']}: {row['kind']}", asked, chance, *cells]
        told.append(f"{100 * low:.0f} to {100 * high:.0f}")
        lines.append(told + [percent(row, column) for column in ("aspects", "detail")])
    return table(lines)


def percent(row: dict, column: str) -> str:
    return f"{100 * row['right'][column] / row['asked']:.0f}" if column in row["right"] else ""


if __name__ == "__main__":
    sys.exit(main())
