#!/usr/bin/env python3
"""How long each stage can go on after an interrupt of ComfyUI: ``python -m benchmarks.cancel CHECKPOINTS``.

CHECKPOINTS holds ``audiogen``, ``text_encoder`` and ``audio_tokenizer``; tools/random_checkpoint.py writes such a folder.
COMFYUI_PATH says where ComfyUI is.

How it is measured. A stage stops where it next checks for an interrupt. Every such check is timed, over a whole
run of the stage: the longest time between two of them, or from the last to the end, is the longest that a user can
wait. A stage that is not over after ``--budget`` seconds is then interrupted, as ComfyUI does it.
*Processor* is the largest processor time between two checks, divided by the threads: the time on a machine where nothing
else runs. The exit status is 1 where that is more than two seconds.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.load import comfyui_loaders
from tools.comfyui import run_in_comfyui

LIMIT = 2.0
PROMPT = "<|caption|> " + "Rain falls on a tin roof while thunder rolls far away. " * 40


class Looks:
    """Wraps ComfyUI's check for an interrupt, and times each call of it."""

    def __init__(self, model_management, budget: float):
        self._management, self._budget = model_management, budget
        self.broken = False
        self._ask = model_management.throw_exception_if_processing_interrupted
        model_management.throw_exception_if_processing_interrupted = self.look

    def look(self) -> None:
        self._mark()
        self.count += 1
        if self.last[0] - self.started[0] > self._budget:
            self._management.interrupt_current_processing()
        self._ask()

    def _mark(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.longest = [max(was, b - a) for was, a, b in zip(self.longest, self.last, now, strict=True)]
        self.last = now

    def run(self, name: str, stage: Callable):
        """Run a stage and print its line; what it returns, or None if it was interrupted."""
        self.started = self.last = time.perf_counter(), time.process_time()
        self.longest, self.count, result, note = [0.0, 0.0], 0, None, ""
        try:
            with torch.inference_mode():
                result = stage()
        except self._management.InterruptProcessingException:
            note = "  interrupted"
        self._mark()
        wall, processor = self.longest[0], self.longest[1] / torch.get_num_threads()
        note += "  BROKEN" if processor > LIMIT else ""
        print(
            f"{name:40} {self.last[0] - self.started[0]:8.1f} {self.count:7} {wall:9.2f} {processor:10.2f}{note}",
            flush=True,
        )
        self.broken |= processor > LIMIT
        return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, metavar="CHECKPOINTS")
    parser.add_argument("--seconds", type=float, default=300.0, help="of sound in the long stages (default: 300)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds after which a stage is interrupted")
    args = parser.parse_args()
    if not Path(os.environ.get("COMFYUI_PATH", ""), "main.py").exists():
        parser.error("set COMFYUI_PATH to ComfyUI's folder.")
    if not args.here:
        return run_in_comfyui(Path(__file__), *sys.argv[1:], "--here").returncode
    files = {part.name: str(part / "model.safetensors") for part in args.checkpoints.iterdir()}
    adapter = comfyui_loaders()
    from comfy import model_management

    from nodes import NODE_CLASS_MAPPINGS as pack

    looks = Looks(model_management, args.budget)
    print(f"{'stage':40} {'seconds':>8} {'checks':>7} {'longest s':>9} {'processor':>10}")

    clip = looks.run("load text encoder", lambda: adapter.load_clip(files["text_encoder"], files["audiogen"]))
    text = pack["DashengTextEncode"]
    looks.run("read a long prompt", partial(text.EXECUTE_NORMALIZED, clip=clip, prompt=PROMPT))
    positive, _ = text.EXECUTE_NORMALIZED(clip=clip, prompt=PROMPT[:67]).result
    del clip
    free(model_management)

    sampler, empty = pack["DashengSampler"], pack["EmptyDashengLatentAudio"]
    options = dict(positive=positive, seed=0, steps=2, guidance=5.0, sway=-1.0, denoise=1.0, keep_on_gpu=False)
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        model = looks.run(f"load model as {name}", partial(adapter.load_model_patcher, files["audiogen"], dtype))
        for seconds in (10.0, args.seconds):
            (latent,) = empty.EXECUTE_NORMALIZED(seconds=seconds, batch_size=1).result
            sample = partial(sampler.EXECUTE_NORMALIZED, model=model, latent=latent, **options)
            looks.run(f"sample {seconds:g} s in {name}, two steps", sample)
        del model, sample
        free(model_management)

    vae = looks.run("load audio tokenizer", lambda: adapter.DashengVAE(files["audio_tokenizer"]))
    latent = torch.randn(1, vae.latent_channels, round(args.seconds * 25))
    sound = looks.run(f"decode {args.seconds:g} s", lambda: vae.decode(latent))
    if sound is None:
        sound = torch.rand(1, round(args.seconds * 16000), 1)
    looks.run(f"load encoder, encode {args.seconds:g} s", lambda: vae.encode(sound))
    return looks.broken


def free(model_management) -> None:
    model_management.unload_all_models()
    gc.collect()


if __name__ == "__main__":
    sys.exit(main())
