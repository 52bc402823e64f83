#!/usr/bin/env python3
"""Time against error of what trades the published result for time: ``python -m benchmarks.approximate FOLDER``.

FOLDER holds ``audiogen``, ``text_encoder`` and ``audio_tokenizer``. Every way of sampling starts from the same noise
and is compared with the published 25 steps and with 200, both in float32:

- *latent*: norm of the difference over the norm of the reference;
- *mel*: mean absolute difference of the decoded sounds' log-mel spectra (128 bands), decibels, bins more than 80 dB
  below the reference's loudest counting as that;
- *time*: the sampling loop, median over prompts of the median of interleaved repeats, and its ratio to 25 steps.

The row *another seed* is a different take of the same scene: the distance of a latent or a sound that has only
the prompt in common with the reference. With --judged N, mini/judges.py says how many attributes of N prompts of
the mini model's world each way satisfies, with Wilson 95 % intervals. ``--page`` writes the table of docs/speed.md from
docs/approximate.json, which ``mini --judged 200 --json docs/approximate.json`` made.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.floor import wait
from benchmarks.machine import describe, processor
from dasheng_core import DashengAudioGen
from dasheng_core.audio_tokenizer.spectral import acoustic_mel
from dasheng_core.delivery.atomic import atomic_write
from dasheng_core.duration import frames_from_seconds
from dasheng_core.guidance import is_guided
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas
from dasheng_core.tensors import DTYPES
from mini.scores import cell, progress
from tools.comfyui import ROOT
from tools.pages import between, table

PUBLISHED, ANOTHER_SEED = "25 steps", "25 steps, another seed"
INTERVAL = {"guidance_interval": (0.59, 1.0)}
PRESETS = {
    PUBLISHED: {},
    **{f"{steps} steps": {"num_steps": steps} for steps in (16, 12, 10, 7, 5)},
    **{f"{steps} steps, epss": {"num_steps": steps, "grid": "epss"} for steps in (16, 12, 10, 7, 5)},
    "25 steps, guided from 1 to 0.59": INTERVAL,
    "25 steps, rescale 0.7": {"guidance_rescale": 0.7},
    "12 steps, epss, guided from 1 to 0.59": {"num_steps": 12, "grid": "epss", **INTERVAL},
}
PROMPTS = (
    "<|caption|> Rain falls on a tin roof while thunder rolls far away. <|env|> Outdoor recording, heavy rain.",
    "<|caption|> A woman speaks calmly. <|speech|> An adult woman, calm and clear. <|asr|> The train leaves at nine.",
    "<|caption|> A slow piano melody in a quiet room. <|music|> Solo piano, slow and sad.",
    "<|caption|> A dog barks twice and a door slams. <|sfx|> Dog barking, door slamming.",
)
DYNAMIC_RANGE = 80.0
# Cosine of the first velocity and the noise. A trained flow's velocity is the noise less the expected latent; that of
# random weights has nothing to do with the noise.
TRAINED = 0.3
KEPT, PAGE = ROOT / "docs" / "approximate.json", ROOT / "docs" / "speed.md"
MARKS = "<!-- fewer evaluations: python -m benchmarks.approximate --page -->", "<!-- end of fewer evaluations -->"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="FOLDER", help="where the three parts are")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help=f"how many of {len(PROMPTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing (default 3)")
    parser.add_argument("--seconds", type=float, help="length of each clip; default: the model's estimate")
    parser.add_argument("--far", type=int, default=200, metavar="STEPS", help="of the far reference (default 200)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of what is measured (default fp32)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (default cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--judged", type=int, default=0, metavar="N", help="also judge N prompts of the mini model's world"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write everything into this file")
    if sys.argv[1:] == ["--page"]:
        PAGE.write_text(with_judged(PAGE.read_text("utf-8")), "utf-8")
        return 0
    args = parser.parse_args()
    if not 1 <= args.prompts <= len(PROMPTS) or args.repeats < 1:
        parser.error(f"--prompts: 1 to {len(PROMPTS)}; --repeats: 1 or more.")

    progress("reference")
    model = DashengAudioGen.from_pretrained(args.model, device=args.device)
    cases = [Case(model, prompt, args.seed + i, args) for i, prompt in enumerate(PROMPTS[: args.prompts])]
    trained = is_trained(model)
    if args.dtype != "fp32":
        # Never both in memory.
        del model
        model = DashengAudioGen.from_pretrained(args.model, device=args.device, dtype=args.dtype)
    rows = measure(model, cases, args)
    for _ in judge(model, rows, args) if args.judged else [None]:
        if args.json:
            text = json.dumps(as_json(rows, args, trained), indent=1) + "\n"
            atomic_write(args.json, lambda path, text=text: path.write_text(text, "utf-8"), replace=True)
    progress("")
    show(rows, args, trained)
    return 0


@torch.inference_mode()
def is_trained(model: DashengAudioGen) -> bool:
    content, mask, _ = model.encode_text(PROMPTS[0])
    noise = draw_noise(0, model.latent_channels, 50)[None].to(model.device)
    # One Euler step from sigma 1 to 0 is the noise less the first velocity.
    velocity = noise - model.sample(content, mask, torch.tensor([50]), num_steps=1, guidance_scale=1.0, noise=noise)
    return torch.cosine_similarity(velocity.flatten(), noise.flatten(), dim=0).item() >= TRAINED


class Case:
    """A prompt, its noise, and the two references: latents and log-mel spectra."""

    def __init__(self, model: DashengAudioGen, prompt: str, seed: int, args: argparse.Namespace):
        self.content, self.mask, self.frames = model.encode_text(prompt)
        if args.seconds:
            self.frames = torch.tensor([frames_from_seconds(args.seconds)])
        T = int(self.frames)
        self.noise = draw_noise(seed, model.latent_channels, T)[None]
        self.another_noise = draw_noise(seed + 10_000, model.latent_channels, T)[None]
        self.references = {"25": self.sample(model), str(args.far): self.sample(model, num_steps=args.far)}
        self.sounds = {name: model.decode(latent) for name, latent in self.references.items()}

    def sample(self, model: DashengAudioGen, noise=None, **options) -> torch.Tensor:
        noise = self.noise if noise is None else noise
        return model.sample(self.content.to(model.dtype), self.mask, self.frames, noise=noise, **options)

    def errors(self, model: DashengAudioGen, latent: torch.Tensor) -> dict[str, float]:
        sound, found = model.decode(latent), {}
        for name, reference in self.references.items():
            found[f"latent to {name}"] = ((latent - reference).norm() / reference.norm()).item()
            found[f"mel to {name}"] = mel_distance(sound, self.sounds[name])
        return found


def mel_distance(sound: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean absolute difference of log-mel spectra of two waveforms ``[1, samples]``, decibels."""
    decibels = [acoustic_mel(waveform, 128, 160) * 20 / torch.tensor(10.0).log() for waveform in (sound, reference)]
    floor = decibels[1].max() - DYNAMIC_RANGE
    return (decibels[0].clamp(min=floor) - decibels[1].clamp(min=floor)).abs().mean().item()


