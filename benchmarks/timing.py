"""How ways of doing the same are compared: in one process, in turns, as the median of the ratios of neighbours."""

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
    runs: dict[str, Callable[[], Timing]], rounds: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, list[Timing]]:
    """Each run twice per round, there and back (A B B A), so that a drift of the machine affects all alike.

    Returns:
        The timings of each, ``2 * rounds`` of them; the i-th of one belongs to the i-th of another.
    """
    found: dict[str, list[Timing]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in (*runs, *reversed(runs)):
            found[name].append(runs[name]())
            progress(f"round {number + 1}, {name}: {found[name][-1].wall:.3g} s")
    return found


def compare(baseline: list[Timing], ours: list[Timing]) -> dict:
    """How many times faster than the baseline, by the median of the pairs; and figures that say whether to believe it."""
    pairs = [a.wall / b.wall for a, b in zip(baseline, ours, strict=True)]
    ratio = statistics.median(pairs)
    of_minima = min(a.wall for a in baseline) / min(b.wall for b in ours)
    return {
        "ratio": ratio,
        "spread": [min(pairs), max(pairs)],
        "cpu_ratio": statistics.median(a.cpu / b.cpu for a, b in zip(baseline, ours, strict=True)),
        "disturbed": disturbances(baseline, ours, abs(ratio / of_minima - 1)),
    }


def summary(timings: list[Timing]) -> dict:
    return {
        "seconds": statistics.median(timing.wall for timing in timings),
        "cpu_seconds": statistics.median(timing.cpu for timing in timings),
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
