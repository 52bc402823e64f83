"""A command that measures: what is measured by its name, printed as it comes, kept as JSON, and as a table in a page."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dasheng_core import DashengAudioGen
from mini import ROOT
from tools.pages import between, table

# A name -> (what, clips, value, what is asked for) each, of a model and the arguments.
Measurements = Mapping[str, Callable[[DashengAudioGen, argparse.Namespace], Iterator[tuple[str, int, Any, str]]]]


def measure_command(doc: str, measures: Measurements, marks: tuple[str, str], **numbers: tuple[int, str]) -> int:
    """Measure what the command line asks for.

    Args:
        doc: of the module; its first line is the command's help.
        marks: between which the page has the table.
        numbers: further arguments by their names: a default, and a help text. They head the JSON.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "mini", metavar="FOLDER", help="where the three parts are")
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default %(default)s)")
    parser.add_argument("--only", nargs="*", choices=measures, default=[*measures], help="what to measure")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write the numbers here, beside those of other measures"
    )
    parser.add_argument("--page", type=Path, metavar="PAGE", help="and a table of them into this page")
    args = parser.parse_args()
    # What it warns of is counted here, where it is asked for.
    logging.getLogger("dasheng_core").setLevel(logging.ERROR)
    rows = measured(measures, DashengAudioGen.from_pretrained(args.model), args)
    if args.json:
        # What was not measured this time stays as it was.
        earlier = json.loads(args.json.read_text("utf-8"))["rows"] if args.json.exists() else []
        rows += [row for row in earlier if row["measure"] not in args.only]
        rows.sort(key=lambda row: [*measures].index(row["measure"]))
        head = {name: getattr(args, name) for name in numbers}
        args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n", "utf-8")
    if args.page:
        args.page.write_text(between(args.page.read_text("utf-8"), marks, table_of(rows)), "utf-8")
    return 0


def measured(measures: Measurements, model: DashengAudioGen, args: argparse.Namespace) -> list[dict]:
    """Rows of what ``args.only`` names, printed as they come."""
    rows = []
    for name in args.only:
        begun = time.monotonic()
        for what, clips, value, wanted in measures[name](model, args):
            rows.append({"measure": name, "what": what, "clips": clips, "value": value, "wanted": wanted})
            print(f"{name:10} {what:66} {clips:5}  {text_of(value):32} {wanted}", flush=True)
        print(f"{name:10} {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return rows


def table_of(rows: list[dict]) -> str:
    lines = [["measure", "what", "clips", "measured", "aim"]]
    for row in rows:
        value = text_of(row["value"]).replace(" ", " · ")
        lines.append([row["measure"], row["what"], str(row["clips"]), value, row["wanted"]])
    return table(lines)


def text_of(value) -> str:
    return " ".join(map(text_of, value)) if isinstance(value, (list, tuple)) else f"{value:.3g}"