def measure(model: DashengAudioGen, cases: list[Case], args: argparse.Namespace) -> dict[str, dict]:
    """Name -> what was measured; numbers are lists with one entry per prompt."""
    rows = {name: {"options": options, "seconds": []} for name, options in PRESETS.items()}
    rows[ANOTHER_SEED] = {"options": {}, "seconds": []}
    for case in cases:
        seconds = {name: [] for name in PRESETS}
        for name, options in PRESETS.items():
            progress(name)
            # The first run also computes what is made once, and is not timed.
            add(rows[name], case.errors(model, case.sample(model, **options)))
        for _ in range(args.repeats):
            for name, options in PRESETS.items():
                progress(name)
                seconds[name].append(timed(lambda case=case, options=options: case.sample(model, **options), model))
        for name, values in seconds.items():
            rows[name]["seconds"].append(statistics.median(values))
        add(rows[ANOTHER_SEED], case.errors(model, case.sample(model, case.another_noise)))
    return rows


def add(row: dict, found: dict[str, float]) -> None:
    for name, value in found.items():
        row.setdefault(name, []).append(value)


def timed(work, model: DashengAudioGen) -> float:
    wait(model.device)
    started = time.perf_counter()
    work()
    wait(model.device)
    return time.perf_counter() - started


def judge(model: DashengAudioGen, rows: dict[str, dict], args: argparse.Namespace) -> Iterator[None]:
    """Right answers and questions, scenes with one layer and layered ones apart; yields after each preset."""
    from mini import scores as mini_scores

    scenes, prompts, truth = mini_scores.draw(args.judged, args.seed)
    for name, options in {"the world's own sound": None, **PRESETS}.items():
        progress(f"judged: {name}")
        clips = truth
        if options is not None:
            options = asdict(SamplingOptions(**options))
            guidance, steps = options.pop("guidance_scale"), options.pop("num_steps")
            clips = mini_scores.generate(model, prompts, guidance, steps, args.seed, **options)
        counts: dict[str, list[int]] = {}
        for (group, _, kind), (right, asked) in mini_scores.count(scenes, clips, None).items():
            # Rows with a kind are parts of the rows without.
            if not kind:
                total = counts.setdefault(group, [0, 0])
                total[0] += right
                total[1] += asked
        rows.setdefault(name, {"options": None})["judged"] = counts
        yield


