"""The lock file of ``.dev``: each package that dev.py installs, by version and checksum.

``python3 dev.py lock`` writes it by uv, for Linux on x86-64 and CPython 3.10 to 3.13: the newest versions that fit, with
the checksums of all files that the package index has of each. Standard library only.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from .comfyui import DEV, ROOT, Problem, environment

LOCK = ROOT / "requirements-dev.lock"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
HEAD = """# Written by `python3 dev.py lock`: what .dev/venv gets, with the SHA-256 of every file of each version.
# For requirements {digest}
"""
# uv resolves for these alone; it reads them from the pyproject.toml of the folder that it runs in.
FOR = "sys_platform == 'linux' and platform_machine == 'x86_64' and implementation_name == 'cpython'"
PROJECT = f"""[project]
name = "lock"
version = "0"
[tool.uv]
environments = ["{FOR} and python_version <= '{PYTHONS[-1]}'"]
"""


def required(comfyui: Path, root: Path = ROOT) -> list[Path]:
    """The files of requirements that an environment of dev.py fulfils."""
    return [root / "requirements-dev.txt", comfyui / "requirements.txt", root / "requirements.txt"]


def digest(files: list[Path]) -> str:
    """A checksum of files, the same with the ends of lines of any system."""
    return hashlib.sha256("\0".join(file.read_text("utf-8") for file in files).encode()).hexdigest()


def misfit(python: Path | str, files: list[Path], lock: Path = LOCK) -> str:
    """Why the lock is not for this Python and these files of requirements; "" where it is."""
    if f"# For requirements {digest(files)}\n" not in lock.read_text("utf-8"):
        return "it was made for other requirements than those of this ComfyUI and this pack"
    asked = "import platform, sys; print(sys.platform, platform.machine(), sys.implementation.name, sys.version)"
    system, machine, kind, version = subprocess.check_output([python, "-c", asked], text=True).split()[:4]
    if (system, machine, kind) == ("linux", "x86_64", "cpython") and version.rpartition(".")[0] in PYTHONS:
        return ""
    return f"it is for Linux on x86-64 and CPython {PYTHONS[0]} to {PYTHONS[-1]}, this is {system}, {machine}, {kind} {version}"


def install_uv(folder: Path) -> Path:
    """uv in an environment of its own."""
    venv.create(folder, clear=True, with_pip=True)
    uv = folder / ("Scripts/uv.exe" if os.name == "nt" else "bin/uv")
    pip = [uv.with_name(f"python{uv.suffix}"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "uv"], check=True)
    return uv


def main(comfyui: Path) -> int:
    files = required(comfyui)
    DEV.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEV) as temporary:
        (Path(temporary) / "pyproject.toml").write_text(PROJECT, "utf-8")
        # Settings of this machine, such as another index, are not everybody's.
        own = {name: value for name, value in environment().items() if not name.startswith("UV_")}
        command = [
            install_uv(Path(temporary) / "uv"), "pip", "compile", "--quiet", "--universal",
            "--python-version", PYTHONS[0], "--generate-hashes", "--no-strip-extras", "--no-header", "--no-annotate",
            "--cache-dir", Path(temporary) / "cache", *files,
        ]  # fmt: skip
        made = subprocess.run(
            [str(part) for part in command], cwd=temporary, env=own, stdout=subprocess.PIPE, text=True
        )
    if made.returncode:
        raise Problem("uv could not resolve the requirements: its words are above. The lock file is as it was.")
    LOCK.write_text(HEAD.format(digest=digest(files)) + made.stdout, "utf-8")
    pinned = len(re.findall("^[a-z].*==", made.stdout, re.MULTILINE))
    sys.stdout.write(f"Wrote {LOCK.name}: {pinned} versions. Run the tests, which install by it, and commit it.\n")
    return 0
