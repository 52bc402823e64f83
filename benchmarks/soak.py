#!/usr/bin/env python3
"""One ComfyUI server through hundreds of prompts and mishaps: ``python -m benchmarks.soak [--prompts 500]``.

COMFYUI_PATH says where ComfyUI is; the mini model of this repository is enough. Clips of mixed lengths, batches, texts and
seeds are sampled, decoded and saved, every fourth one a repetition. In between, prompts are interrupted, wrong ones fail
by name, and ``/free`` takes the models out of memory. Every latent and sound is compared with the library's.

*MB* is the server's resident memory (Linux only), read after ``/free`` and one and the same clip. The law: after the last prompt it is
at most 2 % away from that after the hundredth. PyTorch keeps up to 1,024 prepared convolutions, one per length and batch,
and malloc keeps what it gets: with both as they are, 500 clips of hundreds of shapes take 5 % more, and clips of few
shapes no more. So that a leak shows, the servers here keep 8, and give memory back. Then a second server, which writes to a small disk, is killed while it
samples, started again, and meets a full disk: what was finished stays as it is, and the next prompt is right.
The exit status is 1 where one of this is broken.
"""

import argparse
import contextlib
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file

from benchmarks.load import status
from dasheng_core import DashengAudioGen
from tools.comfyui import SMALL, SMALL_NAME, Problem, Server, node, small_disk, text_to_sound

MOST_GROWTH = 0.02
# Of latents, each relative to max(1, |expected|); and of sounds, which are saved in 16 bits.
LATENT, SOUND = 1e-4, 1e-3
THINGS = ("A dog barks", "Rain falls on a roof", "A woman says hello", "Thunder rolls")
PLACES = ("", " in a large hall", " far away", " while a car passes")
DISK = 24 << 20
STEADY = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


@dataclass(frozen=True)
class Scene:
    """What one prompt makes."""

    text: str
    seconds: float
    batch: int
    seed: int
    steps: int = 2

    def graph(self, **changes) -> dict:
        """The API-format graph; ``changes`` are inputs by node and name, as ``text__prompt``."""
        nodes = text_to_sound(SMALL_NAME, self.text, self.seconds, self.batch, seed=self.seed, steps=self.steps)
        nodes["latents"] = node("SaveLatent", samples=["sample", 0], filename_prefix="soak")
        nodes["sounds"] = node("SaveAudio", audio=["decode", 0], filename_prefix="soak")
        for place, value in changes.items():
            name, _, widget = place.partition("__")
            nodes[name]["inputs"][widget] = value
        return nodes


FIXED = Scene("<|caption|> A dog barks.", 2.0, 1, 0)
LONG = Scene("<|caption|> Rain falls.", 60.0, 2, 0, steps=1000)
# Inputs that are refused, and a word of the sentence that refuses them.
WRONG = [
    ({"text__prompt": ""}, "caption"),
    ({"text__prompt": "<|smell|> Roses."}, "smell"),
    ({"sample__latent": ["clip", 0]}, "mismatch"),
    ({"model__model_name": "missing.safetensors"}, "missing.safetensors"),
    ({"sample__steps": 0}, "steps"),
    ({"text__clip": ["model", 0]}, "mismatch"),
    ({"text__prompt": "<|caption|> One. <|caption|> Two."}, "caption"),
]


