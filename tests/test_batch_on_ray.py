"""``dasheng batch`` where Ray and pyarrow are installed: python -m pytest tests/test_batch_on_ray.py; see test_batch.py."""

import hashlib
import importlib
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import soundfile
import torch

from dasheng_core.batch import rows, storage
from dasheng_core.batch.model import CHECKPOINT_OPTIONS, load_model
from dasheng_core.batch.one_run import NOTE
from dasheng_core.cli import main
from tools.comfyui import ROOT, SMALL, end

if find_spec("ray") is None:
    pytest.skip("needs Ray: test_batch.py installs it", allow_module_level=True)
# Workers that give way to all else would be starved by the tests beside these. Ray reads some of this when it is imported.
os.environ |= {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0",
               "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef"}  # fmt: skip
import ray.data  # noqa: E402
from pyarrow import Table, fs, parquet  # noqa: E402

from dasheng_core.batch.cluster import slots  # noqa: E402

MODEL = [
    "--audiogen", str(SMALL / "audiogen"), "--text-encoder", str(SMALL / "text_encoder"),
    "--audio-tokenizer", str(SMALL / "audio_tokenizer"), "--steps", "3", "--seed", "7",
]  # fmt: skip
THINGS = ("A dog barks.", "A bell rings twice, far away.", "Rain falls on a roof.", "Wind blows.")
TOLERANCE, STEP = 1e-5, 2**-23
# On a busy machine each start of a worker may take a minute.
PATIENCE = 600


def write(count: int) -> list[dict]:
    scenes = [
        {"caption": THINGS[i % 4], "seed": i, "seconds": 0.4 + 0.2 * (i % 3), "name": f"scene {i}"}
        for i in range(count)
    ]
    Path("scenes.jsonl").write_text("".join(json.dumps(scene) + "\n" for scene in scenes))
    return scenes


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def command(scenes: str) -> list[str]:
    return ["batch", scenes, *MODEL, "-o", "out/{name}.flac"]


