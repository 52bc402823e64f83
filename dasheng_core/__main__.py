"""The command line: ``python -m dasheng_core generate --caption "..." -o rain.wav``."""
# ruff: noqa: E402 (Ctrl-C is seen to before the long imports)

import os
import signal


def stop_at_once(*_) -> None:
    os.write(2, b"Stopped.\n")
    os._exit(128 + signal.SIGINT)


# Importing the rest takes seconds, in which Ctrl-C would end as a traceback of whatever is being imported.
STARTED_HERE = __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler
if STARTED_HERE:
    signal.signal(signal.SIGINT, stop_at_once)

import argparse
import logging
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from .audio_file import FORMAT_OF_SUFFIX, FORMATS, write_audio
from .config import SAMPLE_RATE
from .download import DEFAULT_ENDPOINT, DownloadError, download_models
from .fold import DTYPES as FOLD_DTYPES
from .fold import fold_checkpoint
from .jobs import FIELDS, Job, Scene, check_numbers, jobs_to_do, make_scene, plan_jobs, read_scenes
from .pipeline import DEFAULTS, DashengAudioGen, locate
from .prompt import ASPECTS, PromptError
from .sampling import SamplingOptions, random_seed
from .schedule import GRIDS

log = logging.getLogger("dasheng_core")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Terminated(KeyboardInterrupt):
    """SIGTERM or a closed terminal: stop as for Ctrl-C, with an exit code of its own."""


