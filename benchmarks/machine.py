"""The machine of a benchmark, what it can do, and measurements in processes of their own (memory, loading)."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks import load
from benchmarks.timing import Progress
from dasheng_core.tensors import has_fast_bfloat16
from tools.random_checkpoint import Sizes, write_checkpoints

ROOT = Path(__file__).resolve().parent.parent
# The audio tokenizer's encoder is not loaded for text-to-audio.
LOADED = ("text_encoder", "adapter", "backbone", "decoder")


def describe() -> dict:
    """Hardware, versions and date, as a result must say them."""
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_size(),
        "fast_bf16": has_fast_bf16(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": [properties.major, properties.minor],
            "cuda": torch.version.cuda,
        }
    return found


def commit() -> str:
    """The commit this folder is at, with a plus sign where files differ from it; or that none is known."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + ("+" if changed else "")


def processor() -> str:
    """Its name and what it has for products of bfloat16."""
    names = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
    units = [
        name
        for name, there in (
            ("AMX", torch.cpu._is_amx_tile_supported),
            ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported),
        )
        if there()
    ]
    return ", ".join([names[0], *units])


def has_fast_bf16() -> bool:
    """Whether products in bfloat16 are faster than in float32 here."""
    return has_fast_bfloat16(torch.device("cpu"))


def has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))


def memory_size() -> int | None:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def memory() -> dict[str, int]:
    """Bytes of this process: VmRSS now, VmHWM at most; zeros where the system does not count them."""
    return load.status() if Path("/proc/self/status").exists() else {"VmRSS": 0, "VmHWM": 0}


def forget_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def load_times(sizes: Sizes, progress: Progress) -> list[dict]:
    """Seconds and bytes to load each part from a bfloat16 file that has just been written, by benchmarks/load.py."""
    if not Path("/proc/self/status").exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        progress("writing random checkpoints")
        write_checkpoints(Path(folder) / "random", sizes, False, torch.bfloat16, 0)
        found = []
        for part in LOADED:
            progress(f"loading: {part}")
            figures = in_own_process("benchmarks.load", str(Path(folder) / "random"), "--dtype", "bf16", "--part", part)
            found.append({"part": part, **figures})
        return found


def in_own_process(module: str, *arguments: str) -> dict:
    """What a module prints as its last line, from JSON."""
    process = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if process.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed, see above.")
    return json.loads(process.stdout.splitlines()[-1])
