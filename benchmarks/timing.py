"""How two ways of doing the same are compared: in one process, in turns, as the median of the ratios of neighbours."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

# A run that other processes disturbed: less processor time per thread than this, or two estimates further apart.
LEAST_BUSY, LARGEST_DISAGREEMENT = 0.95, 0.10


@dataclass(frozen=True)
class Timing:
    """Of one run: seconds on the wall, and processor seconds of all threads."""

    wall: float
    cpu: float


def time_once(run: Callable) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    wall = time.perf_counter() - wall
    return Timing(wall, time.process_time() - cpu)


def interleave(
    runs: dict[str, Callable], rounds: int, progress: Callable[[str], None] = lambda text: None, spare: int = 0
) -> dict[str, list[Timing]]:
    """Each run twice per round, there and back (A B B A), so that a drift of the machine affects all alike.

    Args:
        spare: rounds that may be added for those that other processes disturbed; the least disturbed ones count.

    Returns:
        The timings of each, ``2 * rounds`` of them; the i-th of one belongs to the i-th of another.
    """
    done: list[list[tuple[str, Timing]]] = []
    while len(done) < rounds or (len(done) < rounds + spare and sum(map(is_undisturbed, done)) < rounds):
        done.append([])
        for name in (*runs, *reversed(runs)):
            done[-1].append((name, time_once(runs[name])))
            progress(f"round {len(done)}, {name}: {done[-1][-1][1].wall:.3g} s")
    chosen = sorted(done, key=busy_threads, reverse=True)[:rounds]
    return {name: [timing for one in chosen for owner, timing in one if owner == name] for name in runs}


def busy_threads(timings: list[tuple[str, Timing]]) -> float:
    """Of a round: how many threads computed, in that run of it where they were fewest."""
    return min(timing.cpu / timing.wall for _, timing in timings)


def is_undisturbed(timings: list[tuple[str, Timing]]) -> bool:
    return busy_threads(timings) >= LEAST_BUSY * torch.get_num_threads()


def compare(baseline: list[Timing], ours: list[Timing]) -> dict:
    """How many times faster than the baseline, by the median of the pairs; and figures that say whether to believe it."""
    pairs = [a.wall / b.wall for a, b in zip(baseline, ours, strict=True)]
    of_minima = min(a.wall for a in baseline) / min(b.wall for b in ours)
    ratio = statistics.median(pairs)
    return {
        "ratio": ratio,
        "ratio_of_minima": of_minima,
        "spread": [min(pairs), max(pairs)],
        "cpu_ratio": statistics.median(a.cpu / b.cpu for a, b in zip(baseline, ours, strict=True)),
        "pairs": len(pairs),
        "disturbed": disturbances(baseline, ours, abs(ratio / of_minima - 1)),
    }


def summary(timings: list[Timing]) -> dict:
    wall = statistics.median(timing.wall for timing in timings)
    return {
        "seconds": wall,
        "fastest": min(timing.wall for timing in timings),
        "cpu_seconds": statistics.median(timing.cpu for timing in timings),
        "busy_threads": statistics.median(timing.cpu / timing.wall for timing in timings),
    }


def disturbances(baseline: list[Timing], ours: list[Timing], disagreement: float) -> list[str]:
    """Why a comparison is not to be believed; nothing when it is."""
    threads = torch.get_num_threads()
    busy = min(statistics.median(timing.cpu / timing.wall for timing in timings) for timings in (baseline, ours))
    found = []
    if busy < LEAST_BUSY * threads:
        found.append(f"{busy:.2f} of {threads} threads were busy")
    if disagreement > LARGEST_DISAGREEMENT:
        found.append(f"the ratio of the pairs and that of the fastest runs differ by {disagreement:.0%}")
    return found


class Progress:
    """What is going on, with the seconds since the start, on the standard error output."""

    def __init__(self):
        self._started = time.monotonic()

    def __call__(self, text: str) -> None:
        print(f"[{self.seconds:5.0f} s] {text}", file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


def load_average() -> float | None:
    """Processes that want a core, over the last minute, where the system counts them."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