def main(argv: list[str] | None = None) -> int:
    handler = logging.StreamHandler()
    handler.addFilter(each_warning_once())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        with terminated_as_interrupted():
            args = build_parser().parse_args(argv)
            args.run(args)
    except (DownloadError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt as stop:
        log.error("Stopped.")
        return 128 + (stop.args[0] if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def each_warning_once() -> Callable[[logging.LogRecord], bool]:
    """A filter of log records: what is doubtful in a prompt is said once, however many clips are made of it."""
    said = set()

    def is_new(record: logging.LogRecord) -> bool:
        key = record.levelno == logging.WARNING and record.getMessage()
        new = not key or key not in said
        said.add(key)
        return new

    return is_new


def generate(args: argparse.Namespace) -> None:
    """Make the clips and write each as soon as it is there; everything that can be checked is checked first."""
    sampling_options(args)
    check_numbers(args.seed, args.seconds, args.takes)
    scenes = scenes_to_make(args)
    draws = args.seed is None and any(scene.seed is None for scene in scenes)
    if args.resume and draws:
        raise ValueError(
            "--resume needs the --seed of the first run, which printed it: with a newly drawn one the clips still missing "
            "would not be those of that run."
        )
    seed = random_seed() if args.seed is None else args.seed
    jobs = plan_jobs(scenes, args.output, seed, args.format)
    missing = jobs_to_do(jobs, args.resume)
    check_device(args.device)
    if args.resume:
        log.info("%d of %d clips are there already.", len(jobs) - len(missing), len(jobs))
    if not missing:
        return
    if draws:
        log.info("seed %d, drawn: --seed %d makes the same again", seed, seed)
    try:
        make_clips(args, missing)
    except BaseException as error:
        done = sum(job.path.exists() for job in jobs)
        if done or isinstance(error, KeyboardInterrupt):
            more = (
                f"; the same command with --resume{f' --seed {seed}' if draws else ''} makes the others" if done else ""
            )
            log.error("%d of %d clips are there%s.", done, len(jobs), more)
        raise


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """Raises ValueError for options no schedule can have."""
    return SamplingOptions(
        args.steps, args.guidance, args.sway, args.grid, tuple(args.guidance_interval), args.skip_cache
    )


def make_clips(args: argparse.Namespace, jobs: list[Job]) -> None:
    options = asdict(sampling_options(args))
    model = DashengAudioGen.from_pretrained(
        args.audiogen,
        args.text_encoder,
        args.audio_tokenizer,
        args.device,
        DTYPES[args.dtype],
        args.compile,
        args.pack_weights,
    )
    # Before the first clip: what cannot be read stops here, what is doubtful is said.
    for prompt in dict.fromkeys(job.prompt for job in jobs):
        model.tokenizer([prompt])
    for number, job in enumerate(jobs, start=1):
        with progress_bar(f"{number}/{len(jobs)} {job.path.name}", args.steps) as report:
            audio = model.generate(job.prompt, seed=job.seed, duration=job.seconds, callback=report, **options)[0]
        write_audio(job.path, audio, SAMPLE_RATE, args.format)
        log.info("%s: %.2f s, seed %d", job.path, len(audio) / SAMPLE_RATE, job.seed)


def scenes_to_make(args: argparse.Namespace) -> list[Scene]:
    """The scenes of ``--prompts``, or the one of ``--prompt`` or of the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS} | {"prompt": args.prompt}
    if args.prompts is None:
        return [make_scene(aspects, args.seed, args.seconds, args.takes)]
    if any(aspects.values()):
        raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
    return read_scenes(args.prompts, args.seed, args.seconds, args.takes)


def check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"The device {device} cannot be used ({reason}): expected cpu, or a GPU of this machine."
        ) from error


def download(args: argparse.Namespace) -> None:
    """Fetch the published files of the models asked for, the English one if none is named."""
    download_models(args.models, args.english or not args.multilingual, args.multilingual, args.endpoint)


def fold(args: argparse.Namespace) -> None:
    """Write the folded form of an audio generator's checkpoint."""
    fold_checkpoint(locate(args.audiogen), args.output, args.dtype)


@contextmanager
def progress_bar(name: str, steps: int):
    from tqdm import tqdm

    with tqdm(total=steps, desc=name, unit="step", leave=False, disable=None) as bar:
        yield lambda step, total: bar.update()


@contextmanager
def terminated_as_interrupted():
    """While it lasts, SIGTERM and SIGHUP raise :class:`Terminated`, so that they clean up as Ctrl-C does."""

    def stop(number, frame):
        raise Terminated(number)

    # Windows has no SIGHUP; nohup has it ignored.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def typed_text(argument: str) -> str:
    """An argument as it was typed. Where the locale knows ASCII only, Python could not decode it, and it is UTF-8."""
    if not any("\ud800" <= letter <= "\udfff" for letter in argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8: type it again in a UTF-8 terminal.") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dasheng_core", description="Dasheng-AudioGen without ComfyUI.")
    commands = parser.add_subparsers(required=True)
    add_generate(commands.add_parser("generate", help="make clips from prompts"))
    add_download(commands.add_parser("download", help="fetch the published files into a ComfyUI models folder"))
    add_fold(commands.add_parser("fold", help="write an audio generator's checkpoint as one smaller file"))
    return parser


def add_generate(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=generate)
    scene = command.add_argument_group("the scene")
    for name, what in {
        "caption": "what the whole scene sounds like, in one English sentence",
        "speech": "who speaks, and how",
        "asr": "the words spoken, in their own language",
        "sfx": "sound effects",
        "music": "music",
        "env": "ambience and recording quality",
        "prompt": "a tagged prompt instead: '<|caption|> ... <|sfx|> ...'",
    }.items():
        scene.add_argument(f"--{name}", type=typed_text, metavar="TEXT", help=what)
    scene.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a file of tagged prompts, one a line, # starts a comment; or a .jsonl file, one object a line, with caption, "
        "speech, asr, sfx, music, env or prompt, and seed, seconds, takes, name, for which the options below are defaults; "
        "the model's own published prompt files are read too",
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
    sampling.add_argument("--seed", type=int, help="take i of a prompt uses seed + i; drawn and printed when left out")
    sampling.add_argument("--seconds", type=float, help="length of each clip; default: the model's estimate")
    sampling.add_argument("--takes", type=int, default=1, help="clips of each prompt (default %(default)s)")
    sampling.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the backbone (default %(default)s)")
    sampling.add_argument("--device", default="cpu", help="cpu, cuda, mps (default %(default)s)")
    faster = command.add_argument_group("faster and not quite the same: benchmarks/approximate.py measures by how much")
    faster.add_argument(
        "--grid",
        choices=GRIDS,
        default=DEFAULTS.grid,
        help="pruned: few steps late in the schedule; needs --steps 5, 6, 7, 10, 12 or 16 (default %(default)s)",
    )
    faster.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        default=DEFAULTS.guidance_interval,
        metavar=("LOW", "HIGH"),
        help="sigmas between which steps are guided, from 0, the sound, to 1, noise: 0.6 1 leaves the late steps of a "
        "sway schedule unguided, at about half their cost (default 0 1)",
    )
    faster.add_argument(
        "--skip-cache",
        type=int,
        default=DEFAULTS.skip_cache,
        metavar="BLOCKS",
        help="in every second step of the later half, run only this many blocks at either end of the network and keep "
        "what the others said a step before; 2 is a good start (default 0: off)",
    )
    sampling.add_argument(
        "--compile",
        action="store_true",
        help="run the network by torch.compile: the same sound, and minutes before the first clip of each length",
    )
    sampling.add_argument(
        "--pack-weights",
        action="store_true",
        help="with --dtype bf16 on a CPU with AMX or AVX512-BF16: lay the weights out as its matrix units read them, which "
        "takes seconds at the start and shortens every step",
    )
    output = command.add_argument_group("output")
    output.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help=f"a {' or '.join(FORMAT_OF_SUFFIX)} file; several clips are numbered, or named by the fields "
        f"{', '.join(f'{{{field}}}' for field in FIELDS)} in it, as in 'out/{{name}}_{{take}}.wav'",
    )
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="wav16 and wav24: whole numbers of 16 and 24 bits, which every player reads; wav32: 32-bit floats, which keep "
        "peaks beyond full scale; flac: 24 bits (default: wav32 for a .wav, flac for a .flac); always 16 kHz mono",
    )
    output.add_argument("--resume", action="store_true", help="skip clips whose files are there, and make the others")


def add_download(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=download)
    command.add_argument(
        "--models", type=Path, required=True, metavar="FOLDER", help="the models folder of ComfyUI, or any other"
    )
    command.add_argument("--english", action="store_true", help="the English model (the default)")
    command.add_argument("--multilingual", action="store_true", help="the multilingual model; both with --english")
    command.add_argument(
        "--endpoint",
        default=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
        metavar="URL",
        help="where the hub is, if not in HF_ENDPOINT (now %(default)s); HF_TOKEN is sent there, and nowhere else",
    )


def add_fold(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=fold)
    command.add_argument(
        "audiogen", metavar="AUDIOGEN", help="a folder, a file, or the id of a hub repository in the local cache"
    )
    command.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors file to make"
    )
    command.add_argument(
        "--dtype",
        choices=FOLD_DTYPES,
        default="bf16",
        help="of the backbone (default %(default)s, 4.4 GB; fp8 2.2 GB, and less exact; fp32 8.7 GB)",
    )


if __name__ == "__main__":
    if STARTED_HERE:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
