#!/usr/bin/env python3
"""Seconds and bytes it takes to load each part: ``python -m benchmarks.load CHECKPOINTS [--dtype bf16]``.

CHECKPOINTS holds ``audiogen``, ``text_encoder`` and ``audio_tokenizer``; tools/random_checkpoint.py writes such a folder.

How it is measured (Linux only). Each part is loaded in a process of its own, with all imports done before. *Peak* is the
highest resident size that the kernel counted (VmHWM, reset after the imports) less the resident size before loading: anonymous
memory and mapped file pages together, the loader's own needs included.
*Kept* is the bytes of the module's parameters and buffers, one storage counted once.
The law: peak is at most 1.15 x kept, and 12 MiB for code, modules and headers, which a
checkpoint of nothing takes too. The exit status is 1 where it is broken.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dasheng_core import adapter, backbone, text_encoder
from dasheng_core.audio_tokenizer import decoder, encoder
from dasheng_core.tensors import DTYPES
from dasheng_core.weights.checkpoint import Checkpoint, open_checkpoint
from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES, TEXT_ENCODER_TYPES, AdapterConfig
from tools.comfyui import ROOT

LIMIT = 1.15
ALLOWANCE = 12 * 2**20
TYPES = {"audiogen": AUDIOGEN_TYPES, "text_encoder": TEXT_ENCODER_TYPES, "audio_tokenizer": AUDIO_TOKENIZER_TYPES}
PARTS = ("text_encoder", "adapter", "backbone", "decoder", "encoder")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, metavar="CHECKPOINTS")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights once loaded")
    parser.add_argument("--part", choices=PARTS, help="this part only, here, as one line of JSON")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(measure(lambda: [load(args.part, args.checkpoints, args.dtype)])))
        return 0

    print(f"{'part':14} {'seconds':>8} {'kept MB':>9} {'peak MB':>9} {'peak / kept':>12}")
    broken = False
    for part in PARTS:
        command = [sys.executable, "-m", "benchmarks.load", args.checkpoints, "--dtype", args.dtype, "--part", part]
        found = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout)
        kept, peak = found["kept"], found["peak"]
        keeps_law = peak <= LIMIT * kept + ALLOWANCE
        broken |= not keeps_law
        figures = f"{part:14} {found['seconds']:8.2f} {kept / 1e6:9.1f} {peak / 1e6:9.1f} {peak / kept:12.3f}"
        print(figures + ("" if keeps_law else f"  BROKEN: more than {LIMIT} x the weights kept"), flush=True)
    return broken


def load(part: str, checkpoints: Path, dtype: str) -> nn.Module:
    def opened(folder: str) -> Checkpoint:
        return open_checkpoint(checkpoints / folder, TYPES[folder])

    if part in ("decoder", "encoder"):
        loader = decoder.load_decoder if part == "decoder" else encoder.load_encoder
        return loader(opened("audio_tokenizer"), dtype=DTYPES[dtype])
    generator = opened("audiogen")
    if part == "backbone":
        return backbone.load_backbone(generator, dtype=DTYPES[dtype])
    config = AdapterConfig.from_checkpoint(generator)
    if part == "adapter":
        return adapter.load_adapter(generator, config, dtype=DTYPES[dtype])
    return text_encoder.load_text_encoder(opened("text_encoder"), generator, config)[1]


def measure(load: Callable[[], list[nn.Module]]) -> dict:
    """Load once; bytes and seconds."""
    before = status()
    # Forget the peak of the imports.
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    modules = load()
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    stored = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in tensors}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "kept": sum(stored.values()), "peak": status()["VmHWM"] - before["VmRSS"]}


def status(process: int | str = "self") -> dict[str, int]:
    """Sizes of a process in bytes, as the kernel counts them."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024 for name, value in (line.split(":", 1) for line in lines) if "kB" in value
    }


if __name__ == "__main__":
    sys.exit(main())