@contextmanager
def running(*options: str, scenes: str = "scenes.jsonl"):
    """The command in a process of its own, in this folder."""
    with open("said", "w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "dasheng_core", *command(scenes), *options], stderr=said, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        yield run
    finally:
        end(run, signal.SIGKILL)


def files() -> list[str]:
    # What a worker leaves that is killed while it writes is hidden, and has no name of ours.
    return sorted(path.name for path in Path("out").glob("*.flac")) if Path("out").exists() else []


def stamps() -> dict[str, int]:
    return {name: Path("out", name).stat().st_mtime_ns for name in files()}


def manifest() -> list[dict]:
    return [json.loads(line) for line in Path("scenes.manifest.jsonl").read_text("utf-8").splitlines()][1:]


def workers_of(driver: int) -> list[int]:
    """The workers that hold a model: descendants of a process, as Linux knows them."""
    parents, workers = {}, []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                workers.append(int(process.name))
        except OSError:
            continue
    return [worker for worker in workers if driver in ancestors(worker, parents)]


def ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = []
    while process in parents:
        process = parents[process]
        found.append(process)
    return found


def until(condition, seconds: float = PATIENCE):
    for _ in range(int(seconds / 0.02)):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {Path('said').read_text()[-2000:]}")


def check_all(scenes: list[dict], mini) -> None:
    """Every scene has one file and one entry, and each file is what its scene is alone."""
    assert files() == sorted(f"{scene['name']}.flac" for scene in scenes)
    assert sorted(entry["file"] for entry in manifest()) == [f"out/{name}" for name in files()]
    for scene in scenes:
        prompt = f"<|caption|> {scene['caption']}"
        expected = mini.generate(prompt, num_steps=3, seed=scene["seed"], duration=scene["seconds"])[0]
        made = torch.from_numpy(soundfile.read(f"out/{scene['name']}.flac", dtype="float32")[0])
        assert (made - expected.clamp(-1, 1)).abs().max() <= TOLERANCE + STEP, scene


def test_workers_killed_at_random_lose_and_double_nothing(mini):
    """BATCH_SCENES and BATCH_KILLS make it longer."""
    scenes, kills = write(int(os.environ.get("BATCH_SCENES", "200"))), int(os.environ.get("BATCH_KILLS", "10"))
    # The last comes while there is work for longer than it waits.
    moments = sorted(random.sample(range(len(scenes) * 2 // 3), kills))
    killed = []
    with running("--ray", "local", "--workers", "2") as run:
        for moment in moments:
            until(lambda moment=moment: len(files()) >= moment or run.poll() is not None)
            time.sleep(random.uniform(0, 0.3))
            worker = random.choice(until(lambda: sorted(set(workers_of(run.pid)) - set(killed))))
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
        assert run.wait(timeout=PATIENCE) == 0, Path("said").read_text()
    assert len(killed) == kills
    check_all(scenes, mini)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of one node that says it has two GPUs; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path_factory.mktemp("cluster") / "log", "w")
    start = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--num-gpus=2", "--include-dashboard=false"]
    script = Path(sys.executable).with_name("ray")
    head = subprocess.Popen([script, "start", *start], stdout=log, stderr=log, start_new_session=True)
    yield f"127.0.0.1:{port}"
    end(head, signal.SIGKILL)
    log.close()


def test_a_run_stopped_and_a_run_killed_are_resumed(cluster, mini):
    """Of a table; the manifest becomes one, too, by the line of docs/batch.md."""
    scenes = write(60)
    parquet.write_table(Table.from_pylist(scenes), "scenes.parquet")
    options = ["--ray", cluster, "--gpus-per-worker", "1", "--workers", "1,2"]
    # While the first worker starts; and while the pool grows.
    for go_on, wait, count, stop in (([], 4, 0, signal.SIGTERM), (["--resume"], 0, 9, signal.SIGINT)):
        with running(*options, *go_on, scenes="scenes.parquet") as run:
            until(lambda: "clips to make" in Path("said").read_text() or run.poll() is not None)
            time.sleep(wait)
            until(lambda count=count: len(files()) >= count or run.poll() is not None)
            os.killpg(run.pid, stop)
            code = run.wait(timeout=120)
        said = Path("said").read_text()
        assert code == 128 + stop and said.endswith("Stopped.\n") and "Traceback" not in said, said
        assert "the same command with --resume makes the others" in said, said
    stopped = stamps()
    with running(*options, "--resume", scenes="scenes.parquet") as run:
        until(lambda: len(files()) >= len(stopped) + 6)
        os.kill(run.pid, signal.SIGKILL)
    made = stamps()
    assert 12 <= len(made) < 60 and stopped.items() <= made.items()
    assert main([*command("scenes.parquet"), *options, "--resume"]) == 0
    assert made.items() <= stamps().items()
    check_all(scenes, mini)
    (line,) = re.findall(r"`(pandas\.read_json.*)` makes a table", (ROOT / "docs" / "batch.md").read_text("utf-8"))
    subprocess.run([sys.executable, "-c", f"import pandas\n{line}"], check=True)
    table = parquet.read_table("manifest.parquet").to_pylist()
    assert [entry["file"] for entry in table] == [entry["file"] for entry in manifest()]


def test_what_a_cluster_cannot_do_is_said(cluster, caplog, monkeypatch):
    write(20)
    options = [*command("scenes.jsonl"), "--ray", cluster]
    assert main([*options, "--audiogen", "nowhere"]) == 1
    assert ": nowhere is neither a path nor a hub repository in the local cache" in caplog.text
    assert main([*options, "--gpus-per-worker", "3"]) == 1
    assert "1 workers, each with 1 CPUs and 3 GPUs, do not fit into the cluster" in caplog.text
    # And it is not waited for what others hold.
    hold = (
        f"import ray, time\nray.init(address={cluster!r})\n"
        "@ray.remote(num_cpus=2)\nclass Hold:\n    def there(self): return True\n"
        "hold = Hold.remote()\nray.get(hold.there.remote())\nprint('held', flush=True)\ntime.sleep(600)"
    )
    monkeypatch.setattr(ray.data.DataContext.get_current(), "wait_for_min_actors_s", 3)
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert main(options) == 1
    finally:
        end(holder, signal.SIGKILL)
    assert "1 workers did not start in 3 s: other jobs hold the cluster" in caplog.text and not files()


def test_a_node_without_the_package_is_one_sentence(cluster, tmp_path, caplog, monkeypatch):
    """A module that the driver has imported, and that no worker finds."""
    write(20)
    (tmp_path / "driver_only.py").write_text(
        "from dasheng_core.batch.worker import Worker\n\n\nclass Ours(Worker):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dasheng_core.cli.batch.Worker", importlib.import_module("driver_only").Ours)
    (tmp_path / "driver_only.py").unlink()
    assert main([*command("scenes.jsonl"), "--ray", cluster]) == 1
    assert "A node of the cluster has no driver_only: install this package on every node" in caplog.messages[-1]
    assert not files()


def test_a_node_with_another_model_is_named(cluster, tmp_path, caplog, monkeypatch):
    """The workers' files change after the command has looked at them."""
    write(20)
    monkeypatch.setattr(
        "dasheng_core.cli.batch.fingerprint_model", lambda args: dict.fromkeys(CHECKPOINT_OPTIONS, "0123")
    )
    assert main([*command("scenes.jsonl"), "--ray", cluster]) == 1
    assert "the files of --audiogen here are not those of the run (" in caplog.text and not files()


def test_after_a_run_nothing_joins_the_cluster_anew(cluster):
    """Ray would by itself, for a thread that Ray Data leaves behind while a stopped run ends."""
    write(20)
    arguments = [*command("scenes.jsonl"), "--ray", cluster, "--workers", "3"]
    code = f"import dasheng_core.cli as cli\nassert cli.main({arguments!r}) == 1\nimport ray\nray.put(1)"
    said = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True).stderr
    assert "3 workers, each" in said and "Ray has not been started yet" in said, said


def test_how_many_workers_fit():
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}, {"CPU": 64.0}]
    assert slots(nodes, 1, 1) == 3
    assert slots(nodes, 0.5, 0.5) == 6
    assert slots(nodes, 8, 0) == 9


