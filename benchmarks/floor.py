"""The least time an evaluation can take: its operations over the machine's peak, or its weights over its bandwidth.

The peaks are measured in the run that uses them, as the fastest of several tries. Other processes lower
them as they lower everything else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.timing import Timing, time_once
from dasheng_core.backbone import TIME_FEATURES
from dasheng_core.weights.config import BackboneConfig

# A square product large enough for any machine's best, and the rows of the network's own at 10 s with guidance.
SQUARE, ROWS = 4096, 500
COPY, COPY_BYTES = "copy, bytes per second", 2**30


@dataclass(frozen=True)
class Work:
    """Of one evaluation: floating point operations (2 per multiply-add), and weights read (numbers, not bytes)."""

    flops: int
    weights: int

    def floor(self, peaks: dict[str, float], dtype: torch.dtype, name: str | None = None) -> float:
        """Seconds, by the peaks of one clock; ``name`` where products have another peak than their dtype's."""
        return max(self.flops / peaks[name or short_name(dtype)], self.weights * dtype.itemsize / peaks[COPY])


def whole_work(config: BackboneConfig, frames: int, tokens: int, batch: int = 1, guided: bool = True) -> Work:
    """Of an evaluation by the whole network, the time-aligned context given for every frame."""
    n = _Sizes(config)
    rows = 2 * batch if guided else batch
    R, S = rows * frames, rows * tokens
    macs = R * (n.patch + n.final) + S * n.context + n.time
    macs += n.blocks * (R * (n.self_attention + n.mlp + n.time_aligned) + n.modulation)
    macs += n.blocks * (R * n.cross_queries + S * n.cross_keys) + n.skips * R * n.skip
    macs += n.blocks * 2 * R * (frames + tokens) * n.D
    weights = n.patch + n.final + n.context + n.time + n.skips * n.skip
    weights += n.blocks * (n.self_attention + n.mlp + n.time_aligned + n.modulation + n.cross_queries + n.cross_keys)
    return Work(2 * macs, weights)


def step_work(config: BackboneConfig, frames: int, tokens: int, batch: int = 1, guided: bool = True) -> Work:
    """Of an evaluation without what depends on the schedule or the prompts alone.

    Constant over the steps are the modulation, the text's keys and values, and the time-aligned context; constant over
    frames as well is what the unconditional row's cross-attention gives, all its keys being one vector.
    """
    n = _Sizes(config)
    R, U = (2 if guided else 1) * batch * frames, batch * frames
    macs = R * (n.patch + n.final) + n.skips * R * n.skip
    macs += n.blocks * R * (n.mlp + n.self_attention + 2 * frames * n.D)
    macs += n.blocks * U * (n.cross_queries + 2 * tokens * n.D)
    weights = n.patch + n.final + n.skips * n.skip + n.blocks * (n.self_attention + n.mlp + n.cross_queries)
    return Work(2 * macs, weights)


class _Sizes:
    """Weights of the matrices of each part, which are also the multiply-adds of one row through them."""

    def __init__(self, config: BackboneConfig):
        C, D, M, X = config.latent_dim, config.embed_dim, config.mlp_dim, config.context_dim
        self.D = D
        self.blocks, self.skips = config.depth // 2 * 2 + 1, config.depth // 2
        self.patch = C * D
        self.final = D * C + 3 * C * C
        self.context = X * D + D * D
        self.time = TIME_FEATURES * D + D * D + 2 * D * D
        self.self_attention = 4 * D * D
        self.cross_queries, self.cross_keys = 2 * D * D, 2 * D * D
        self.time_aligned = config.ta_context_dim * D
        self.mlp = 3 * D * M
        self.modulation = 6 * D * D
        self.skip = 2 * D * D


@dataclass(frozen=True)
class Peaks:
    """Operations per second of matrix products by the name of their dtype, and bytes per second of a copy (both ways).

    On the wall clock, and per second of processor time, which other processes cannot take away.
    """

    wall: dict[str, float]
    processor: dict[str, float]


def measure_peaks(dtypes: list[torch.dtype], device="cpu", square: int = SQUARE, copy_bytes: int = COPY_BYTES) -> Peaks:
    peaks = Peaks({}, {})

    def note(name: str, amount: float, run: Callable) -> None:
        found = fastest(run, device)
        for kept, seconds in ((peaks.wall, found.wall), (peaks.processor, found.cpu)):
            kept[name] = max(kept.get(name, 0.0), amount / max(seconds, 1e-9))

    for dtype in dtypes:
        for m, n, k in ((square, square, square), (min(ROWS, square), 3 * square, square * 3 // 8)):
            note(short_name(dtype), 2 * m * n * k, product(m, n, k, dtype, device))
    source = torch.ones(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    note(COPY, 2 * copy_bytes, lambda: target.copy_(source))
    return peaks


def product(m: int, n: int, k: int, dtype: torch.dtype, device) -> Callable:
    x = torch.randn(m, k, device=device).to(dtype)
    weight = torch.randn(n, k, device=device).to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


@torch.inference_mode()
def fastest(run: Callable, device="cpu", tries: int = 4) -> Timing:
    """The least wall and the least processor time over some runs, the first left out."""
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None

    def finished() -> None:
        run()
        synchronize()

    synchronize()
    timings = [time_once(finished) for _ in range(tries + 1)][1:]
    return Timing(min(timing.wall for timing in timings), min(timing.cpu for timing in timings))


def short_name(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