def show(rows: dict[str, dict], args: argparse.Namespace, trained: bool) -> None:
    errors = [f"{kind} to {name}" for name in ("25", str(args.far)) for kind in ("latent", "mel")]
    groups = ["one layer", "layered"] if args.judged else []
    lines = [["", "seconds", "of 25", *errors, *groups]]
    base = statistics.median(rows[PUBLISHED]["seconds"])
    for name, row in rows.items():
        seconds = statistics.median(row["seconds"]) if row.get("seconds") else None
        cells = [f"{seconds:.3f}", f"{seconds / base:.2f}x"] if seconds else ["", ""]
        cells += [number(row.get(error), error) for error in errors]
        cells += [cell(*row["judged"][group]) if "judged" in row else "" for group in groups]
        lines.append([name, *cells])
    print(table(lines))
    threads = f"{torch.get_num_threads()} threads"
    where = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else f"{processor()}, {threads}"
    print(f"\nMedians of {args.prompts} prompts, {where}, {args.dtype}; both references are float32.")
    if not trained:
        print(
            "These weights are random: a random network's path is nothing like a trained one's. The errors show that "
            "everything runs, and say nothing about sound."
        )


def with_judged(page: str) -> str:
    """The page's text with the table of what was judged, by branches evaluated, which are no matter of the machine."""
    rows = json.loads(KEPT.read_text("utf-8"))["rows"]
    lines = [["", "evaluations", "mel to 25 steps", "mel to 200", "one layer right", "layered right"]]
    for name, options in {"the world's own sound": None, **PRESETS}.items():
        row = rows[name]
        cost = "" if options is None else str(evaluations(SamplingOptions(**options)))
        mel = [number(row.get(error), error) for error in ("mel to 25", "mel to 200")]
        lines.append([name, cost, *mel, *(cell(*row["judged"][group]) for group in ("one layer", "layered"))])
    return between(page, MARKS, table(lines))


def evaluations(options: SamplingOptions) -> int:
    """Branches of a clip: two in each guided step, else one."""
    sigmas = make_sigmas(options.num_steps, options.sway_sampling_coef, grid=options.grid)[:-1]
    return sum(1 + is_guided(sigma, options.guidance_interval) for sigma in sigmas.tolist())


def number(values: list[float] | None, error: str) -> str:
    if not values:
        return ""
    value = statistics.median(values)
    return f"{100 * value:.2f} %" if error.startswith("latent") else f"{value:.2f} dB"


def as_json(rows: dict[str, dict], args: argparse.Namespace, trained: bool) -> dict:
    return {
        # Where the file lies is this machine's own.
        "command": " ".join(["python", "-m", "benchmarks.approximate", *(Path(word).name for word in sys.argv[1:])]),
        **describe(),
        "dtype": args.dtype,
        "trained": trained,
        "far_steps": args.far,
        "prompts": list(PROMPTS[: args.prompts]),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
