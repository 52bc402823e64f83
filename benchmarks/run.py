#!/usr/bin/env python3
"""How fast this project is on the processor, against the whole network at every step: ``python3 dev.py bench [--quick]``.

Random weights of the published size are made in memory; 20 GB are enough. Before any time is shown, one guided
evaluation through the whole network must agree with the baseline in float32. Ratios are medians over pairs of
neighbouring runs in one process (A B B A); beside each time stands the floor, computed from the machine's peaks in the
same run. --quick leaves out torch.compile, growth, loading, and the whole clip in one go, which it adds up.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.contestants import (
    Held,
    Job,
    baseline_evaluation,
    check_equal,
    hold,
    in_dtype,
    our_evaluation,
    relative_error,
    sample_ours,
)
from benchmarks.floor import measure_peaks, short_name, step_work
from benchmarks.random_weights import backbone_config, random_backbone, random_decoder, random_text_side
from benchmarks.timing import Progress, compare, interleave, load_average, summary, time_once
from dasheng_core.backbone import Backbone
from dasheng_core.delivery.audio_file import write_audio
from dasheng_core.duration import FRAME_RATE, SAMPLE_RATE
from tools.random_checkpoint import SIZES, Sizes

FP32, BF16 = torch.float32, torch.bfloat16
BASELINE = "baseline fp32"
# What grows is measured on one block of each kind at its real width.
GROWTH_DEPTH = 2
SECONDS, BATCHES, TOKENS = (1, 5, 10, 30, 60), (1, 2, 4, 8), (16, 64, 256, 512)
# Evaluations are all alike: only what is prepared for them depends on how many there are.
OTHER_STEPS = (5, 10, 50)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 minutes instead of 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    parser.add_argument("--size", choices=SIZES, default="full", help="of the weights; tiny ones do not measure speed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: all (%(default)s)")
    parser.add_argument("--memory", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.memory:
        print(json.dumps(memory_here({"fp32": FP32, "bf16": BF16}[args.memory], SIZES[args.size])))
        return 0
    bench = Bench(SIZES[args.size], args.quick, Progress())
    result = bench.run()
    result["command"] = " ".join(
        [
            "python3 dev.py bench",
            *(["--quick"] if args.quick else []),
            *(["--size tiny"] if args.size == "tiny" else []),
        ]
    )
    result["size"] = args.size
    print(report.section(result, None))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


class Bench:
    """One run; its methods in the order in which it goes."""

    def __init__(self, sizes: Sizes, quick: bool, progress: Progress):
        self.sizes, self.quick, self.progress = sizes, quick, progress
        self.job = Job()
        self.config = backbone_config(sizes)
        self.dtypes = [FP32, *([BF16] if machine.has_fast_bf16() else [])]
        self.result: dict = {}

    def run(self) -> dict:
        result = self.result
        result |= {"kind": "cpu", "quick": self.quick, **machine.describe(), "load_before": load_average()}
        result |= {"job": asdict(self.job), "baseline": "the whole network at every step (`Backbone.forward`)"}
        # First, while all memory is free: how much there is decides what is copied.
        result["memory"] = [self.memory(dtype) for dtype in self.dtypes[-1 if self.quick else 0 :]]
        self.progress("the peaks of this machine")
        square, copied = (4096, 2**30) if self.sizes is SIZES["full"] else (256, 2**20)
        self.peaks = measure_peaks(self.dtypes, square=square, copy_bytes=copied)
        result |= {"peaks": self.peaks.wall, "peaks_of_processor_time": self.peaks.processor}
        result["stages"] = self.stages()
        result |= {"equality": {}, "evaluation": [], "prepare": []}
        self.evaluations()
        result["clip"] = self.clip()
        if not self.quick:
            result["growth"] = self.growth()
            result["load"] = machine.load_times(self.sizes, self.progress)
        result |= {"load_after": load_average(), "seconds": self.progress.seconds}
        return result

    def stages(self) -> list[dict]:
        """Text, decoding and writing: what is done once per clip, around the backbone."""
        self.progress("text, decoding, writing")
        job, sizes = self.job, self.sizes
        text = random_text_side(sizes)
        ids = torch.randint(3, 90, (1, job.tokens), generator=torch.Generator().manual_seed(0))
        runs = {("text", "fp32"): lambda: text(ids, torch.ones_like(ids))}
        latent = torch.randn(1, sizes.latent_dim, job.frames, generator=torch.Generator().manual_seed(0))
        for dtype in self.dtypes:
            decoder = random_decoder(sizes, dtype=dtype)
            runs["decode", short_name(dtype)] = lambda decoder=decoder: decoder(latent)
        waveform = torch.rand(int(job.frames / FRAME_RATE * SAMPLE_RATE)) * 2 - 1
        with tempfile.TemporaryDirectory() as folder:
            names = (Path(folder) / f"{i}.wav" for i in range(100))
            runs["write", "fp32"] = lambda: write_audio(next(names), waveform, SAMPLE_RATE)
            return [
                {"stage": stage, "dtype": dtype, **summary([time_once(run) for _ in range(self.tries + 1)][1:])}
                for (stage, dtype), run in runs.items()
            ]

    def evaluations(self) -> None:
        """The backbone, once per step: ours against the baseline, in each dtype."""
        self.progress("random weights")
        backbone = random_backbone(self.config)
        reference = baseline_evaluation(backbone, self.job)
        expected = reference()
        for dtype in self.dtypes:
            name, runs = short_name(dtype), {BASELINE: reference}
            if dtype != FP32:
                # The float32 baseline keeps its own weights.
                backbone = in_dtype(backbone, dtype)
                runs[f"baseline {name}"] = own = baseline_evaluation(in_dtype(backbone, dtype), self.job)
                self.result["equality"][f"baseline {name}"] = relative_error(own(), expected)
            if not self.quick:
                self.compiled(expected, backbone, dtype)
            self.progress(f"does {name} agree with the baseline?")
            ours = our_evaluation(self.held(backbone), self.job)
            self.result["equality"][f"ours {name}"] = check_equal(f"ours {name}", ours(), expected, dtype)
            self.compare_all({**runs, f"ours {name}": ours}, dtype)
            if not self.quick and dtype == self.dtypes[-1]:
                self.whole_clip(backbone)

    def held(self, backbone: Backbone) -> Held:
        """What a sampling call of ours holds; the time it takes by the number of steps goes into the result."""
        made: list[Held] = []
        for steps in (*(() if self.quick else OTHER_STEPS), self.job.steps):
            timing = time_once(lambda steps=steps: made.append(hold(backbone, self.job.with_(steps=steps))))
            entry = {"dtype": short_name(backbone.dtype), "steps": steps, **summary([timing])}
            self.result["prepare"].append(entry)
        return made.pop()

    def compare_all(self, runs: dict[str, Callable], dtype: torch.dtype, **more) -> None:
        """Ours, by their names, each against all others."""
        self.progress(f"{', '.join(runs)}: in turns")
        timings = interleave(runs, self.rounds, self.progress, self.spare)
        job, config = self.job, self.config
        least = step_work(config, job.frames, job.tokens, job.batch, job.guided)
        for ours, baseline in itertools.product(*(sorted(group) for group in split_names(runs))):
            entry = {"name": ours, "baseline": baseline, **compare(timings[baseline], timings[ours]), **more}
            entry |= {**summary(timings[ours]), "baseline_seconds": summary(timings[baseline])["seconds"]}
            entry["floor_seconds"] = least.floor(self.peaks.wall, dtype)
            entry["floor_cpu_seconds"] = least.floor(self.peaks.processor, dtype)
            self.result["evaluation"].append(entry)

    def compiled(self, expected, backbone: Backbone, dtype) -> None:
        """Under torch.compile: the whole network, and a step of ours."""
        if not machine.has_compiler():
            self.result["no_compile"] = "torch.compile needs a C++ compiler, and there is none here."
            return
        name = short_name(dtype)
        names = [f"{who} {name}, torch.compile" for who in ("baseline", "ours")]
        self.progress(f"{', '.join(names)}: compiling")
        baseline = baseline_evaluation(backbone, self.job, compile={})
        ours = our_evaluation(hold(backbone, self.job), self.job, compile={})
        runs = dict(zip(names, (baseline, ours), strict=True))
        cold = {name: time_once(run).wall for name, run in runs.items()}
        self.result["equality"][names[0]] = relative_error(baseline(), expected)
        self.result["equality"][names[1]] = check_equal(names[1], ours(), expected, dtype)
        self.compare_all(runs, dtype, cold_seconds=cold)

    def whole_clip(self, backbone: Backbone) -> None:
        """All steps of a clip in one go, of ours, as a check on the sum of the parts."""
        self.progress("all steps of a clip")
        timing = time_once(lambda: sample_ours(backbone, self.job))
        self.result["sampled_in_one_go"] = {"dtype": short_name(backbone.dtype), **summary([timing])}

    def clip(self) -> dict:
        """Text to file, added up from its parts."""
        result, steps, clips = self.result, self.job.steps, {}
        for dtype in map(short_name, self.dtypes):
            entry = next(e for e in result["evaluation"] if (e["name"], e["baseline"]) == (f"ours {dtype}", BASELINE))
            prepared = next(e for e in result["prepare"] if (e["dtype"], e["steps"]) == (dtype, steps))
            found = clips[dtype] = {}
            for clock, ratio in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
                stage = {(e["stage"], e["dtype"]): e[clock] for e in result["stages"]}
                around = stage["text", "fp32"] + stage["write", "fp32"]
                found[clock] = around + prepared[clock] + steps * entry[clock] + stage["decode", dtype]
                # By the pairs' ratio, so that a drift between the two groups of runs does not count.
                evaluation = entry[clock] * entry[ratio]
                found[f"baseline_{clock}"] = around + steps * evaluation + stage["decode", "fp32"]
                found[ratio] = found[f"baseline_{clock}"] / found[clock]
        return clips

    def growth(self) -> list[dict]:
        """Seconds of an evaluation and ratio to the float32 baseline, as one size of the job grows."""
        dtype = self.dtypes[-1]
        backbone = random_backbone(replace(self.config, depth=GROWTH_DEPTH))
        reference, backbone = backbone, in_dtype(backbone, dtype)
        jobs = [("seconds", s, self.job.with_(frames=round(s * FRAME_RATE))) for s in SECONDS]
        jobs += [("batch", b, self.job.with_(batch=b)) for b in BATCHES]
        jobs += [("tokens", s, self.job.with_(tokens=s)) for s in TOKENS]
        found = []
        for what, value, job in jobs:
            self.progress(f"{value} {what}")
            ours = our_evaluation(hold(backbone, job), job)
            runs = {BASELINE: baseline_evaluation(reference, job), "ours": ours}
            error = check_equal(f"{value} {what}", ours(), runs[BASELINE](), dtype)
            timings = interleave(runs, 1, spare=1)
            work = step_work(backbone.config, job.frames, job.tokens, job.batch, job.guided)
            found.append(
                {"what": what, "value": value, "dtype": short_name(dtype), "error": error}
                | {**summary(timings["ours"]), **compare(timings[BASELINE], timings["ours"])}
                | {"floor_seconds": work.floor(self.peaks.wall, dtype), "blocks": GROWTH_DEPTH + 1}
            )
        return found

    def memory(self, dtype: torch.dtype) -> dict:
        self.progress(f"memory of {short_name(dtype)}, in a process of its own")
        name = next(name for name, sizes in SIZES.items() if sizes is self.sizes)
        return machine.in_own_process("benchmarks.run", "--memory", short_name(dtype), "--size", name)

    @property
    def tries(self) -> int:
        return 2 if self.quick else 5

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    @property
    def spare(self) -> int:
        """Rounds more where other processes disturb; not with --quick, which then says so."""
        return 0 if self.quick else 3


def split_names(names) -> tuple[list[str], list[str]]:
    ours = [name for name in names if name.startswith("ours")]
    return ours, [name for name in names if name not in ours]


def memory_here(dtype: torch.dtype, sizes: Sizes) -> dict:
    """Bytes this process holds for the backbone alone while it samples, and the most it ever held."""
    before = machine.memory()
    backbone = random_backbone(backbone_config(sizes), dtype=dtype)
    weights = sum(parameter.nbytes for parameter in backbone.parameters())
    machine.forget_peak()
    evaluate = our_evaluation(hold(backbone, Job()), Job())
    evaluate()
    after = machine.memory()
    return {
        "dtype": short_name(dtype),
        "weights": weights,
        "resident": after["VmRSS"] - before["VmRSS"],
        "peak": after["VmHWM"] - before["VmRSS"],
    }


if __name__ == "__main__":
    sys.exit(main())
