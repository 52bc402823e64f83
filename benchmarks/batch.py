#!/usr/bin/env python3
"""What ``dasheng batch`` itself costs: ``python -m benchmarks.batch [--scenes 1000 10000 100000] [--on FOLDER] [--clips 400]``.

*overhead*: the time per scene where the model returns 40 ms of silence at once: planning, writing the file, the manifest, and Ray where it is installed.
*processor*: the processor time of driver and workers in it, which other work on the machine does not lengthen.
*start*: from the command to the first entry. *driver*: the largest resident memory of the process that
reads scenes and writes the manifest. *throughput*: clips of two seconds by the mini model, by one and by two workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from importlib.util import find_spec
from pathlib import Path

import torch

from dasheng_core.batch.cluster import MOST_CLIPS
from dasheng_core.batch.manifest import Manifest
from dasheng_core.batch.worker import Worker
from dasheng_core.cli import batch
from dasheng_core.cli.arguments import build_parser
from tools.comfyui import ROOT, SMALL

PLACES = {"--audiogen": "audiogen", "--text-encoder": "text_encoder", "--audio-tokenizer": "audio_tokenizer"}
FILES = [part for option, folder in PLACES.items() for part in (option, str(SMALL / folder))]


class Silence:
    """In the model's place."""

    @staticmethod
    def tokenizer(prompts):
        return None, torch.ones(len(prompts), 8)

    @staticmethod
    def generate(prompts, **options):
        return torch.zeros(len(prompts), 640)


class QuickWorker(Worker):
    model = Silence()

    def make(self, clips):
        for entry in super().make(clips):
            yield {**entry, "processor": time.process_time()}


def measure(ray: list[str], count: int, seconds: float, quick: bool, place: str) -> dict[str, float]:
    """Times and memory of a run, in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.batch", "--run", json.dumps([ray, count, seconds, quick, place])]
    # Ray's workers would have a lower priority than other processes.
    variables = {**os.environ, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    return json.loads(subprocess.run(call, cwd=ROOT, env=variables, stdout=subprocess.PIPE, check=True).stdout)


def run(ray: list[str], count: int, seconds: float, quick: bool, place: str) -> dict[str, float]:
    import resource

    times, busy = array("d"), {}
    add = Manifest.add

    def timed(self, entry):
        times.append(time.perf_counter())
        if "worker" in entry:
            for process, seconds in (("driver", time.process_time()), (entry["worker"], entry.pop("processor", 0))):
                busy.setdefault(process, [seconds, seconds])[1] = seconds
        add(self, entry)

    Manifest.add = timed
    if quick:
        batch.Worker = QuickWorker
    with tempfile.TemporaryDirectory(dir=place) as folder:
        scenes = Path(folder, "scenes.jsonl")
        with open(scenes, "w") as file:
            for i in range(count):
                file.write(json.dumps({"caption": "Rain falls on a roof.", "seconds": seconds, "seed": i}) + "\n")
        output = ["-o", f"{folder}/{{index}}.wav", "--manifest", f"{folder}/manifest.jsonl", "--steps", "10"]
        started = time.perf_counter()
        args = build_parser().parse_args(["batch", str(scenes), *FILES, *output, *ray])
        args.run(args)
        # Before so many files are deleted, which takes more time.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # The first line is the settings; the clips of the first chunk belong to the start.
    first = sum(moment - times[1] < 0.05 for moment in times[1:])
    each = (times[-1] - times[1]) / max(1, count - first)
    if not ray:
        del busy["driver"]
    processor = sum(last - begun for begun, last in busy.values()) / count
    return {"start": times[1] - started, "each": each, "processor": processor, "memory": memory}


def some_chunks(text: str) -> int:
    if not text.isdecimal() or int(text) <= MOST_CLIPS:
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than the {MOST_CLIPS} that come as one chunk")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=some_chunks, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--clips", type=some_chunks, default=400)
    # The time of a disk is not the engine's.
    place = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    parser.add_argument("--on", default=place, help="where files are written (default: %(default)s)")
    parser.add_argument("--run", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(*args.run)))
        return
    one, two = (["--ray", "local", "--workers", workers] for workers in "12")
    with_ray = find_spec("ray") is not None
    print("| scenes | on | start, s | overhead per scene, ms | processor, ms | driver, MB |\n|---|---|---|---|---|---|")
    for count in args.scenes:
        for name, ray in (("this process", []), ("Ray, 2 workers", two))[: 1 + with_ray]:
            found = measure(ray, count, 0.04, True, args.on)
            overheads = [f"{1000 * found[kind]:.2f}" for kind in ("each", "processor")]
            cells = count, name, f"{found['start']:.1f}", *overheads, f"{found['memory']:.0f}"
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print("\n| workers | start, s | clips per minute |\n|---|---|---|")
    for name, ray in (("none: this process", []), ("1", one), ("2", two))[: 1 + 2 * with_ray]:
        found = measure(ray, args.clips, 2.0, False, args.on)
        print(f"| {name} | {found['start']:.1f} | {60 / found['each']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