class Tagged:
    """A local file of a store, with the ETag that S3 gives."""

    def __init__(self, file, path):
        self.file, self.path = file, path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def read(self, *size):
        return self.file.read(*size)

    def metadata(self):
        return {b"ETag": hashlib.md5(Path(self.path).read_bytes()).hexdigest().encode()}


class Store:
    """pyarrow's local disk in a store's place."""

    def __init__(self):
        self.local = fs.LocalFileSystem()

    def __getattr__(self, name):
        return getattr(self.local, name)

    def open_input_stream(self, path):
        return Tagged(self.local.open_input_stream(path), path)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    for module in (rows, storage):
        monkeypatch.setattr(module, "filesystem", lambda root: (Store(), str(tmp_path / root[5:])))
    return ["batch", "scenes.jsonl", *MODEL, "-o", "s3://bucket/sounds/{name}.flac"]


def test_a_bucket_is_read_written_and_resumed(bucket, caplog):
    """The code of object stores, on a local disk in a store's place."""
    write(3)
    Path("bucket/a").mkdir(parents=True)
    os.rename("scenes.jsonl", "bucket/a/scenes.jsonl")
    options = [bucket[0], "s3://bucket/a/scenes.jsonl", *bucket[2:]]
    names = [f"scene {i}.flac" for i in range(3)]
    assert main(options) == 0
    assert sorted(path.name for path in Path("bucket/sounds").iterdir()) == names
    assert [entry["file"] for entry in manifest()] == [f"sounds/{name}" for name in names]
    first = Path("bucket/sounds/scene 1.flac").read_bytes()
    Path("bucket/sounds/scene 1.flac").unlink()
    assert main([*options, "--resume"]) == 0 and main([*options, "--check"]) == 0
    assert Path("bucket/sounds/scene 1.flac").read_bytes() == first
    assert main([*options, "--manifest", "other"]) == 1
    assert "sounds/scene 0.flac is already there" in caplog.text
    # Another object of the same size has another ETag.
    Path("bucket/sounds/scene 1.flac").write_bytes(first[:-1] + b"x")
    assert main([*options, "--resume"]) == 1 and "were written (another etag)" in caplog.text
    assert main([*options, "--remake"]) == 0 and Path("bucket/sounds/scene 1.flac").read_bytes() == first
    lines = Path("scenes.manifest.jsonl").read_text()
    Path("scenes.manifest.jsonl").write_text(re.sub(r', "etag": "\w+"', "", lines))
    Path("bucket/sounds/scene 1.flac").write_bytes(first[:-1] + b"x")
    assert main([*options, "--resume"]) == 0, "a store without ETags shows sizes alone"
    assert main([*options, "--check"]) == 1 and "were written (another sha256)" in caplog.text


def test_a_bucket_is_asked_before_anything_is_loaded(bucket, caplog, monkeypatch):
    write(3)
    monkeypatch.setattr("dasheng_core.batch.worker.load_model", None)
    assert main(bucket) == 1
    assert "s3://bucket cannot be used (there is none of that name): make that bucket" in caplog.text
    assert not Path("scenes.manifest.jsonl").exists()
    # A lock of this machine, too, is lifted by the user alone: nobody knows whether its run goes on.
    Path("bucket/sounds").mkdir(parents=True)
    Path("bucket/sounds", NOTE).write_text(json.dumps({"host": platform.node(), "pid": 1, "since": "then"}))
    assert main(bucket) == 1
    assert f"is held by another run, process 1 on {platform.node()} since then" in caplog.text
    monkeypatch.setattr("dasheng_core.batch.worker.load_model", load_model)
    assert main([*bucket, "--break-lock"]) == 0
    assert len(list(Path("bucket/sounds").iterdir())) == 3
