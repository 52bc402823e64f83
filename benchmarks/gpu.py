#!/usr/bin/env python3
"""How fast this project is on a CUDA GPU, against the whole network at every step: ``python -m benchmarks.gpu [--json FILE]``.

As run.py does it on a processor, but 20 evaluations in a row are timed, with TF32 and CUDA graphs as further ways, whole
clips from token ids to a waveform in the host's memory, and many prompts at once. Launches are counted last and in a process of
their own, since a profiler slows all that comes after it. 24 GB are enough. --quick leaves out two of the three times that a
network is compiled, which takes minutes each.
--dry-run goes through everything on a processor with tiny weights, to test this script: its times mean nothing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contestants import (
    TOLERANCE,
    Evaluation,
    Job,
    hold,
    in_dtype,
    relative_error,
    sample_baseline,
    sample_ours,
)
from benchmarks.random_weights import random_decoder, random_text_side
from benchmarks.run import BF16, FP32, UNAVAILABLE, Bench, Way, deliver, first_line
from benchmarks.timing import Progress
from dasheng_core.duration import FRAME_RATE
from dasheng_core.step_graph import GRAPHS as GRAPHED

GRAPHS, OUR_GRAPH = Way("ours", "bf16", {"mode": "reduce-overhead"}), Way("ours", "bf16", graphs=True)
BATCHES = (1, 2, 4, 8, 16)
# Further runs before anything is timed or counted: a CUDA graph is recorded in the second one.
WARM_UPS = 3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    parser.add_argument("--dry-run", action="store_true", help="tiny weights on the processor: tests the script")
    parser.add_argument("--quick", action="store_true", help="compiled with CUDA graphs alone")
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --dry-run goes through the script without one.")
    bench = GpuBench("tiny" if args.dry_run else "full", Progress(), args.quick)
    if args.count:
        print(json.dumps(bench.counts()))
        return 0
    # Compiling takes minutes and shows nothing in a dry run.
    with torch.compiler.set_stance("force_eager" if args.dry_run else "default"):
        result = bench.run()
    command = f"python -m benchmarks.gpu{' --dry-run' * args.dry_run}{' --quick' * args.quick}"
    deliver(result, command, args.json)
    return 0


class GpuBench(Bench):
    """A run on the first GPU, or a dry one of the tiny size on the processor."""

    kind = "gpu"
    # The host's processor time says nothing of the device.
    figures = ("ratio", "spread")

    def __init__(self, size: str, progress: Callable[[str], None], quick: bool = False):
        super().__init__(size, progress, quick)
        self.on_gpu = size == "full"
        if self.on_gpu:
            self.device, self.replays = "cuda:0", 20
        else:
            self.job = Job(frames=25, tokens=8, steps=4)
        self.formats, self.rounds = ["fp32", "tf32", "bf16"], 1

    def run(self) -> dict:
        # The baseline in float32 is float32 in convolutions as well.
        torch.backends.cudnn.allow_tf32 = False
        result = super().run()
        result["memory"] = self.memory()
        del self.networks[FP32]
        result["throughput"] = [entry for batch in BATCHES for entry in self.at_once(batch)]
        if self.on_gpu:
            self.networks, self.around = {}, {}
            GRAPHED.drop()
            torch.cuda.empty_cache()
            self.progress("launches, in a process of their own")
            command = [sys.executable, "-m", "benchmarks.gpu", "--count"]
            counted = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
            for entry in result["evaluation"]:
                entry |= counted.get(entry["name"], {})
        return result | {"dry_run": not self.on_gpu}

    def ways(self) -> list[Way]:
        if self.on_gpu:
            return [*super().ways(), OUR_GRAPH, GRAPHS]
        self.left_out.append("CUDA graphs: no GPU.")
        return super().ways()

    def ready(self, way: Way) -> tuple:
        evaluate, found = super().ready(way)
        for _ in range(WARM_UPS):
            evaluate()
        return evaluate, found

    def counts(self) -> dict[str, dict]:
        """Of an evaluation by each way that is not compiled: the host's launches, and the kernels that the device runs."""
        self.make_networks()
        ways = [way for way in self.ways() if way.compile is None and way.format != "tf32"]
        return {way.name: self.counted(self.ready(way)[0]) for way in ways}

    def counted(self, evaluate: Evaluation) -> dict:
        activities = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[activities.CPU, activities.CUDA]) as profile:
            evaluate()
            torch.cuda.synchronize()
        events = profile.events()
        asked = [event for event in events if event.name.startswith(("cudaLaunch", "cuLaunch", "cudaGraphLaunch"))]
        on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        return {"launches": len(asked), "kernels": len(on_device)}

    def stages(self) -> list[dict]:
        """The parts of a clip around the evaluations, in bf16; and the copy of the weights to the device."""
        ids = torch.ones(1, self.job.tokens, dtype=torch.int64, device=self.device)
        latent = self.job.inputs(self.config, self.device)[0]
        self.around = {
            dtype: (random_text_side(self.sizes, self.device, dtype), random_decoder(self.sizes, self.device, dtype))
            for dtype in (FP32, BF16)
        }
        text, decoder = self.around[BF16]
        runs = {"text": lambda: text(ids, ids), "decode": lambda: decoder(latent)}
        runs[f"prepare {self.job.steps} steps"] = lambda: hold(self.networks[BF16], self.job, self.device)
        if self.on_gpu:
            on_host = in_dtype(self.networks[BF16], BF16, "cpu")
            runs["weights to the device"] = lambda: in_dtype(on_host, BF16, self.device)
        return self.measured({(name, "bf16"): run for name, run in runs.items()})

    @torch.inference_mode()
    def clips(self, result: dict) -> list[dict]:
        """From token ids to a waveform on the host; in float32 with a text encoder and decoder in it."""
        job, device = self.job, self.device
        ids = torch.randint(3, 90, (1, job.tokens), generator=torch.Generator().manual_seed(0))
        noise = job.inputs(self.config)[0]

        def clip(dtype: torch.dtype, sample: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
            text, decoder = self.around[dtype]
            on_device = ids.to(device)
            return decoder(sample(noise.to(device), text(on_device, torch.ones_like(on_device)))).cpu()

        def baseline(dtype: torch.dtype) -> Callable:
            return lambda: clip(dtype, lambda x, content: sample_baseline(self.networks[dtype], job, x, content))

        def ours(backbone, graphs: bool = False) -> Callable:
            return lambda: clip(BF16, lambda x, content: sample_ours(backbone, job, device, (x, content), graphs))

        runs = {
            "baseline fp32": baseline(FP32),
            "baseline bf16": baseline(BF16),
            "ours bf16": ours(self.networks[BF16]),
        }
        if self.on_gpu:
            runs[OUR_GRAPH.name] = ours(self.networks[BF16], graphs=True)
            compiled = in_dtype(self.networks[BF16], BF16)
            compiled.step = torch.compile(compiled.step, mode="reduce-overhead")
            runs[GRAPHS.name] = ours(compiled)
        entries = {}
        for name, run in list(runs.items()):
            self.progress(f"whole clip, {name}")
            try:
                entries[name] = {"cold_seconds": self.timed(run).wall}
            except UNAVAILABLE as problem:
                self.left_out.append(f"whole clip, {name}: {first_line(problem)}")
                del runs[name]
        timings = {name: [] for name in runs}
        for _ in range(5 if self.on_gpu else 1):
            for name, run in runs.items():
                timings[name].append(self.timed(run))
        return self.with_ratios(entries, timings)

    def memory(self) -> dict:
        """Bytes on the device for the backbone alone, while it samples eagerly."""
        backbone = self.networks[BF16]
        weights = sum(parameter.nbytes for parameter in backbone.parameters())
        if not self.on_gpu:
            return {"weights": weights}
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        sample_ours(backbone, replace(self.job, steps=2), self.device)
        return {"weights": weights, "besides_weights_at_peak": torch.cuda.max_memory_allocated() - before}

    def at_once(self, batch: int) -> list[dict]:
        """One evaluation of as many prompts, where it agrees with the bf16 baseline."""
        self.progress(f"{batch} at once")
        job = replace(self.job, batch=batch)
        try:
            ours, baseline = (self.evaluation(Way(who, "bf16"), job) for who in ("ours", "baseline"))
            error = relative_error(ours(), baseline())
            seconds = self.timed(ours, self.replays).wall
        except UNAVAILABLE as problem:
            self.left_out.append(f"{batch} at once: {first_line(problem)}")
            return []
        # Both are rounded, so that they may differ by what each may be off.
        if not error <= 2 * TOLERANCE[BF16]:
            self.left_out.append(f"{batch} at once: off by {error:.1e}.")
            return []
        sound = batch * job.frames / FRAME_RATE / (job.steps * seconds)
        return [{"batch": batch, "seconds": seconds, "sound_per_second": sound}]


if __name__ == "__main__":
    sys.exit(main())
