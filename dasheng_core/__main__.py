"""The command line: ``python -m dasheng_core generate --caption "..." -o rain.wav``."""

import argparse
import logging
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from .audio_file import FORMATS, write_audio
from .checkpoint import CheckpointError
from .config import SAMPLE_RATE
from .pipeline import DEFAULTS, DashengAudioGen
from .prompt import ASPECTS, PromptError, compose_prompt
from .sampling import item_seeds, random_seed

log = logging.getLogger("dasheng_core")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        generate(args)
    except (CheckpointError, PromptError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("Stopped.")
        return 130
    return 0


def generate(args: argparse.Namespace) -> None:
    """Make the clips and write each as soon as it is there."""
    prompts = read_prompts(args)
    paths = output_paths(args.output, len(prompts) * args.takes)
    seeds = item_seeds(random_seed() if args.seed is None else args.seed, args.takes)
    model = DashengAudioGen.from_pretrained(
        args.audiogen, args.text_encoder, args.audio_tokenizer, args.device, DTYPES[args.dtype]
    )
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    for (prompt, seed), path in zip(jobs, paths, strict=True):
        with progress_bar(path.name, args.steps) as report:
            audio = model.generate(
                prompt, args.steps, args.guidance, args.sway, seed=seed, duration=args.seconds, callback=report
            )[0]
        write_audio(path, audio, SAMPLE_RATE)
        log.info("%s: %.2f s, seed %d", path, len(audio) / SAMPLE_RATE, seed)


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of ``--prompts``, ``--prompt``, or the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS}
    if args.prompts is None:
        return [compose_prompt(**aspects, prompt=args.prompt)]
    if args.prompt or any(aspects.values()):
        raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
    lines = [line.strip() for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = [compose_prompt(prompt=line) for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise PromptError(f"{args.prompts} has no prompts: write one tagged prompt a line.")
    return prompts


def output_paths(output: Path, count: int) -> list[Path]:
    """``output`` itself for one clip; numbered beside it for several. Refuses to overwrite."""
    if output.suffix not in FORMATS:
        raise ValueError(f"{output}: expected a name that ends in {' or '.join(FORMATS)}.")
    paths = [output] if count == 1 else [output.with_stem(f"{output.stem}_{i:03}") for i in range(1, count + 1)]
    if taken := [str(path) for path in paths if path.exists()]:
        raise FileExistsError(f"{', '.join(taken)} already there: choose another name, or move the old file away.")
    return paths


@contextmanager
def progress_bar(name: str, steps: int):
    from tqdm import tqdm

    with tqdm(total=steps, desc=name, unit="step", leave=False) as bar:
        yield lambda step, total: bar.update()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dasheng_core", description="Dasheng-AudioGen without ComfyUI.")
    command = parser.add_subparsers(required=True).add_parser("generate", help="make clips from prompts")
    scene = command.add_argument_group("the scene")
    scene.add_argument("--caption", help="what the whole scene sounds like, in one English sentence")
    scene.add_argument("--speech", help="who speaks, and how")
    scene.add_argument("--asr", help="the words spoken, in their own language")
    scene.add_argument("--sfx", help="sound effects")
    scene.add_argument("--music", help="music")
    scene.add_argument("--env", help="ambience and recording quality")
    scene.add_argument("--prompt", help="a tagged prompt instead: '<|caption|> ... <|sfx|> ...'")
    scene.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a file of tagged prompts, one a line; # starts a comment"
    )
    files = command.add_argument_group(
        "checkpoints: a folder, a file, or the id of a hub repository in the local cache"
    )
    files.add_argument("--audiogen", default="mispeech/Dasheng-AudioGen", metavar="PATH")
    files.add_argument("--text-encoder", metavar="PATH", help="default: the one the generator's config.json names")
    files.add_argument("--audio-tokenizer", metavar="PATH", help="default: the one the generator's config.json names")
    sampling = command.add_argument_group("sampling")
    sampling.add_argument(
        "--steps", type=int, default=DEFAULTS.num_steps, help="network evaluations (default %(default)s)"
    )
    sampling.add_argument(
        "--guidance", type=float, default=DEFAULTS.guidance_scale, help="guidance scale (default %(default)s)"
    )
    sampling.add_argument(
        "--sway", type=float, default=DEFAULTS.sway_sampling_coef, help="sway coefficient (default %(default)s)"
    )
    sampling.add_argument("--seed", type=int, help="take i uses seed + i; drawn and printed when left out")
    sampling.add_argument("--seconds", type=float, help="length of each clip; default: the model's estimate")
    sampling.add_argument("--takes", type=positive, default=1, help="clips of each prompt (default %(default)s)")
    sampling.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the backbone (default %(default)s)")
    sampling.add_argument("--device", default="cpu", help="cpu, cuda, mps (default %(default)s)")
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help=f"a {' or '.join(FORMATS)} file"
    )
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
