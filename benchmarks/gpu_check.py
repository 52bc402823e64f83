#!/usr/bin/env python3
"""Whether CUDA graphs of a step may be on by default: ``python -m benchmarks.gpu_check``, three minutes on an NVIDIA GPU.

Prints each line as soon as it is known, for both of PyTorch's allocators: native, the library's default, and cudaMallocAsync,
ComfyUI's. Has not run on a GPU yet. What must be seen, for the allocator of the default in question:

1 *clips*: every line says "equal", graphs are "on", and replays go up by the steps of a clip, less those of a new kind. Then
  ``--graphs`` and Dasheng Optimize's mode graph do what they say, and their texts need not say "not yet run".
2 *step*: a replay takes at most 0.5 of an eager step, with its bookkeeping too. Else a default would buy this GPU nothing.
3 *refused*: exit code 0 and "alive" after captures that fail on purpose. With another one a failure that the watched step
  missed would end the process: graphs then stay an option, whatever 1 and 2 say.

For ComfyUI also ``python -m benchmarks.comfyui_gpu --comfyui PATH --dtype bf16 --only Optimize`` and tests/test_gpu.py to its end.
--dry-run goes through it on a processor with tiny weights, where no step is captured: it tests the script.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.contestants import GUIDANCE, Job, hold, relative_error
from benchmarks.floor import wait
from benchmarks.random_weights import backbone_config, random_backbone
from benchmarks.timing import time_once
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise
from dasheng_core.step_graph import GRAPHS, CudaGraph, GraphedStep
from tools.random_checkpoint import SIZES

REFUSED = """
import torch
here = torch.ones(8, device="cuda")
for _ in range(3):
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            here + torch.ones(8).to("cuda")
    except RuntimeError as problem:
        print("refused:", str(problem).splitlines()[0][:90])
    torch.randn(512, 512, device="cuda").sum().item()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph, capture_error_mode="thread_local"):
    later = here + 1
graph.replay()
print("alive, and a later capture gives", later[0].item())
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny weights on the processor: tests the script")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here or args.dry_run:
        with patch.object(GRAPHS, "make", Counted):
            check("cpu" if args.dry_run else "cuda:0", "tiny" if args.dry_run else "full")
        return 0
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here; --dry-run goes through the script without one.")
    for allocator in ("native", "cudaMallocAsync"):
        env = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": f"backend:{allocator}"}
        for name, command in (("graphs", ["-m", "benchmarks.gpu_check", "--here"]), ("refused", ["-c", REFUSED])):
            say(f"{allocator}, {name}:")
            say(f"exit code {subprocess.run([sys.executable, *command], env=env).returncode}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


class Counted(CudaGraph):
    replays = 0

    def replay(self, given):
        Counted.replays += 1
        return super().replay(given)


@torch.inference_mode()
def check(device: str, size: str) -> None:
    backbone = random_backbone(backbone_config(SIZES[size]), device, torch.bfloat16)
    job = Job() if size == "full" else Job(frames=25, tokens=8, steps=5)

    def clip(tokens: int, seed: int, graphs: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, backbone.config.latent_dim, job.frames, generator=generator).to(device)
        context = torch.randn(1, tokens, backbone.config.context_dim, generator=generator).to(device)
        options = SamplingOptions(job.steps, GUIDANCE, graphs=graphs)
        return denoise(backbone, noise, Branches(Branch(context)), options)

    def compare(what: str, tokens: int, seed: int) -> None:
        clip(tokens, seed, False)
        expected, eager = timed(lambda: clip(tokens, seed, False), device)
        found, seconds = timed(lambda: clip(tokens, seed, True), device)
        same = "equal" if torch.equal(found, expected) else f"OFF BY {relative_error(found, expected):.1e}"
        state = f"OFF: {GRAPHS.off}" if GRAPHS.off else "on"
        say(f"clip, {what}: {same}, eager {eager:.3f} s, graphs {seconds:.3f} s, {state}, {Counted.replays} replays")

    compare("first", job.tokens, 0)
    compare("second", job.tokens, 1)
    compare("another length of text", job.tokens // 2, 2)
    compare("the first length again", job.tokens, 3)
    layer = backbone.mid_block.attn.to_q
    layer.weight.mul_(1.5)
    compare("a weight changed in place", job.tokens, 4)
    layer.weight = torch.nn.Parameter(layer.weight / 1.5, requires_grad=False)
    compare("a weight replaced", job.tokens, 5)
    step(backbone, job, device)


def step(backbone, job: Job, device: str) -> None:
    """One guided step: eager, with our bookkeeping, and the replay alone; the memory that graphs add."""
    held, graphed = hold(backbone, job, device), GraphedStep(backbone)
    x = torch.cat([job.inputs(backbone.config, device)[0].to(backbone.dtype)] * 2)
    arguments = x, held.modulations[:1], held.conditions, None, held.rotary
    GRAPHS.drop()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        graphed(*arguments)
    ways = {"eager": lambda: backbone.step(*arguments), "graphed": lambda: graphed(*arguments)}
    graph = next((graph for graph in GRAPHS.kept.values() if graph.proven), None)
    if graph is not None:
        ways["replay alone"] = graph.graph.replay
    found = {}
    for name, run in ways.items():
        found[name] = timed(lambda run=run: [run() for _ in range(20)], device)[1] / 20
        say(f"step, {name}: {found[name] * 1e3:.2f} ms, {found[name] / found['eager']:.2f} of eager")
    say(f"memory of a graph: {(torch.cuda.memory_allocated() - before) / 1e6:.0f} MB")


def timed(run: Callable, device: str) -> tuple:
    """What it returns, and seconds on the wall until the device has done it."""
    result = []

    def finished() -> None:
        result.append(run())
        wait(device)

    wait(device)
    seconds = time_once(finished).wall
    return result[0], seconds


if __name__ == "__main__":
    sys.exit(main())
