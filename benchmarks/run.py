#!/usr/bin/env python3
"""How fast this project is on the processor, against the whole network at every step: ``python3 dev.py bench [--quick]``.

Random weights of the published size are made in memory; 20 GB are enough. A way to evaluate is timed only after one guided
evaluation agreed with the baseline in float32; what a machine cannot do is left out and named. Ratios are
medians over pairs of neighbouring runs in one process (A B B A). Beside each time stands the floor, computed from the
machine's peaks in the same run. A whole clip is added up from its parts. --quick leaves out torch.compile.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.contestants import (
    TOLERANCE,
    Evaluation,
    Job,
    baseline_evaluation,
    hold,
    in_dtype,
    our_evaluation,
    relative_error,
)
from benchmarks.floor import measure_peaks, short_name, wait, work_of
from benchmarks.random_weights import backbone_config, random_backbone, random_decoder, random_text_side
from benchmarks.timing import Progress, Timing, compare, interleave, summary, time_once
from dasheng_core.delivery.audio_file import write_audio
from dasheng_core.duration import FRAME_RATE, SAMPLE_RATE
from dasheng_core.tensors import has_fast_bfloat16
from tools.random_checkpoint import SIZES

FP32, BF16 = torch.float32, torch.bfloat16
FORMATS = {"fp32": FP32, "tf32": FP32, "bf16": BF16}
# Baseline -> what stands behind the names of figures that compare with it.
BASELINES = {"baseline fp32": "", "baseline bf16": "_bf16"}
# What a machine may be short of, or a PyTorch: the way is left out, the rest goes on.
UNAVAILABLE = (RuntimeError, ImportError, AttributeError, NotImplementedError)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 minutes instead of 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the weights; tiny ones do not measure speed")
    args = parser.parse_args(argv)
    command = f"python3 dev.py bench{' --quick' * args.quick}{' --size tiny' * (args.size == 'tiny')}"
    deliver(Bench(args.size, Progress(), args.quick).run(), command, args.json)
    return 0


def deliver(result: dict, command: str, file: Path | None) -> None:
    """Print a result as the page has it, and keep it in a file."""
    result["command"] = command
    print(report.section(result))
    if file:
        file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


@dataclass(frozen=True)
class Way:
    """A way to evaluate: by the baseline or by ours, in a format of products, by torch.compile or without."""

    who: str
    format: str
    compile: dict | None = None
    graphs: bool = False

    @property
    def name(self) -> str:
        if self.graphs:
            return f"{self.who} {self.format}, graph of a step"
        compiled = "" if self.compile is None else ", compiled, CUDA graphs" if self.compile else ", compiled"
        return f"{self.who} {self.format}{compiled}"

    @property
    def tolerance(self) -> float | None:
        return None if self.who == "baseline" else TOLERANCE[FP32 if self.format == "fp32" else BF16]


class Bench:
    """One run; its methods in the order in which it goes. gpu.py has what is done otherwise on a GPU."""

    kind, device = "cpu", "cpu"
    job, replays = Job(), 1
    # Of a comparison, which are kept.
    figures = ("ratio", "spread", "cpu_ratio", "disturbed")

    def __init__(self, size: str, progress: Callable[[str], None], quick: bool = False):
        self.size, self.sizes, self.progress, self.quick = size, SIZES[size], progress, quick
        self.config = backbone_config(self.sizes)
        self.formats = ["fp32", *(["bf16"] if has_fast_bfloat16(torch.device("cpu")) else [])]
        self.rounds = 1 if quick else 3
        self.left_out: list[str] = []

    def run(self) -> dict:
        result = {"kind": self.kind, "size": self.size, "quick": self.quick, **machine.describe()}
        result |= {"job": asdict(self.job), "left_out": self.left_out}
        self.progress("the peaks of this machine")
        result["peaks"] = self.peaks = self.measure_peaks()
        self.make_networks()
        result["stages"] = self.stages()
        result["evaluation"] = self.evaluations()
        result["clip"] = self.clips(result)
        return result

    def measure_peaks(self) -> dict[str, float]:
        square, copied = (4096, 2**30) if self.size == "full" else (128, 2**20)
        peaks = measure_peaks([FORMATS[name] for name in self.formats if name != "tf32"], self.device, square, copied)
        if "tf32" in self.formats:
            with tf32(True):
                peaks["tf32"] = measure_peaks([FP32], self.device, square, 2**20)["fp32"]
        return peaks

    def make_networks(self) -> None:
        self.progress("random weights")
        self.networks = {FP32: random_backbone(self.config, self.device)}
        if "bf16" in self.formats:
            self.networks[BF16] = in_dtype(self.networks[FP32], BF16)

    def stages(self) -> list[dict]:
        """What is done once per clip, around the evaluations."""
        ids = torch.ones(1, self.job.tokens, dtype=torch.int64)
        text = random_text_side(self.sizes)
        runs = {("text", "fp32"): lambda: text(ids, ids)}
        latent = self.job.inputs(self.config)[0]
        for dtype, backbone in self.networks.items():
            decoder = random_decoder(self.sizes, dtype=dtype)
            runs["decode", short_name(dtype)] = lambda decoder=decoder: decoder(latent)
            runs[f"prepare {self.job.steps} steps", short_name(dtype)] = lambda backbone=backbone: hold(
                backbone, self.job
            )
        waveform = torch.rand(int(self.job.frames / FRAME_RATE * SAMPLE_RATE)) * 2 - 1
        with tempfile.TemporaryDirectory() as folder:
            names = (Path(folder) / f"{i}.wav" for i in range(100))
            runs["write", "fp32"] = lambda: write_audio(next(names), waveform, SAMPLE_RATE)
            return self.measured(runs)

    def measured(self, runs: dict[tuple[str, str], Callable]) -> list[dict]:
        """Medians by stage and number format, the first of each run left out."""
        found = []
        for (stage, dtype), run in runs.items():
            self.progress(f"{stage}, {dtype}")
            timings = [self.timed(run) for _ in range(2 * self.rounds + 1)][1:]
            found.append({"stage": stage, "dtype": dtype, **summary(timings)})
        return found

    @torch.inference_mode()
    def timed(self, run: Callable, times: int = 1) -> Timing:
        """Of one of so many runs in a row, which are waited for together."""

        def finished() -> None:
            for _ in range(times):
                run()
            wait(self.device)

        wait(self.device)
        timing = time_once(finished)
        return Timing(timing.wall / times, timing.cpu / times)

    # One evaluation

    def ways(self) -> list[Way]:
        ways = [Way(who, name) for who in ("baseline", "ours") for name in self.formats]
        return ways + ([] if self.quick else [Way(who, self.formats[-1], {}) for who in ("baseline", "ours")])

    def evaluation(self, way: Way, job: Job | None = None) -> Evaluation:
        backbone, job = self.networks[FORMATS[way.format]], job or self.job
        if way.who == "baseline":
            return baseline_evaluation(backbone, job, self.device, way.compile)
        return our_evaluation(hold(backbone, job, self.device), job, self.device, way.compile, way.graphs)

    def evaluations(self) -> list[dict]:
        expected = self.evaluation(Way("baseline", "fp32"))()
        entries, runs = {}, {}
        for way in self.ways():
            self.progress(way.name)
            made = []
            try:
                with tf32(way.format == "tf32"):
                    cold = self.timed(lambda made=made, way=way: made.extend(self.ready(way)))
            except UNAVAILABLE as problem:
                self.left_out.append(f"{way.name}: {first_line(problem)}")
                continue
            evaluate, found = made
            error = relative_error(found, expected)
            if way.tolerance and not error <= way.tolerance:
                self.left_out.append(f"{way.name}: off by {error:.1e}, allowed is {way.tolerance:.0e}.")
                continue
            entries[way.name] = {"cold_seconds": cold.wall, "error": error, "floor_seconds": self.floor(way)}
            runs[way.name] = self.in_turn(way, evaluate)
        return self.with_ratios(entries, interleave(runs, self.rounds, self.progress))

    def ready(self, way: Way) -> tuple:
        """An evaluation, and what its first run gives."""
        evaluate = self.evaluation(way)
        return evaluate, evaluate()

    def in_turn(self, way: Way, evaluate: Evaluation) -> Callable[[], Timing]:
        def run() -> Timing:
            with tf32(way.format == "tf32"):
                return self.timed(evaluate, self.replays)

        return run

    def floor(self, way: Way, job: Job | None = None) -> float:
        work = work_of(self.config, job or self.job, way.who == "ours")
        return work.floor(self.peaks, way.format, FORMATS[way.format])

    # A whole clip

    def clips(self, result: dict) -> list[dict]:
        stages = {(entry["stage"], entry["dtype"]): entry for entry in result["stages"]}
        evaluations = {entry["name"]: entry for entry in result["evaluation"]}
        timings = {}
        for name in (way.name for way in self.ways() if way.name in evaluations and way.compile is None):
            dtype = name.split()[1]
            parts = [stages["text", "fp32"], stages["write", "fp32"], stages["decode", dtype]]
            parts += [evaluations[name]] * self.job.steps
            if name.startswith("ours"):
                parts.append(stages[f"prepare {self.job.steps} steps", dtype])
            timings[name] = [Timing(*(sum(part[clock] for part in parts) for clock in ("seconds", "cpu_seconds")))]
        return self.with_ratios({name: {} for name in timings}, timings)

    def with_ratios(self, entries: dict[str, dict], timings: dict[str, list[Timing]]) -> list[dict]:
        """Entries with their names and seconds, and compared with both baselines."""
        for name, entry in entries.items():
            entry |= {"name": name, **summary(timings[name])}
            for baseline, suffix in BASELINES.items():
                if baseline in timings and baseline != name:
                    compared = compare(timings[baseline], timings[name])
                    entry |= {key + suffix: compared[key] for key in self.figures}
        return list(entries.values())


@contextmanager
def tf32(allowed: bool):
    """Products of float32 matrices with 10 bits of mantissa, where the device has them, inside the block alone."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def first_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {(str(problem).strip().splitlines() or ['no message'])[0][:200]}"


if __name__ == "__main__":
    sys.exit(main())
