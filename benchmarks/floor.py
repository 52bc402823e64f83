"""The least time an evaluation can take: its operations over the machine's peak, or its weights over its bandwidth.

PyTorch counts both on a device that computes nothing. The peaks are measured in the run that uses them, as the fastest of
several tries. Other processes lower them as they lower everything else.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contestants import Job, baseline_evaluation, hold, our_evaluation
from benchmarks.timing import time_once
from dasheng_core.backbone import Backbone
from dasheng_core.weights.config import BackboneConfig

# A square product large enough for any machine's best, and the rows of the network's own at 10 s with guidance.
SQUARE, ROWS = 4096, 500
COPY, COPY_BYTES = "copy, bytes per second", 2**30


@dataclass(frozen=True)
class Work:
    """Of one evaluation: floating point operations (2 per multiply-add), and matrices read (numbers, not bytes)."""

    flops: int
    weights: int

    def floor(self, peaks: dict[str, float], name: str, dtype: torch.dtype) -> float:
        """Seconds; ``name`` is that of the products' peak."""
        return max(self.flops / peaks[name], self.weights * dtype.itemsize / peaks[COPY])


class Reading(TorchDispatchMode):
    """Collects the tensors that operations read."""

    def __init__(self):
        super().__init__()
        self.read: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.read |= {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@functools.lru_cache
def work_of(config: BackboneConfig, job: Job, ours: bool) -> Work:
    """Of an evaluation by the whole network, or of ours, without what depends on the schedule or the prompts alone."""
    backbone = Backbone(config, device="meta")
    if ours:
        evaluate = our_evaluation(hold(backbone, job, "meta"), job, "meta")
    else:
        evaluate = baseline_evaluation(backbone, job, "meta")
    with FlopCounterMode(display=False) as counter, Reading() as reading:
        evaluate()
    matrices = [parameter for parameter in backbone.parameters() if parameter.dim() > 1]
    return Work(counter.get_total_flops(), sum(matrix.numel() for matrix in matrices if id(matrix) in reading.read))


def measure_peaks(
    dtypes: list[torch.dtype], device="cpu", square: int = SQUARE, copy_bytes: int = COPY_BYTES
) -> dict[str, float]:
    """Operations per second of products by the name of their dtype, and bytes per second of a copy, both ways."""
    peaks = {}
    for dtype in dtypes:
        for m, n, k in ((square, square, square), (min(ROWS, square), 3 * square, square * 3 // 8)):
            rate = 2 * m * n * k / fastest(product(m, n, k, dtype, device), device)
            peaks[short_name(dtype)] = max(peaks.get(short_name(dtype), 0.0), rate)
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    peaks[COPY] = 2 * copy_bytes / fastest(lambda: target.copy_(source), device)
    return peaks


def product(m: int, n: int, k: int, dtype: torch.dtype, device) -> Callable:
    x = torch.randn(m, k, device=device).to(dtype)
    weight = torch.randn(n, k, device=device).to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


@torch.inference_mode()
def fastest(run: Callable, device="cpu", tries: int = 4) -> float:
    """The least seconds over some runs, the first left out."""

    def finished() -> None:
        run()
        wait(device)

    finished()
    return min(time_once(finished).wall for _ in range(tries))


def wait(device) -> None:
    """Until the device has done what it was asked to."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def short_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
