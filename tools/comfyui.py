"""A headless ComfyUI with this pack in it, for dev.py, the tests and the tools. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEV = ROOT / ".dev"
DATA = DEV / "comfyui-data"
PACK = "dasheng-audiogen"
SMALL = ROOT / "mini"
# As the pack's loaders list it.
SMALL_NAME = "dasheng-mini/model.safetensors"
MODEL_FOLDERS = {"diffusion_models": "audiogen", "text_encoders": "text_encoder", "vae": "audio_tokenizer"}

# ComfyUI by its own main.py. It ends when its parent does, however that ends: its standard input ends then. Python's
# garbage collector takes a seventh of the start and frees nothing, so it waits for a byte that means that ComfyUI is ready.
START = """
import gc, os, runpy, sys, threading
def watch():
    while os.read(0, 1):
        gc.enable()
    os._exit(1)
gc.disable()
threading.Thread(target=watch, daemon=True).start()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# No proxy between this machine and itself.
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Problem(Exception):
    """What went wrong and what to do, for the user."""


class Server:
    """A headless ComfyUI with this pack, for as long as the ``with`` block lasts.

    ``base`` holds its models, custom_nodes, input, output and user folders.
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
        # ComfyUI empties its temporary folder when it starts: another server of this base keeps its own.
        self._temporary = self.base / "temp" / str(port)
        # ComfyUI makes a folder of this name in the one that it is given.
        self.temp = self._temporary / "temp"
        command = [
            self.python, "-c", START, self.comfyui / "main.py", "--listen", "127.0.0.1", "--port", port,
            "--base-directory", self.base, "--extra-model-paths-config", self.base / "extra_model_paths.yaml",
            "--temp-directory", self._temporary, "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", "sqlite:///:memory:", *self.flags,
        ]  # fmt: skip
        if not has_gpu():
            command.append("--cpu")
        # Another server of this base may still write into the old one.
        with contextlib.suppress(OSError):
            self.log.unlink()
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command], cwd=self.comfyui, stdin=subprocess.PIPE, stdout=log, stderr=log,
                env=environment(), start_new_session=True, bufsize=0,
            )  # fmt: skip
        self._said = open(self.log, "rb")
        try:
            self._wait_until_ready()
            self._process.stdin.write(b"1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        end(self._process)
        self._process.stdin.close()
        self._said.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def wait(self) -> None:
        """Until ComfyUI ends by itself."""
        self._process.wait()

    def kill(self) -> None:
        """End ComfyUI as a power cut would."""
        end(self._process, signal.SIGKILL)

    @property
    def pid(self) -> int:
        return self._process.pid

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
        return self.finished(graph, progress)["outputs"]

    def finished(self, graph: dict, progress=lambda text: None) -> dict:
        """Queue an API-format graph and return what ComfyUI's history has of it once it is done."""
        prompt_id = self.post("/prompt", {"prompt": graph, "client_id": uuid.uuid4().hex})["prompt_id"]
        while True:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                break
            self._check_alive()
            progress(self._log_tail())
            time.sleep(0.1)
        if entry["status"]["status_str"] != "success":
            errors = [body for kind, body in entry["status"]["messages"] if kind == "execution_error"]
            text = "; ".join(f"{body['node_type']}: {body['exception_message'].strip()}" for body in errors)
            raise Problem(text or f"ComfyUI stopped without a result, see {self.log}")
        return entry

    def _prepare_folders(self) -> None:
        for name in ("custom_nodes", "input", "output", "user", *(f"models/{kind}" for kind in MODEL_FOLDERS)):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link_folder(self.base / "custom_nodes" / PACK, ROOT)
        # A base directory hides ComfyUI's own models folder, where the real weights may be.
        write_model_paths(self.base / "extra_model_paths.yaml", self.comfyui / "models")

    def _wait_until_ready(self) -> None:
        while True:
            self._check_alive()
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.05)

    def _check_alive(self) -> None:
        if self._process.poll() is not None:
            raise Problem(f"ComfyUI ended by itself:\n{self._log_tail(3000)}")

    def _log_tail(self, size: int = 400) -> str:
        self._said.seek(max(0, os.fstat(self._said.fileno()).st_size - size))
        return self._said.read().decode("utf-8", "replace")

    def _request(self, path: str, body: bytes | None = None):
        request = urllib.request.Request(f"http://{self.address}{path}", body, {"Content-Type": "application/json"})
        try:
            with LOCAL.open(request, timeout=60) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise Problem(f"ComfyUI refused {path}: {error.read().decode('utf-8', 'replace')}") from error
        return json.loads(text) if text else None


def node(kind: str, **inputs) -> dict:
    """A node of an API-format graph; an input from another node's output is [its name, the output's number]."""
    return {"class_type": kind, "inputs": inputs}


def text_to_sound(name: str, prompt: str, seconds: float, batch_size: int = 1, **sampler) -> dict[str, dict]:
    """The API-format graph from a prompt to a sound by the checkpoint ``name``; ``sampler``: of Dasheng Sampler."""
    options = dict(seed=0, steps=25, guidance=5.0, sway=-1.0, denoise=1.0, keep_on_gpu=False) | sampler
    return {
        "model": node("DashengModelLoader", model_name=name, dtype="auto"),
        "clip": node("DashengTextEncoderLoader", text_encoder_name=name, model_name=name),
        "vae": node("DashengAudioTokenizerLoader", vae_name=name),
        "text": node("DashengTextEncode", clip=["clip", 0], prompt=prompt),
        "empty": node("EmptyDashengLatentAudio", seconds=seconds, batch_size=batch_size),
        "sample": node("DashengSampler", model=["model", 0], positive=["text", 0], latent=["empty", 0], **options),
        "decode": node("DashengDecode", vae=["vae", 0], latent=["sample", 0]),
    }


def write_model_paths(file: Path, models: Path) -> None:
    """ComfyUI's list of further model folders. JSON is YAML that no letter of a path can break."""
    paths = {str(models): {kind: str(models / kind) for kind in MODEL_FOLDERS}}
    file.write_text(json.dumps(paths, ensure_ascii=False), "utf-8")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """A real file system of ``size`` bytes at the new folder ``folder``; None where none can be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


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


def environment(**more: str) -> dict[str, str]:
    """For the Pythons started here: UTF-8 whatever the locale, and modules compiled once."""
    unwanted = ("PYTHONDONTWRITEBYTECODE", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONUTF8": "1", **more}


def run_in_comfyui(script: Path, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a script that imports ComfyUI's modules, and this repository's, in a process of its own."""
    paths = os.pathsep.join(filter(None, [os.environ["COMFYUI_PATH"], str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [str(part) for part in (sys.executable, script, *arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(PYTHONPATH=paths), text=True, **options)


def end(process: subprocess.Popen, number: int = signal.SIGTERM) -> None:
    """Send a child ``number``, to all of its session if it has one, and wait until it has ended."""
    with contextlib.suppress(ProcessLookupError):
        if os.name == "nt":
            process.terminate()
        elif os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
