#!/usr/bin/env python3
"""How long a clip takes in a real ComfyUI on a GPU: ``python -m benchmarks.comfyui_gpu --comfyui PATH [--json FILE]``.

A random checkpoint of the published size is written (12 GB, half of it with --dtype bf16), and a server started with
each set of flags. *cold*: a clip of 10 s from a started server, with loading; *seed*, *prompt*: the same with another
seed, with another prompt, by ComfyUI's history. *peak*: the largest GPU memory that nvidia-smi shows meanwhile. The
library makes the same clip in this process. --tiny goes through it all with a tiny checkpoint, on a processor too: its times mean nothing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks import machine, report
from benchmarks.timing import Progress
from dasheng_core import DashengAudioGen
from dasheng_core.tensors import DTYPES
from tools.comfyui import MODEL_FOLDERS, Server, node, text_to_sound
from tools.random_checkpoint import SIZES, write_checkpoints

NAME = "random/model.safetensors"
PROMPTS = ("<|caption|> Rain on a tin roof.", "<|caption|> A dog barks twice, far away.")
SECONDS, STEPS = 10.0, 25
SMALL_CARD = 3 * 2**30


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, metavar="PATH")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    parser.add_argument(
        "--on", default=tempfile.gettempdir(), help="where the checkpoint is written (default: %(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="of the files (default: as published)"
    )
    parser.add_argument("--frontend", type=Path, help="a folder in place of ComfyUI's frontend package")
    parser.add_argument("--only", metavar="WORDS", default="", help="only the ways whose name has these words")
    parser.add_argument("--tiny", action="store_true", help="a tiny checkpoint: tests the script")
    args = parser.parse_args(argv)
    progress = Progress()
    size = "tiny" if args.tiny else "full"
    command = f"python -m benchmarks.comfyui_gpu --comfyui PATH --dtype {args.dtype}"
    job = {"seconds": SECONDS, "steps": STEPS, "files": args.dtype}
    result = {**machine.describe(), "command": command, "size": size, "job": job, "left_out": [], "rows": []}
    with tempfile.TemporaryDirectory(dir=args.on) as folder:
        base = Path(folder)
        progress("writing the checkpoint")
        write_checkpoints(base / "random", SIZES[size], False, DTYPES[args.dtype], 0)
        for kind, part in MODEL_FOLDERS.items():
            (base / "models" / kind).mkdir(parents=True)
            shutil.move(base / "random" / part, base / "models" / kind / "random")
        total = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else 2 * SMALL_CARD
        reserved = f"{(total - SMALL_CARD) / 2**30:.1f}"
        ways = {
            "library, bf16": lambda: in_library(base / "models"),
            "default flags": lambda: in_comfyui(args, base),
            "3 GB for ComfyUI": lambda: in_comfyui(args, base, "--reserve-vram", reserved),
            "--disable-dynamic-vram": lambda: in_comfyui(args, base, "--disable-dynamic-vram"),
            "Dasheng Optimize, resident": lambda: in_comfyui(args, base, mode="resident"),
            "Dasheng Optimize, graph": lambda: in_comfyui(args, base, mode="graph"),
        }
        for name, run in ways.items():
            if args.only not in name:
                continue
            progress(name)
            try:
                with watched() as peak:
                    row = {"name": name, **run()}
                result["rows"].append({**row, "peak": peak()})
            except Exception as problem:  # noqa: BLE001
                result["left_out"].append(f"{name}: {type(problem).__name__}: {str(problem)[-1500:]}")
            if args.json:
                # A run that is cut off leaves its results so far.
                args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(report.section(result))
    return 0


def timed(run: Callable) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def clips(make: Callable[[str, int], float]) -> dict[str, float]:
    """Seconds of a first clip, of one with another seed and of one with another prompt, each warm one twice."""
    cold = make(PROMPTS[0], 0)
    seed = min(make(PROMPTS[0], seed) for seed in (1, 2))
    prompt = min(make(text, 3) for text in (PROMPTS[1], PROMPTS[1] + " Wind."))
    return {"cold": cold, "seed": seed, "prompt": prompt}


def in_library(models: Path) -> dict:
    paths = [models / kind / "random" for kind in MODEL_FOLDERS]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = []

    def make(prompt: str, seed: int) -> None:
        if not loaded:
            loaded.append(DashengAudioGen.from_pretrained(*paths, device=device, dtype=torch.bfloat16))
        loaded[0].generate(prompt, STEPS, seed=seed, duration=SECONDS)

    try:
        return clips(lambda prompt, seed: timed(lambda: make(prompt, seed)))
    finally:
        loaded.clear()
        torch.cuda.empty_cache()


def in_comfyui(args, base: Path, *flags: str, mode: str = "off") -> dict:
    flags = (*flags, "--front-end-root", str(args.frontend)) if args.frontend else flags
    with Server(args.comfyui, Path(sys.executable), base, flags) as server:
        found = clips(lambda prompt, seed: executed(server.finished(graph(prompt, seed, mode))))
        log = server.log.read_text("utf-8", "replace")
    complaints = [line for line in log.splitlines() if line.startswith(("Traceback", "WARNING", "[WARNING", "[ERROR"))]
    return {**found, "dynamic_vram": "DynamicVRAM support detected and enabled" in log, "complaints": complaints[:20]}


def executed(entry: dict) -> float:
    """Seconds from the start of a graph to its end, by ComfyUI's own clock: whoever asks for the result adds nothing."""
    at = {kind: body["timestamp"] for kind, body in entry["status"]["messages"]}
    return (at["execution_success"] - at["execution_start"]) / 1000


def graph(prompt: str, seed: int, mode: str) -> dict:
    nodes = text_to_sound(NAME, prompt, SECONDS, seed=seed, steps=STEPS)
    nodes["fast"] = node("DashengOptimize", model=["model", 0], mode=mode)
    nodes["sample"]["inputs"]["model"] = ["fast", 0]
    saved = dict(filename_prefix="bench", bit_depth="24 bit", loop=False, loop_start=0, loop_end=0, markers="")
    nodes["saved"] = node("DashengSaveWAV", audio=["decode", 0], **saved)
    return nodes


@contextmanager
def watched():
    """A function that returns the most GPU memory in use since the block began, of all processes; None without a GPU."""
    found, done = [], threading.Event()

    def watch() -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not done.wait(0.2):
            numbers = subprocess.run(command, capture_output=True, text=True).stdout.split()
            found.extend(int(number) * 2**20 for number in numbers[:1] if number.isdigit())

    watcher = threading.Thread(target=watch, daemon=True)
    if shutil.which("nvidia-smi"):
        watcher.start()
    try:
        yield lambda: max(found, default=None)
    finally:
        done.set()


if __name__ == "__main__":
    sys.exit(main())
