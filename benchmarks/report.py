#!/usr/bin/env python3
"""Put the results into docs/speed.md: ``python -m benchmarks.report`` (measures nothing; reads docs/bench*.json).

``python3 dev.py bench --json docs/bench.json`` writes the first, ``python -m benchmarks.gpu --json docs/bench_gpu.json`` and
``python -m benchmarks.comfyui_gpu --comfyui PATH --json docs/bench_comfyui.json`` the others. The section between the two markers
in docs/speed.md is made of them.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "speed.md"
CPU, GPU, COMFYUI = (ROOT / "docs" / name for name in ("bench.json", "bench_gpu.json", "bench_comfyui.json"))
START, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"
NO_GPU = "No figure from a GPU exists: none was at hand. `python -m benchmarks.gpu` makes them, in one go."
DRY_RUN = " A dry run without a GPU: these times mean nothing."
NO_CPU = "No figure from a processor is kept here. `python3 dev.py bench --json docs/bench.json` makes them."


def main() -> int:
    PAGE.write_text(with_section(PAGE.read_text("utf-8")), "utf-8")
    return 0


def with_section(page: str) -> str:
    """The page's text with the section that the kept results give."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{section(stored(CPU), stored(GPU), stored(COMFYUI))}\n{END}{after}"


def stored(path: Path) -> dict | None:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def section(cpu: dict | None, gpu: dict | None, comfyui: dict | None = None) -> str:
    """Markdown, ratios first."""
    parts = [cpu_section(cpu) if cpu else NO_CPU, gpu_section(gpu) if gpu else NO_GPU]
    if comfyui:
        parts.append(comfyui_section(comfyui))
    return "\n\n".join(parts)


def cpu_section(result: dict) -> str:
    job = result["job"]
    return "\n\n".join(
        [
            table(
                f"one evaluation with guidance, {job['frames'] / 25:g} s of sound, {job['tokens']} tokens",
                [
                    "times as fast",
                    "pairs",
                    "by processor time",
                    "ours",
                    "baseline",
                    "ours / floor",
                    "by processor time",
                ],
                [evaluation_row(entry) for entry in result["evaluation"]],
            ),
            table(
                f"whole clip, {job['steps']} steps, text to file, added up from its parts",
                ["times as fast", "by processor time", "ours", "baseline fp32"],
                [clip_row(f"ours {dtype}", clip) for dtype, clip in result["clip"].items()],
            ),
            conditions(result),
            f"The baseline is {result['baseline']}. The floor is the least arithmetic of an evaluation at "
            "the fastest matrix product of the same run, or its weights at the fastest "
            f"copy: {peaks(result['peaks'])}. {equality(result)}",
            folded("Parts, memory and growth", cpu_details(result)),
        ]
    )


def cpu_details(result: dict) -> list[str]:
    parts = [
        table("part", ["number format", "seconds"], part_rows(result)),
        table(
            "backbone in memory while sampling",
            ["its weights", "resident", "peak"],
            [[e["dtype"], size(e["weights"]), size(e["resident"]), size(e["peak"])] for e in result["memory"]],
        ),
    ]
    if loaded := result.get("load"):
        rows = [[e["part"].replace("_", " "), seconds(e["seconds"]), size(e["kept"]), size(e["peak"])] for e in loaded]
        parts.append(table("load from a bf16 file", ["seconds", "kept", "peak"], rows))
    if growth := result.get("growth"):
        name = f"growth: one evaluation of {growth[0]['blocks']} blocks of the backbone, {growth[0]['dtype']}"
        parts.append(table(name, GROWTH_COLUMNS, [[*growth_row(e), f"{e['cpu_ratio']:.2f} ×"] for e in growth]))
    return parts


GROWTH_COLUMNS = ["times as fast", "ours", "ours / floor", "times as fast by processor time"]


def growth_row(entry: dict) -> list[str]:
    return [f"{entry['value']} {entry['what']}", times(entry["ratio"]), seconds(entry["seconds"]), over_floor(entry)]


def clip_row(name: str, clip: dict) -> list[str]:
    processor = f"{clip['cpu_ratio']:.2f} ×"
    return [name, times(clip["ratio"]), processor, seconds(clip["seconds"]), seconds(clip["baseline_seconds"])]


def folded(title: str, parts: list[str]) -> str:
    return "\n\n".join([f"<details><summary>{title}</summary>", *parts, "</details>"])


def evaluation_row(entry: dict) -> list[str]:
    low, high = entry["spread"]
    return [
        f"{entry['name']} against {entry['baseline']}",
        times(entry["ratio"]),
        f"{low:.2f} – {high:.2f}",
        f"{entry['cpu_ratio']:.2f} ×",
        seconds(entry["seconds"]),
        seconds(entry["baseline_seconds"]),
        over_floor(entry),
        f"{entry['cpu_seconds'] / entry['floor_cpu_seconds']:.2f} ×",
    ]


