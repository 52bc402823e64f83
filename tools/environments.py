"""Installs that users have: torch, torchaudio, transformers and Python, so that every pair of two occurs.

``python3 dev.py environments`` makes each by uv, one after the other, in .dev/environments (14 GB at a time), compares
the model with the golden data in it (text to sound, and sound to latent), asks pip what requirements.txt (nothing) and
the library's own requirements would replace there, and writes docs/environments.md. Standard library only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path

from .comfyui import ROOT
from .lock import install_uv

FOLDER = ROOT / ".dev" / "environments"
TABLE = ROOT / "docs" / "environments.md"
TESTS = ("tests/test_golden.py", "tests/test_spectral.py")
# What the pack needs beside torch, torchaudio and transformers, and what its tests do.
OTHERS = ("einops", "numpy", "soundfile", "sentencepiece", "pytest", "aiohttp")
OLD, MIDDLE, NEW = "torch==2.8.0", "torch==2.11.0", "torch==2.14.1"
FOUR, FIVE = "transformers==4.57.*", "transformers>=5"


@dataclass(frozen=True)
class Environment:
    python: str
    torch: str
    torchaudio: str | None
    loads: bool  # whether torchaudio does
    transformers: str


# A torchaudio for torch 2.8 does not load beside a newer one.
ENVIRONMENTS = (
    Environment("3.10", OLD, "torchaudio==2.8.0", True, FOUR),
    Environment("3.11", OLD, None, False, FIVE),
    Environment("3.12", OLD, "torchaudio==2.8.0", True, FIVE),
    Environment("3.13", OLD, None, False, FOUR),
    Environment("3.10", MIDDLE, None, False, FIVE),
    Environment("3.11", MIDDLE, "torchaudio==2.11.0", True, FOUR),
    Environment("3.12", MIDDLE, "torchaudio==2.8.0", False, FOUR),
    Environment("3.13", MIDDLE, "torchaudio==2.11.0", True, FIVE),
    Environment("3.10", NEW, "torchaudio==2.8.0", False, FOUR),
    Environment("3.11", NEW, "torchaudio==2.11.0", True, FIVE),
    Environment("3.12", NEW, "torchaudio==2.11.0", True, FOUR),
    Environment("3.13", NEW, "torchaudio==2.8.0", False, FIVE),
)
# The newest of all, whose CUDA is newer than any torchaudio's.
NEWEST = Environment("3.12", "torch", "torchaudio", False, FIVE)


def missing_pairs(environments: tuple[Environment, ...]) -> set[tuple]:
    """Pairs of two kinds' values that occur in no environment."""
    kinds = [(e.python, e.torch, e.loads, e.transformers) for e in environments]
    missing = set()
    for a, b in combinations(range(4), 2):
        values = [sorted({kind[i] for kind in kinds}) for i in (a, b)]
        found = {(kind[a], kind[b]) for kind in kinds}
        missing |= {(one, two) for one in values[0] for two in values[1]} - found
    return missing


def needed() -> list[str]:
    """What the library asks for, as pyproject.toml lists it."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return json.loads(re.search(r"^dependencies = (\[.*\])$", text, re.MULTILINE)[1])


def moved_by(python: Path | str, *what: str, **variables: str) -> dict[str, str]:
    """The packages that ``pip install *what`` would replace by another version: name -> "old -> new"."""
    # A machine's own settings of pip are not the user's.
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, **variables}
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    command = [*pip, "install", "--quiet", "--dry-run", "--report", "-", *what]
    report = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    listed = subprocess.run(
        [*pip, "list", "--format", "json"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    there = {package["name"].lower(): package["version"] for package in json.loads(listed.stdout)}
    new = {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in json.loads(report)["install"]}
    return {name: f"{there[name]} -> {version}" for name, version in new.items() if name in there}


def main() -> int:
    shutil.rmtree(FOLDER, ignore_errors=True)
    uv = install_uv(FOLDER / "uv")
    rows = []
    try:
        # What one torch needs is kept until all its environments are done.
        for _, group in groupby((*ENVIRONMENTS, NEWEST), key=lambda environment: environment.torch):
            for environment in group:
                rows.append(examine(environment, uv))
                sys.stdout.write(rows[-1] + "\n")
                sys.stdout.flush()
            shutil.rmtree(FOLDER / "cache", ignore_errors=True)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    TABLE.write_text(HEAD + "".join(f"{row}\n" for row in rows), "utf-8")
    return int(any("failed" in row for row in rows))


def examine(environment: Environment, uv: Path) -> str:
    """A row of the table."""
    # Where pyenv keeps Pythons, its commands of that name do not run.
    pythons = [str(path) for path in sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"))]
    variables = {
        **os.environ,
        "UV_CACHE_DIR": str(FOLDER / "cache"),
        "PATH": os.pathsep.join([*pythons, os.environ["PATH"]]),
    }
    folder = FOLDER / "environment"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run(
        [uv, "venv", "--quiet", "--clear", "--seed", "--python", environment.python, folder], env=variables, check=True
    )
    install = [uv, "pip", "install", "--quiet", "--python", python]
    packages = [environment.torch, environment.transformers, *OTHERS]
    if environment.torchaudio and environment.loads:
        packages.append(environment.torchaudio)
    subprocess.run([*install, *packages], env=variables, check=True)
    if environment.torchaudio and not environment.loads:
        subprocess.run([*install, "--no-deps", environment.torchaudio], env=variables, check=True)

    loads = subprocess.run([python, "-c", "import torchaudio"], stderr=subprocess.DEVNULL).returncode == 0
    if loads != environment.loads:
        raise AssertionError(f"{environment}: torchaudio {'loads' if loads else 'does not load'}")
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", "not memory"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    if tests.returncode:
        sys.stdout.write(tests.stdout)
    code = (
        "import sys\nfrom importlib.metadata import version\nname = sys.argv[1]\n"
        "sys.stdout.write(sys.version.split()[0] if name == 'python' else version(name))"
    )
    ask = lambda name: subprocess.check_output([python, "-c", code, name], text=True)  # noqa: E731
    audio = f"{ask('torchaudio')}{'' if loads else ', does not load'}" if environment.torchaudio else "none"
    outcome = "failed" if tests.returncode else ", ".join(re.findall(r"\d+ (?:passed|skipped)", tests.stdout))
    if moved := moved_by(python, "-r", "requirements.txt"):
        raise AssertionError(f"{environment}: requirements.txt replaces {moved}")
    moved = moved_by(python, *needed())
    moves = ", ".join(f"{name} {change}" for name, change in moved.items()) or "nothing"
    cells = [ask("python"), ask("torch"), audio, ask("transformers"), outcome, moves]
    return f"| {' | '.join(cells)} |"


HEAD = """# Environments

Written by `python3 dev.py environments`, on Linux, x86-64, without a GPU. In each, the model was compared with the golden
data: text to sound and sound to latent; what is skipped compares with torchaudio. `pip install -r requirements.txt`, which is
for ComfyUI, replaces nothing in any of them. The last column is what `pip install .`, the library alone, would replace there.

| Python | torch | torchaudio | transformers | tests | replaced |
|---|---|---|---|---|---|
"""


if __name__ == "__main__":
    sys.exit(main())
