"""Damaged and hostile model files, one a seed: made of the small golden checkpoint, loaded in a process that may die.

``PYTHONPATH=. python tests/hostile_files.py SEED CASES`` tries other seeds than the test's and prints what came of them.
"""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import PARTS, make_case, make_forms

ROOT = Path(__file__).resolve().parent.parent
# Of one case: bytes, seconds of computing, and seconds of waiting for it while others compute.
MEMORY, SECONDS, PATIENCE = 10**9, 10.0, 120.0
PROMPT = "<|caption|> A cat meowing softly. <|sfx|> a cat"


def try_case(base: Path, seed: int, case: int) -> dict:
    """Make, load and use one case; what came of it."""
    import torch

    from dasheng_core import DashengAudioGen

    with tempfile.TemporaryDirectory(dir=base) as folder:
        text, paths, changed, refused = make_case(base, seed, case, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")
        resident, started = memory()["VmRSS"], time.process_time()
        stage = "load"
        try:
            model = DashengAudioGen.from_pretrained(*(paths[part] for part in PARTS))
            stage = "use"
            model.generate(PROMPT, num_steps=1, seed=1, duration=0.2)
            if changed.name == "audio_tokenizer":
                model.encode(torch.zeros(1, 16000))
            outcome, reason = "swallowed" if refused else "loaded", ""
        except (ValueError, OSError) as error:
            outcome, reason = "refused", str(error)
            # Weights that make no sound are found when they are used.
            if str(changed) not in reason and not (stage == "use" and "finite" in reason):
                outcome = "nameless"
        # Rust's panics are no Exception.
        except BaseException as error:  # noqa: BLE001
            outcome, reason = "traceback", f"{type(error).__name__}: {error}"
        seconds, grown = time.process_time() - started, memory()["VmHWM"] - resident
        if (Path(folder) / "code_was_run").exists():
            outcome = "ran code"
        elif grown > MEMORY:
            outcome = "memory"
        elif seconds > SECONDS:
            outcome = "slow"
    return {
        "case": case,
        "outcome": outcome,
        "what": text,
        "may_load": not refused,
        "stage": stage,
        "reason": reason[:600],
        "seconds": seconds,
        "grown": grown,
    }


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {
        name: int(value.split()[0]) * 1024 for name, value in (line.split(":", 1) for line in lines) if "kB" in value
    }


def work(base: Path, seed: int, first: int, last: int) -> None:
    import logging
    import resource

    import torch

    logging.disable()
    torch.set_num_threads(1)
    import dasheng_core  # noqa: F401

    limit = memory()["VmSize"] + 6 * 10**9
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print.
    os.dup2(2, 1)
    answers.write("ready\n")
    answers.flush()
    for case in range(first, last):
        answers.write(json.dumps(try_case(base, seed, case)) + "\n")
        answers.flush()


def try_cases(base: Path, seed: int, first: int, last: int) -> list[dict]:
    """Cases one after another in a worker process, which is started again after one that ends it or never ends."""
    results = []
    while first < last:
        command = [sys.executable, __file__, "--work", str(base), str(seed), str(first), str(last)]
        own = {**os.environ, "PYTHONPATH": str(ROOT)}
        # Unbuffered, as select sees the pipe only.
        worker = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=own)
        try:
            # Imports take their time where many processes start.
            select.select([worker.stdout], [], [], 5 * PATIENCE)
            worker.stdout.readline()
            while first < last:
                ready, _, _ = select.select([worker.stdout], [], [], PATIENCE)
                line = worker.stdout.readline() if ready else b""
                if not line:
                    outcome = f"crashed ({worker.wait()})" if ready else "hung"
                    results.append({"case": first, "outcome": outcome, "what": "", "seconds": PATIENCE, "grown": 0})
                    first += 1
                    break
                results.append(json.loads(line))
                first += 1
        finally:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    return results


def try_seed(base: Path, seed: int, cases: int) -> list[dict]:
    """``cases`` of one seed, in two processes side by side."""
    with ThreadPoolExecutor(2) as pool:
        halves = [(0, cases // 2), (cases // 2, cases)]
        return [result for half in pool.map(lambda half: try_cases(base, seed, *half), halves) for result in half]


def main() -> int:
    if sys.argv[1] == "--work":
        work(Path(sys.argv[2]), *map(int, sys.argv[3:]))
        return 0
    seed, cases = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        make_forms(Path(folder))
        results = try_seed(Path(folder), seed, cases)
    failures = [result for result in results if result["outcome"] not in ("loaded", "refused")]
    for result in failures:
        sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.write(f"{'':24}cases loaded refused failed  seconds       MB\n")
    # The last row is of all.
    for name in (*sorted({result["what"].rpartition(" ")[2] for result in results}), ""):
        mine = [result for result in results if result["what"].endswith(name)]
        found = Counter(result["outcome"] for result in mine)
        counts = len(mine), found["loaded"], found["refused"], len(mine) - found["loaded"] - found["refused"]
        slowest, largest = (max(result[key] for result in mine) for key in ("seconds", "grown"))
        row = "".join(f"{count:{width}}" for count, width in zip(counts, (5, 7, 8, 7), strict=True))
        sys.stdout.write(f"{name:24}{row}{slowest:9.2f}{largest / 1e6:9.1f}\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