def part_rows(result: dict) -> list[list[str]]:
    rows = [[entry["stage"], entry["dtype"], seconds(entry["seconds"])] for entry in result["stages"]]
    rows += [
        [f"prepare {entry['steps']} steps", entry["dtype"], seconds(entry["seconds"])] for entry in result["prepare"]
    ]
    if whole := result.get("sampled_in_one_go"):
        rows.append(
            [
                f"prepare and {result['job']['steps']} steps, measured in one go",
                whole["dtype"],
                seconds(whole["seconds"]),
            ]
        )
    return rows


def conditions(result: dict) -> str:
    """Hardware, command, date, and whether to believe it."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = (
        f"`{result['command']}`, {result['date']}, commit {result['commit']}: {result['processor']}, "
        f"{result['threads']} threads, {size(result['memory_bytes'])} of memory; {versions}; random weights of the "
        f"{'published' if result['size'] == 'full' else result['size']} size."
    )
    if "evaluation" in result:
        text += " Ratios are medians over pairs of neighbouring runs."
    if found := disturbances(result):
        text += f" **Other processes disturbed this run** ({found[0]}): read the ratios by processor time."
    return text


def disturbances(result: dict) -> list[str]:
    return [reason for entry in result.get("evaluation", []) for reason in entry.get("disturbed", [])]


def equality(result: dict) -> str:
    found = ", ".join(f"{name} {error:.1e}" for name, error in result["equality"].items())
    return f"Relative error of an evaluation through the whole network, against the baseline in fp32: {found}."


def peaks(found: dict[str, float]) -> str:
    rates = [f"{found[name] / 1e9:,.0f} GFLOP/s in {name}" for name in ("fp32", "tf32", "bf16", "fp8") if name in found]
    return ", ".join([*rates, f"{found['copy, bytes per second'] / 1e9:,.0f} GB/s"])


def gpu_section(result: dict) -> str:
    job = result["job"]
    parts = [
        table(
            f"one evaluation with guidance, {job['frames'] / 25:g} s of sound, {job['tokens']} tokens",
            ["against baseline fp32", "against baseline bf16", "time", "/ floor", "launches", "cold", "relative error"],
            [gpu_row(entry) for entry in result["evaluation"]],
        ),
        table(
            f"whole clip, {job['steps']} steps, text to waveform",
            ["against baseline fp32", "against baseline bf16", "time"],
            [
                [
                    e["name"],
                    optional(e.get("ratio"), times),
                    optional(e.get("ratio_bf16"), times),
                    seconds(e["seconds"]),
                ]
                for e in result["clip"]
            ],
        ),
        table(
            "prompts at once",
            ["time per evaluation", "seconds of sound per second"],
            [[str(e["batch"]), seconds(e["seconds"]), f"{e['sound_per_second']:.0f}"] for e in result["throughput"]],
        ),
        conditions(result)
        + (DRY_RUN if result["dry_run"] else f" On {result['gpu']['name']}: {peaks(result['peaks'])}."),
        folded("Parts, memory and growth", gpu_details(result)),
    ]
    if result["left_out"]:
        parts.append("Left out: " + " ".join(result["left_out"]))
    return "\n\n".join(parts)


def gpu_details(result: dict) -> list[str]:
    memory = result["memory"]
    growth = [growth_row(entry) for entry in result["growth"]]
    besides = optional(memory.get("besides_weights_at_peak"), size)
    return [
        table("part", ["seconds"], [[entry["stage"], seconds(entry["seconds"])] for entry in result["stages"]]),
        table("memory of the backbone, bf16, eager", ["weights", "besides"], [["", size(memory["weights"]), besides]]),
        *(
            [table("growth: one evaluation, bf16, against baseline bf16", GROWTH_COLUMNS[:-1], growth)]
            if growth
            else []
        ),
    ]


def comfyui_section(result: dict) -> str:
    job = result["job"]
    corner = f"a clip in ComfyUI on a GPU: {job['seconds']:g} s of sound, {job['steps']} steps, {job['files']} files"
    columns = ["cold", "another seed", "another prompt", "GPU memory at peak"]
    rows = [
        [row["name"], *(seconds(row[kind]) for kind in ("cold", "seed", "prompt")), optional(row["peak"], size)]
        for row in result["rows"]
    ]
    text = conditions(result) + (
        DRY_RUN if "gpu" not in result or result["size"] != "full" else f" On {result['gpu']['name']}."
    )
    return "\n\n".join([table(corner, columns, rows), text, *result["left_out"]])


def gpu_row(entry: dict) -> list[str]:
    return [
        entry["name"],
        optional(entry.get("ratio"), times),
        optional(entry.get("ratio_bf16"), times),
        seconds(entry["seconds"]),
        over_floor(entry),
        optional(entry.get("launches"), str),
        optional(entry.get("cold_seconds"), seconds),
        f"{entry['error']:.1e}",
    ]


def optional(value, write) -> str:
    return "" if value is None else write(value)


def times(ratio: float) -> str:
    return f"**{ratio:.2f} ×**"


def over_floor(entry: dict) -> str:
    return f"{entry['seconds'] / entry['floor_seconds']:.2f} ×"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def size(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def table(corner: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [[corner, *columns], ["---"] * (len(columns) + 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
