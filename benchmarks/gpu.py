#!/usr/bin/env python3
"""How fast this project is on a CUDA GPU, against the whole network at every step: ``python -m benchmarks.gpu [--json FILE]``.

Random weights of the published size are made on the device; 24 GB are enough. A way to evaluate is timed only after one
evaluation through the whole network agreed with the baseline in float32; what a machine cannot do is left out and
named. Times are CUDA events around 20 evaluations after 5 warm-ups, every way twice, there and back; whole clips are on
the wall clock, from token ids to a waveform in the host's memory. What compiling costs once is apart.
--quick leaves out growth and two of the four times that a network is compiled, which takes minutes each.
--dry-run goes through everything on a processor with tiny weights, to test this script: its times mean nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

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
    sample_baseline,
    sample_ours,
)
from benchmarks.floor import fastest, measure_peaks, step_work, whole_work
from benchmarks.random_weights import backbone_config, random_backbone, random_decoder, random_text_side
from benchmarks.timing import Progress
from dasheng_core.duration import FRAME_RATE
from tools.random_checkpoint import SIZES

FP32, BF16 = torch.float32, torch.bfloat16
BASELINE, BASELINE_BF16, GRAPHS = "baseline fp32", "baseline bf16", "ours bf16, compiled, CUDA graphs"
WARM_UPS, REPLAYS = 5, 20
SECONDS, TOKENS, BATCHES, STEPS = (1, 5, 10, 30, 60), (16, 64, 256, 512), (1, 2, 4, 8, 16), (5, 10, 25, 50)
CLIPS = 5
# What a GPU may be short of, or a PyTorch: the way is left out, the rest goes on.
UNAVAILABLE = (RuntimeError, ImportError, AttributeError, NotImplementedError)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    parser.add_argument("--dry-run", action="store_true", help="tiny weights on the processor: tests the script")
    parser.add_argument("--quick", action="store_true", help="without growth, and compiled with CUDA graphs alone")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --dry-run goes through the script without one.")
    bench = GpuBench("tiny" if args.dry_run else "full", "cpu" if args.dry_run else "cuda:0", Progress(), args.quick)
    # Compiling takes minutes and shows nothing in a dry run.
    with torch.compiler.set_stance("force_eager" if args.dry_run else "default"):
        result = bench.run()
    result["command"] = (
        "python -m benchmarks.gpu" + (" --dry-run" if args.dry_run else "") + (" --quick" if args.quick else "")
    )
    print(report.gpu_section(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


@dataclass(frozen=True)
class Way:
    """A way to evaluate: how it is made ready, and what bounds it."""

    name: str
    make: Callable[[], Evaluation]
    dtype: torch.dtype
    peak: str
    tolerance: float | None


class GpuBench:
    """One run; its methods in the order in which it goes."""

    def __init__(self, size: str, device: str, progress: Progress, quick: bool = False):
        self.sizes, self.device, self.progress, self.quick = SIZES[size], device, progress, quick
        self.on_gpu = device.startswith("cuda")
        self.config, self.job = backbone_config(self.sizes), Job() if self.on_gpu else Job(frames=25, tokens=8, steps=4)
        self.replays = REPLAYS if self.on_gpu else 1
        self.left_out: list[str] = []
        self.result = {"kind": "gpu", "size": size, "dry_run": not self.on_gpu, **machine.describe()}
        self.result |= {"job": asdict(self.job), "left_out": self.left_out}

    def run(self) -> dict:
        result = self.result
        # The baseline in float32 is float32 in convolutions as well.
        torch.backends.cudnn.allow_tf32 = False
        self.progress("the peaks of this device")
        result["peaks"] = self.peaks = self.measure_peaks()
        self.progress("random weights")
        self.backbone32 = random_backbone(self.config, self.device)
        self.backbone = in_dtype(self.backbone32, BF16)
        result["evaluation"] = self.evaluations()
        result["clip"] = self.clips()
        result["stages"] = self.stages()
        result["memory"] = self.memory()
        self.free_fp32()
        result["throughput"] = self.throughput()
        result["growth"] = [] if self.quick else self.growth()
        result["seconds"] = self.progress.seconds
        return result

    def measure_peaks(self) -> dict[str, float]:
        square, copied = (4096, 2**30) if self.on_gpu else (128, 2**20)
        peaks = measure_peaks([FP32, BF16], self.device, square, copied).wall
        with tf32(True):
            peaks["tf32"] = measure_peaks([FP32], self.device, square, 2**20).wall["fp32"]
        return peaks

    # One evaluation

    def ways(self) -> list[Way]:
        backbone, loose = self.backbone, TOLERANCE[BF16]
        ways = [
            Way(BASELINE, lambda: self.baseline(self.backbone32), FP32, "fp32", None),
            Way("baseline tf32", lambda: self.baseline(self.backbone32), FP32, "tf32", None),
            Way(BASELINE_BF16, lambda: self.baseline(backbone), BF16, "bf16", None),
            Way("baseline bf16, compiled", lambda: self.baseline(backbone, {}), BF16, "bf16", None),
            Way("ours fp32", lambda: self.ours(self.backbone32), FP32, "fp32", TOLERANCE[FP32]),
            Way("ours tf32", lambda: self.ours(self.backbone32), FP32, "tf32", loose),
            Way("ours bf16", lambda: self.ours(backbone), BF16, "bf16", loose),
            Way("ours bf16, compiled", lambda: self.ours(backbone, compile={}), BF16, "bf16", loose),
        ]
        if self.quick:
            ways = [way for way in ways if not way.name.endswith("compiled")]
        if self.on_gpu:
            graphs = {"mode": "reduce-overhead"}
            ways.append(Way(GRAPHS, lambda: self.ours(backbone, compile=graphs), BF16, "bf16", loose))
        else:
            self.left_out.append("CUDA graphs: no GPU.")
        return ways

    def baseline(self, backbone, compile: dict | None = None) -> Evaluation:
        return baseline_evaluation(backbone, self.job, self.device, compile)

    def ours(self, backbone, job: Job | None = None, compile: dict | None = None) -> Evaluation:
        job = job or self.job
        return our_evaluation(hold(backbone, job, self.device), job, self.device, compile)

    def evaluations(self) -> list[dict]:
        expected = self.baseline(self.backbone32)()
        entries, runs = {}, {}
        for way in self.ways():
            self.progress(way.name)
            try:
                with tf32(way.peak == "tf32"):
                    started = self.now()
                    run = way.make()
                    found = run()
                    cold = self.now() - started
                    error = relative_error(found, expected)
                    if way.tolerance and not error <= way.tolerance:
                        self.left_out.append(f"{way.name}: off by {error:.1e}, allowed is {way.tolerance:.0e}.")
                        continue
                    entries[way.name] = {"name": way.name, "cold_seconds": cold, "error": error, **self.launches(run)}
                    runs[way] = run
            except UNAVAILABLE as problem:
                self.left_out.append(f"{way.name}: {first_line(problem)}")
        timings: dict[str, list[float]] = {name: [] for name in entries}
        for way in [*runs, *reversed(runs)]:
            with tf32(way.peak == "tf32"):
                timings[way.name].append(self.seconds(runs[way]))
        for way in runs:
            work = whole_work if way.name.startswith("baseline") else step_work
            entries[way.name]["floor_seconds"] = self.floor(work, self.job, way.dtype, way.peak)
        return with_ratios(entries, timings)

    def floor(self, work: Callable, job: Job, dtype=BF16, peak: str = "bf16") -> float:
        found = work(self.config, job.frames, job.tokens, job.batch, job.guided)
        return found.floor(self.peaks, dtype, peak)

    def seconds(self, run: Callable) -> float:
        """Of one of many runs, by the device's own clock where it has one."""
        for _ in range(WARM_UPS if self.on_gpu else 0):
            run()
        if not self.on_gpu:
            return fastest(run, tries=1).wall
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(self.replays):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / self.replays

    def launches(self, run: Callable) -> dict:
        """Counts of an evaluation: the host's launches of kernels and graphs, and the kernels that the device runs."""
        if not self.on_gpu:
            return {}
        activities = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activities.CPU, activities.CUDA]) as profile:
            run()
            torch.cuda.synchronize()
        events = profile.events()
        asked = [event for event in events if event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch"))]
        on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        return {"launches": len(asked), "kernels": len(on_device)}

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    # A whole clip

    @torch.inference_mode()
    def clips(self) -> list[dict]:
        """From token ids to a waveform on the host, on the wall clock; in float32 with a text encoder and decoder in it."""
        job, device = self.job, self.device
        ids = torch.randint(3, 90, (1, job.tokens), generator=torch.Generator().manual_seed(0))
        noise = torch.randn(1, self.config.latent_dim, job.frames, generator=torch.Generator().manual_seed(0))
        around = {
            dtype: (random_text_side(self.sizes, device, dtype), random_decoder(self.sizes, device, dtype))
            for dtype in (FP32, BF16)
        }
        self.text, self.decoder = around[BF16]

        def clip(dtype: torch.dtype, sample: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            text, decoder = around[dtype]
            on_device = ids.to(device)
            return decoder(sample(noise.to(device), text(on_device, torch.ones_like(on_device)))).cpu()

        def baseline(dtype: torch.dtype, net) -> Callable:
            return lambda: clip(dtype, lambda x, content: sample_baseline(net, job, x, content))

        def ours(backbone) -> Callable:
            return lambda: clip(BF16, lambda x, content: sample_ours(backbone, job, device, (x, content)))

        runs = {BASELINE: baseline(FP32, self.backbone32), BASELINE_BF16: baseline(BF16, self.backbone)}
        runs["ours bf16"] = ours(self.backbone)
        if self.on_gpu:
            compiled = in_dtype(self.backbone, BF16)
            compiled.step = torch.compile(compiled.step, mode="reduce-overhead")
            runs[GRAPHS] = ours(compiled)
        entries = {name: {"name": name} for name in runs}
        timings: dict[str, list[float]] = {name: [] for name in runs}
        for name, run in list(runs.items()):
            self.progress(f"whole clip, {name}")
            try:
                started = self.now()
                run()
                entries[name]["cold_seconds"] = self.now() - started
            except UNAVAILABLE as problem:
                self.left_out.append(f"whole clip, {name}: {first_line(problem)}")
                del runs[name], entries[name], timings[name]
        for _ in range(CLIPS if self.on_gpu else 1):
            for name, run in runs.items():
                started = self.now()
                run()
                timings[name].append(self.now() - started)
        return with_ratios(entries, timings)

    @torch.inference_mode()
    def stages(self) -> list[dict]:
        """The parts of a clip around the evaluations, in bf16; and the copy of the weights to the device."""
        job = self.job
        ids = torch.ones(1, job.tokens, dtype=torch.int64, device=self.device)
        latent = job.inputs(self.config, self.device)[0]
        runs = {"text": lambda: self.text(ids, ids), "decode": lambda: self.decoder(latent)}
        for steps in STEPS:
            runs[f"prepare {steps} steps"] = lambda steps=steps: hold(
                self.backbone, job.with_(steps=steps), self.device
            )
        if self.on_gpu:
            on_host = in_dtype(self.backbone, BF16, "cpu")
            runs["weights to the device"] = lambda: in_dtype(on_host, BF16, self.device)
        found = []
        for name, run in runs.items():
            self.progress(name)
            seconds = fastest(run, self.device, tries=3 if self.on_gpu else 1).wall
            found.append({"stage": name, "dtype": "bf16", "seconds": seconds})
        return found

    def memory(self) -> dict:
        """Bytes on the device for the backbone alone, while it samples eagerly."""
        weights = sum(parameter.nbytes for parameter in self.backbone.parameters())
        if not self.on_gpu:
            return {"weights": weights}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sample_ours(self.backbone, self.job.with_(steps=2), self.device)
        return {"weights": weights, "besides_weights_at_peak": torch.cuda.max_memory_allocated() - before}

    # Growth

    def free_fp32(self) -> None:
        del self.backbone32
        if self.on_gpu:
            torch.cuda.empty_cache()

    def throughput(self) -> list[dict]:
        found = []
        for batch in BATCHES:
            job = self.job.with_(batch=batch)
            for entry in self.grown("batch", batch, job):
                sound = batch * job.frames / FRAME_RATE / (job.steps * entry["seconds"])
                found.append({"batch": batch, "sound_per_second": sound, **entry})
        return found

    def growth(self) -> list[dict]:
        lengths = [("seconds", s, self.job.with_(frames=round(s * FRAME_RATE))) for s in SECONDS]
        texts = [("tokens", s, self.job.with_(tokens=s)) for s in TOKENS]
        return [entry for size in (*lengths, *texts) for entry in self.grown(*size)]

    def grown(self, what: str, value: int, job: Job) -> list[dict]:
        """One evaluation of a larger or smaller job against the bf16 baseline."""
        self.progress(f"{value} {what}")
        try:
            ours, baseline = self.ours(self.backbone, job), baseline_evaluation(self.backbone, job, self.device)
            error = relative_error(ours(), baseline())
            seconds, of_baseline = self.seconds(ours), self.seconds(baseline)
        except UNAVAILABLE as problem:
            self.left_out.append(f"{value} {what}: {first_line(problem)}")
            return []
        # Both are rounded, so that they may differ by what each may be off.
        if not error <= 2 * TOLERANCE[BF16]:
            self.left_out.append(f"{value} {what}: off by {error:.1e}.")
            return []
        floor = self.floor(step_work, job)
        return [
            {"what": what, "value": value, "seconds": seconds, "ratio": of_baseline / seconds, "floor_seconds": floor}
        ]


def with_ratios(entries: dict[str, dict], timings: dict[str, list[float]]) -> list[dict]:
    """Entries with their seconds, and how many times faster than both baselines they are, by the median of the pairs."""
    for name, entry in entries.items():
        entry["seconds"] = statistics.median(timings[name])
        for key, baseline in (("ratio", BASELINE), ("ratio_bf16", BASELINE_BF16)):
            if baseline in timings and baseline != name:
                pairs = [a / b for a, b in zip(timings[baseline], timings[name], strict=True)]
                entry[key] = statistics.median(pairs)
    return list(entries.values())


@contextmanager
def tf32(allowed: bool):
    """Products of float32 matrices with 10 bits of mantissa, where the GPU has them, inside the block alone."""
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