@dataclass
class Found:
    """The figures of a run, and the library's own result of each scene."""

    right: int = 0
    again: int = 0
    interrupted: int = 0
    refused: int = 0
    freed: int = 0
    memory: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    deviation: dict[str, float] = field(default_factory=lambda: {"latent": 0.0, "sound": 0.0})
    model: DashengAudioGen = field(default_factory=lambda: DashengAudioGen.from_pretrained(SMALL))
    known: dict[Scene, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def run(self, server: Server, scene: Scene) -> None:
        """Run a scene, and count whether its result is right."""
        outputs = server.run(scene.graph())
        (latents,) = files(server, outputs["latents"]["latents"])
        sounds = [soundfile.read(file, dtype="float32")[0] for file in files(server, outputs["sounds"]["audio"])]
        self.again += scene in self.known
        latent, sound = self.expected(scene)
        found = {
            "latent": deviation(load_file(latents)["latent_tensor"], latent),
            "sound": deviation(torch.stack([torch.from_numpy(sound) for sound in sounds]), sound),
        }
        self.deviation = {kind: max(found[kind], most) for kind, most in self.deviation.items()}
        if found["latent"] <= LATENT and found["sound"] <= SOUND:
            self.right += 1
        else:
            self.wrong.append(f"{scene} is off by {found}")

    def expected(self, scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
        if scene not in self.known:
            content, mask, _ = self.model.encode_text(scene.text)
            content, mask = content.repeat(scene.batch, 1, 1), mask.repeat(scene.batch, 1)
            frames = [round(scene.seconds * 25)] * scene.batch
            latent = self.model.sample(content, mask, frames, seed=scene.seed, num_steps=scene.steps)
            self.known[scene] = latent, self.model.decode(latent).clamp(-1, 1)
        return self.known[scene]


def files(server: Server, items: list[dict]) -> list[Path]:
    return [server.output / item["subfolder"] / item["filename"] for item in items]


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    return ((actual - expected).abs() / expected.abs().clamp(min=1)).max().item()


def scenes(count: int, seed: int) -> Iterator[Scene]:
    """Mixed ones; every fourth is an earlier one again."""
    draw, seen = random.Random(seed), []
    for i in range(count):
        if i % 4 == 3:
            # Not the last one, which ComfyUI would answer out of its cache.
            yield draw.choice(seen[:-1])
            continue
        text = f"<|caption|> {draw.choice(THINGS)}{draw.choice(PLACES)}."
        seen.append(Scene(text, draw.randint(5, 60) / 25, draw.choice((1, 1, 2, 3)), draw.randrange(2**32)))
        yield seen[-1]


def soak(comfyui: Path, base: Path, count: int, seed: int = 0, say=lambda line: None) -> Found:
    """``count`` prompts and their mishaps through one server."""
    found = Found()
    draw, wrong = random.Random(seed), itertools.cycle(WRONG)
    with Server(comfyui, Path(sys.executable), base) as server:
        for done, scene in enumerate(scenes(count, seed), 1):
            found.run(server, scene)
            if done % 10 == 3:
                interrupt(server, draw.uniform(0.0, 0.4), found)
            elif done % 10 == 5:
                refuse(server, *next(wrong), found)
            elif done % 20 == 8:
                free(server)
                found.freed += 1
            if done % 50 == 0 or done == count:
                found.memory[done] = memory(server)
                say(f"{done:5} prompts: {found.memory[done] / 1e6:7.1f} MB, {len(found.wrong)} wrong")
    return found


def interrupt(server: Server, after: float, found: Found) -> None:
    """Interrupt a long prompt ``after`` seconds of its run."""
    prompt_id = start(server, LONG)
    time.sleep(after)
    server.post("/interrupt", {})
    while not (entry := server.get(f"/history/{prompt_id}").get(prompt_id)):
        time.sleep(0.02)
    if any(kind == "execution_interrupted" for kind, _ in entry["status"]["messages"]):
        found.interrupted += 1
    else:
        found.wrong.append(f"an interrupted prompt ended as {entry['status']['status_str']}")


def start(server: Server, scene: Scene) -> str:
    """Queue a scene and wait until it runs; its id."""
    prompt_id = server.post("/prompt", {"prompt": scene.graph()})["prompt_id"]
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.02)
    return prompt_id


def refuse(server: Server, changes: dict, word: str, found: Found) -> None:
    """Queue a prompt with wrong inputs: the refusal must say ``word``."""
    try:
        server.run(FIXED.graph(**changes))
        found.wrong.append(f"{changes} ran")
    except Problem as problem:
        if word in str(problem):
            found.refused += 1
        else:
            found.wrong.append(f"{changes} was refused by {problem}")


def free(server: Server) -> None:
    server.post("/free", {"unload_models": True, "free_memory": True})
    # ComfyUI checks for it between prompts, at most once per second.
    time.sleep(0.2)


def memory(server: Server) -> int:
    """The server's resident bytes in a state that is always the same, without ComfyUI's history of prompts."""
    server.post("/history", {"clear": True})
    free(server)
    server.run(FIXED.graph())
    return status(server.pid)["VmRSS"]


def mishaps(comfyui: Path, base: Path, disk: Path | None, say=lambda line: None) -> Found:
    """Kill, restart and, where ``disk`` is a small one, a full disk; ``base / "output"`` lies on it."""
    found = Found()
    some = list(scenes(6, seed=1))
    with Server(comfyui, Path(sys.executable), base) as server:
        for scene in some:
            found.run(server, scene)
        finished = contents(server.output)
        start(server, LONG)
        server.kill()
    check(found, "killed while it sampled", finished, base / "output", say)
    with Server(comfyui, Path(sys.executable), base) as server:
        found.run(server, some[0])
        finished = contents(server.output)
        if disk is None:
            say("full disk: not run, which needs a small disk; only root can mount one, on Linux")
            return found
        filler = disk / "filler"
        fill(filler)
        refuse(server, {"sample__seed": 5}, "No space left", found)
        check(found, "full disk", finished, server.output, say)
        filler.unlink()
        found.run(server, some[1])
    return found


def check(found: Found, what: str, finished: dict[Path, bytes], output: Path, say) -> None:
    lost = [path.name for path, whole in finished.items() if not path.exists() or path.read_bytes() != whole]
    found.wrong += [f"{what}: {name} is lost" for name in lost]
    say(f"{what}: {len(finished)} files finished before, {len(lost)} lost")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(file: Path) -> None:
    """Write until the disk has room for nothing."""
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as opened:
        while opened.write(bytes(4096)):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not Path(os.environ.get("COMFYUI_PATH", ""), "main.py").exists():
        parser.error("set COMFYUI_PATH to ComfyUI's folder.")
    os.environ.update(STEADY)
    comfyui, started = Path(os.environ["COMFYUI_PATH"]), time.perf_counter()

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        found = soak(comfyui, Path(folder) / "soak", args.prompts, args.seed, say)
        say(
            f"{found.right} results right, {found.again} of them of repeated prompts; largest deviation: latent "
            f"{found.deviation['latent']:.1e}, sound {found.deviation['sound']:.1e}; {found.interrupted} interrupted, "
            f"{found.refused} refused, memory freed {found.freed} times"
        )
        with small_disk(Path(folder) / "mishaps" / "output", DISK) as disk:
            later = mishaps(comfyui, Path(folder) / "mishaps", disk, say)
    wrong = found.wrong + later.wrong
    if early := found.memory.get(100):
        growth = found.memory[max(found.memory)] / early - 1
        say(f"memory after {max(found.memory)} prompts against that after 100: {growth:+.2%}")
        wrong += [f"memory differs by {growth:+.2%}"] if abs(growth) > MOST_GROWTH else []
    say(f"{time.perf_counter() - started:.0f} s in all; wrong: {'; '.join(wrong) or 'nothing'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
