#!/usr/bin/env python3
"""Put the results into docs/speed.md: ``python -m benchmarks.report`` (measures nothing; reads docs/bench*.json).

``python3 dev.py bench --json docs/bench.json`` writes the first, ``python -m benchmarks.gpu --json docs/bench_gpu.json`` and
``python -m benchmarks.comfyui_gpu --comfyui PATH --json docs/bench_comfyui.json`` the others. The section between the two markers
in docs/speed.md is made of them.
"""

import json
import sys
from collections.abc import Callable

from tools.comfyui import ROOT
from tools.pages import between, table

PAGE = ROOT / "docs" / "speed.md"
KEPT = [ROOT / "docs" / name for name in ("bench.json", "bench_gpu.json", "bench_comfyui.json")]
MARKS = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"
DRY_RUN = " A dry run without a GPU: these times mean nothing."


def main() -> int:
    PAGE.write_text(with_section(PAGE.read_text("utf-8")), "utf-8")
    return 0


def with_section(page: str) -> str:
    """The page's text with the section that the kept results give."""
    results = [json.loads(path.read_text("utf-8")) for path in KEPT if path.exists()]
    return between(page, MARKS, "\n\n".join(map(section, results)))


def section(result: dict) -> str:
    """Markdown, ratios first."""
    return comfyui_section(result) if "rows" in result else speed_section(result)


def speed_section(result: dict) -> str:
    job, on_gpu = result["job"], result["kind"] == "gpu"
    end = "waveform" if on_gpu else "file, added up from its parts"
    parts = [
        show(
            f"one evaluation with guidance, {job['frames'] / 25:g} s of sound, {job['tokens']} tokens",
            result["evaluation"],
            {
                **COMPARED,
                "time": in_seconds("seconds"),
                "/ floor": lambda entry: f"{entry['seconds'] / entry['floor_seconds']:.2f} ×",
                "launches": lambda entry: str(entry.get("launches", "")),
                "cold": in_seconds("cold_seconds"),
                "relative error": lambda entry: f"{entry['error']:.1e}",
            },
        ),
        show(
            f"whole clip, {job['steps']} steps, text to {end}",
            result["clip"],
            {**COMPARED, "time": in_seconds("seconds")},
        ),
    ]
    if "throughput" in result:
        columns = {
            "time per evaluation": in_seconds("seconds"),
            "seconds of sound per second": lambda entry: f"{entry['sound_per_second']:.0f}",
        }
        parts.append(show("prompts at once", result["throughput"], columns, "batch"))
    parts += [conditions(result), folded("Parts and memory", details(result))]
    if result.get("left_out"):
        parts.append("Left out: " + " ".join(result["left_out"]))
    return "\n\n".join(parts)


def details(result: dict) -> list[str]:
    number_format = {"number format": lambda entry: entry["dtype"]}
    parts = [show("part", result["stages"], {**number_format, "seconds": in_seconds("seconds")}, "stage")]
    if memory := result.get("memory"):
        parts.append(
            show(
                "memory of the backbone, bf16, eager",
                [{"name": "", **memory}],
                {"weights": in_bytes("weights"), "besides": in_bytes("besides_weights_at_peak")},
            )
        )
    return parts


def comfyui_section(result: dict) -> str:
    job = result["job"]
    corner = f"a clip in ComfyUI on a GPU: {job['seconds']:g} s of sound, {job['steps']} steps, {job['files']} files"
    columns = {
        "cold": in_seconds("cold"),
        "another seed": in_seconds("seed"),
        "another prompt": in_seconds("prompt"),
        "GPU memory at peak": in_bytes("peak"),
    }
    return "\n\n".join([show(corner, result["rows"], columns), conditions(result), *result["left_out"]])


def conditions(result: dict) -> str:
    """Hardware, command, date, and whether to believe it."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = (
        f"`{result['command']}`, {result['date']}, commit {result['commit']}: {result['processor']}, "
        f"{result['threads']} threads, {size(result['memory_bytes'])} of memory; {versions}; random weights of the "
        f"{'published' if result['size'] == 'full' else result['size']} size."
    )
    if result.get("kind") != "cpu":
        text += f" On {result['gpu']['name']}." if result["size"] == "full" and "gpu" in result else DRY_RUN
    if peaks := result.get("peaks"):
        rates = [f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in peaks.items() if "per second" not in name]
        text += f" Peaks: {', '.join([*rates, f'{peaks[COPY] / 1e9:,.0f} GB/s'])}."
    if found := [reason for entry in result.get("evaluation", []) for reason in entry.get("disturbed", [])]:
        text += f" **Other processes disturbed this run** ({found[0]}): read the ratios by processor time."
    return text


COPY = "copy, bytes per second"


def ratio(key: str) -> Callable[[dict], str]:
    """The median of a comparison, and the least and most where they are known."""

    def write(entry: dict) -> str:
        low, high = entry.get(key.replace("ratio", "spread"), (0, 0))
        return f"**{entry[key]:.2f} ×**{f' ({low:.2f} – {high:.2f})' if low < high else ''}" if key in entry else ""

    return write


def processor_ratio(key: str) -> Callable[[dict], str]:
    return lambda entry: f"{entry[key]:.2f} ×" if key in entry else ""


COMPARED = {
    "against baseline fp32": ratio("ratio"),
    "by processor time": processor_ratio("cpu_ratio"),
    "against baseline bf16": ratio("ratio_bf16"),
    "that by processor time": processor_ratio("cpu_ratio_bf16"),
}


def in_seconds(key: str) -> Callable[[dict], str]:
    return lambda entry: "" if entry.get(key) is None else seconds(entry[key])


def in_bytes(key: str) -> Callable[[dict], str]:
    return lambda entry: "" if entry.get(key) is None else size(entry[key])


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def show(corner: str, entries: list[dict], columns: dict[str, Callable[[dict], str]], name: str = "name") -> str:
    """A table of the entries; a column that is empty throughout is left out."""
    cells = {head: [write(entry) for entry in entries] for head, write in columns.items()}
    cells = {head: column for head, column in cells.items() if any(column)}
    rows = [[str(entry[name]), *(column[i] for column in cells.values())] for i, entry in enumerate(entries)]
    return table([[corner, *cells], *rows])


def folded(title: str, parts: list[str]) -> str:
    return "\n\n".join([f"<details><summary>{title}</summary>", *parts, "</details>"])


if __name__ == "__main__":
    sys.exit(main())
