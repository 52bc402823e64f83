#!/usr/bin/env python3
"""Seconds and bytes it takes to load each part: ``python -m benchmarks.load CHECKPOINTS [--dtype bf16]``.

CHECKPOINTS holds ``audiogen``, ``text_encoder`` and ``audio_tokenizer``; tools/random_checkpoint.py writes such a folder.

How it is measured (Linux only). Each part is loaded in a process of its own, with all imports done before. *Peak* is the
highest resident size that the kernel counted (VmHWM, reset after the imports) less the resident size before loading: anonymous
memory and mapped file pages together, the loader's own needs included. *Anonymous* is the highest RssAnon, less the one
before, sampled every 2 ms; weights are read, not mapped, so that it is near the peak.
*Kept* is the bytes of the module's parameters and buffers, one storage counted once.
The law: peak is at most 1.15 x kept, and 12 MiB for code, modules and headers, which a
checkpoint of nothing takes too. The exit status is 1 where it is broken.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tools.comfyui import ROOT

LIMIT = 1.15
ALLOWANCE = 12 * 2**20
PARTS = ("text_encoder", "adapter", "backbone", "decoder", "encoder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, metavar="CHECKPOINTS")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights once loaded")
    parser.add_argument("--part", choices=PARTS, help="this part only, here, as one line of JSON")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(prepare(args.part, args.checkpoints, args.dtype))))
        return 0

    print(f"{'part':14} {'seconds':>8} {'kept MB':>9} {'anonymous MB':>13} {'peak MB':>9} {'peak / kept':>12}")
    broken = []
    for part in PARTS:
        found = in_own_process(part, args)
        keeps_law = found["peak"] <= LIMIT * found["kept"] + ALLOWANCE
        print(
            f"{part:14} {found['seconds']:8.2f} {found['kept'] / 1e6:9.1f} {found['anonymous'] / 1e6:13.1f} "
            f"{found['peak'] / 1e6:9.1f} {found['peak'] / found['kept']:12.3f}" + ("" if keeps_law else "  BROKEN"),
            flush=True,
        )
        broken += [] if keeps_law else [part]
    if broken:
        print(f"\n{', '.join(broken)}: peak is more than {LIMIT} x the weights kept.")
    return bool(broken)


def in_own_process(part: str, args: argparse.Namespace) -> dict:
    arguments = [str(args.checkpoints), "--dtype", args.dtype, "--part", part]
    command = [sys.executable, "-m", "benchmarks.load", *arguments]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{part} could not be loaded, see above.")
    return json.loads(process.stdout.splitlines()[-1])


def prepare(part: str, checkpoints: Path, dtype: str) -> Callable:
    """Import all that loading ``part`` needs; the function that then loads it and returns its modules."""

    from dasheng_core import adapter, backbone, text_encoder
    from dasheng_core.audio_tokenizer import decoder, encoder
    from dasheng_core.tensors import DTYPES
    from dasheng_core.weights.checkpoint import open_checkpoint
    from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES, TEXT_ENCODER_TYPES, AdapterConfig

    run_dtype = DTYPES[dtype]

    def audiogen():
        return open_checkpoint(checkpoints / "audiogen", AUDIOGEN_TYPES)

    def text_config(checkpoint):
        return AdapterConfig.from_checkpoint(checkpoint)

    def load_text_encoder():
        generator, t5 = audiogen(), open_checkpoint(checkpoints / "text_encoder", TEXT_ENCODER_TYPES)
        return [text_encoder.load_text_encoder(t5, generator, text_config(generator))[1]]

    def load_adapter():
        generator = audiogen()
        return [adapter.load_adapter(generator, text_config(generator), dtype=run_dtype)]

    def audio_tokenizer():
        return open_checkpoint(checkpoints / "audio_tokenizer", AUDIO_TOKENIZER_TYPES)

    return {
        "text_encoder": load_text_encoder,
        "adapter": load_adapter,
        "backbone": lambda: [backbone.load_backbone(audiogen(), dtype=run_dtype)],
        "decoder": lambda: [decoder.load_decoder(audio_tokenizer(), dtype=run_dtype)],
        "encoder": lambda: [encoder.load_encoder(audio_tokenizer(), dtype=run_dtype)],
    }[part]


def measure(load: Callable) -> dict:
    """Load once; bytes and seconds."""
    before = status()
    # Forget the peak of the imports.
    Path("/proc/self/clear_refs").write_text("5")
    done, anonymous = threading.Event(), [before["RssAnon"]]

    def sample():
        while not done.wait(0.002):
            anonymous.append(status()["RssAnon"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    modules = load()
    tensors = {
        tensor.untyped_storage().data_ptr(): tensor
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    return {
        "seconds": seconds,
        "kept": sum(tensor.nbytes for tensor in tensors.values()),
        "anonymous": max(anonymous) - before["RssAnon"],
        "peak": status()["VmHWM"] - before["VmRSS"],
    }


def status(process: int | str = "self") -> dict[str, int]:
    """Sizes of a process in bytes, as the kernel counts them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024 for name, value in (line.split(":", 1) for line in lines) if "kB" in value
    }


if __name__ == "__main__":
    sys.exit(main())
