"""``dasheng generate``: prompts and options -> clips, each written as soon as it is there."""

import argparse
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ..audio_file import FORMAT_OF_SUFFIX, FORMATS, encode_audio, write_bytes
from ..control.emphasis import as_emphasis, without_aspect
from ..control.timeline import FADE, prompts_of
from ..duration import SAMPLE_RATE
from ..file_notes import as_json, with_notes
from ..inputs import DTYPES, as_device
from ..pipeline import DashengAudioGen
from ..progress import progress_bar
from ..prompt import ASPECTS, PromptError
from ..quoting import plain
from ..sampling import NOISES, SamplingOptions, random_seed
from ..schedule import GRIDS, grid_name
from ..weights.checkpoint import AUDIO_TOKENIZER, AUDIOGEN, TEXT_ENCODER, name_taker
from .asked import digest_of, fingerprint_model, recipe_of, sampling_options
from .jobs import FIELDS, Job, Scene, check_numbers, jobs_to_do, make_scene, plan_jobs, read_scenes, read_timeline

log = logging.getLogger(__name__)
# Which option takes a checkpoint of which kind.
TAKERS = {AUDIOGEN: "--audiogen", TEXT_ENCODER: "--text-encoder", AUDIO_TOKENIZER: "--audio-tokenizer"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    add_scene_arguments(command)
    add_model_arguments(command)
    add_output_arguments(command)


def add_scene_arguments(command: argparse.ArgumentParser) -> None:
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
    scene.add_argument(
        "--timeline",
        type=Path,
        metavar="FILE",
        help="a file of prompts for one clip, one a line after the second from which it holds: '3.5 <|caption|> ...'; a line of "
        'a .jsonl file has it as "timeline": [[0, "<|caption|> ..."], [3.5, "<|caption|> ..."]], and its "fade"; a .wav gets a marker where each prompt begins',
    )


def add_model_arguments(command: argparse.ArgumentParser) -> None:
    direction = command.add_argument_group("direction")
    direction.add_argument(
        "--fade",
        type=float,
        default=FADE,
        metavar="SECONDS",
        help="in which a prompt of a timeline gives way to the next (default %(default)s)",
    )
    direction.add_argument(
        "--emphasis",
        nargs="+",
        type=fader,
        metavar="ASPECT=WEIGHT",
        help="sfx=2: more of the sound effects than as written, music=-1: less music; each is one branch more in a step",
    )
    direction.add_argument("--loop", action="store_true", help="the end of the clip joins its beginning")
    direction.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="make a longer clip in windows of so many seconds that overlap by half; 9.92 is what the published model was "
        "trained on (default: all at once)",
    )
    files = command.add_argument_group(
        "checkpoints: a folder, a file, or the id of a hub repository in the local cache"
    )
    files.add_argument("--audiogen", default="mispeech/Dasheng-AudioGen", metavar="PATH")
    files.add_argument("--text-encoder", metavar="PATH", help="default: the one the generator's config.json names")
    files.add_argument("--audio-tokenizer", metavar="PATH", help="default: the one the generator's config.json names")
    sampling = command.add_argument_group("sampling")
    # An option of SamplingOptions has its field's name as dest, and its default.
    command.set_defaults(**asdict(SamplingOptions()))
    sampling.add_argument(
        "--steps", dest="num_steps", type=int, metavar="N", help="network evaluations (default %(default)s)"
    )
    sampling.add_argument(
        "--guidance", dest="guidance_scale", type=float, metavar="SCALE", help="guidance scale (default %(default)s)"
    )
    sampling.add_argument(
        "--sway", dest="sway_sampling_coef", type=float, metavar="S", help="sway coefficient (default %(default)s)"
    )
    sampling.add_argument("--seed", type=int, help="take i of a prompt uses seed + i; drawn and printed when left out")
    sampling.add_argument("--seconds", type=float, help="length of each clip; default: the model's estimate")
    sampling.add_argument("--takes", type=int, default=1, help="clips of each prompt (default %(default)s)")
    sampling.add_argument(
        "--noise",
        dest="noise_kind",
        choices=NOISES,
        help="steady: a clip of another length begins with the same noise, and sounds alike; ksampler: that of ComfyUI's "
        "KSampler and RandomNoise (default %(default)s)",
    )
    sampling.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the backbone (default %(default)s)")
    sampling.add_argument(
        "--device", default="cpu", help="cpu, cuda, mps, or auto: the first GPU, if there is one (default %(default)s)"
    )
    sampling.add_argument(
        "--guidance-rescale",
        type=float,
        metavar="SHARE",
        help="bring guided velocities so much of the way back to the deviation of unguided ones; 0.7 is usual (default "
        "%(default)s: off)",
    )
    sampling.add_argument(
        "--apg",
        type=float,
        nargs=3,
        metavar=("PARALLEL", "LIMIT", "MOMENTUM"),
        help="adaptive projected guidance: share of the part along the sound, limit of the root mean square (0: none), and "
        "momentum; 0 0 -0.5 is a start (default: off)",
    )
    sampling.add_argument(
        "--zero-star",
        action="store_true",
        help="CFG-Zero*: fit the unconditional velocity to the conditional one first",
    )
    faster = command.add_argument_group("faster and not quite the same: benchmarks/approximate.py measures by how much")
    faster.add_argument(
        "--grid",
        type=grid_name,
        choices=GRIDS,
        help="epss: few steps late in the schedule; needs --steps 5, 6, 7, 10, 12 or 16 (default %(default)s)",
    )
    faster.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="sigmas between which steps are guided, from 0, the sound, to 1, noise: 0.6 1 leaves the late steps of a "
        "sway schedule unguided, at about half their cost (default 0 1)",
    )
    faster.add_argument(
        "--skip-cache",
        type=int,
        metavar="BLOCKS",
        help="in every second step of the later half, run only this many blocks at either end of the network and keep "
        "what the others gave a step before; 2 is a good start (default 0: off)",
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


def add_output_arguments(command: argparse.ArgumentParser) -> None:
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
    output.add_argument(
        "--resume", action="store_true", help="skip clips that are there as they are asked for, and make the others"
    )


def run(args: argparse.Namespace) -> None:
    """Make the clips and write each as soon as it is there; everything that can be checked is checked first."""
    sampling_options(args)
    check_numbers(args.seed, args.seconds, args.takes)
    scenes = scenes_to_make(args)
    args.emphasis = as_emphasis(dict(args.emphasis or ()))
    for aspect in args.emphasis:
        for scene in scenes:
            without_aspect(scene.prompt, aspect)
    draws = args.seed is None and any(scene.seed is None for scene in scenes)
    if args.resume and draws:
        raise ValueError(
            "--resume needs the --seed of the first run, which printed it: with a newly drawn one the clips still missing "
            "would not be those of that run."
        )
    seed = random_seed() if args.seed is None else args.seed
    jobs = plan_jobs(scenes, args.output, seed, args.format)
    recipe = recipe_of(args, fingerprint_model(args))
    missing = jobs_to_do(jobs, recipe, args.resume)
    as_device(args.device)
    if args.resume:
        log.info("%d of %d clips are there already.", len(jobs) - len(missing), len(jobs))
    if not missing:
        return
    if draws:
        log.info("seed %d, drawn: --seed %d makes the same again", seed, seed)
    try:
        make_clips(args, missing, recipe)
    except BaseException as error:
        done = sum(job.path.exists() for job in jobs)
        if done or isinstance(error, KeyboardInterrupt):
            more = (
                f"; the same command with --resume{f' --seed {seed}' if draws else ''} makes the others" if done else ""
            )
            log.error("%d of %d clips are there%s.", done, len(jobs), more)
        raise


def load_model(args: argparse.Namespace) -> DashengAudioGen:
    try:
        with name_taker(TAKERS):
            return DashengAudioGen.from_pretrained(
                args.audiogen,
                args.text_encoder,
                args.audio_tokenizer,
                args.device,
                DTYPES[args.dtype],
                args.compile,
                args.pack_weights,
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} The options are {', '.join(TAKERS.values())}.") from error


def make_clips(args: argparse.Namespace, jobs: list[Job], recipe: str) -> None:
    options = asdict(sampling_options(args))
    model = load_model(args)
    # Before the first clip: errors in prompts stop here, warnings are logged.
    for prompt in dict.fromkeys(prompt for job in jobs for prompt in prompts_of(job.prompt)):
        model.tokenizer([prompt])
    # A signal in what libsndfile calls back would be lost, or crash it: not in the main thread.
    with ThreadPoolExecutor(1) as writer:
        for number, job in enumerate(jobs, start=1):
            with progress_bar(f"{number}/{len(jobs)} {job.path.name}", args.num_steps, "step") as update:
                report = lambda step, steps: update(1)  # noqa: E731
                given = {"seed": job.seed, "duration": job.seconds, "emphasis": args.emphasis}
                audio = model.generate(job.prompt, callback=report, **given, **options)[0]
            writer.submit(write_clip, args, job, recipe, audio).result()
            log.info("%s: %.2f s, seed %d", plain(job.path), len(audio) / SAMPLE_RATE, job.seed)


def write_clip(args: argparse.Namespace, job: Job, recipe: str, audio: Tensor) -> None:
    about = {
        "prompt": as_json(job.prompt),
        "seed": job.seed,
        "seconds": round(len(audio) / SAMPLE_RATE, 3),
        "asked": digest_of(recipe, job.prompt, job.seed, job.seconds),
    }
    sound = encode_audio(job.path, audio, SAMPLE_RATE, args.format)
    loop = len(audio) if args.loop else None
    write_bytes(job.path, with_notes(sound, job.path.suffix.lower(), about, job.prompt, loop))


def scenes_to_make(args: argparse.Namespace) -> list[Scene]:
    """The scenes of ``--prompts``, or the one of ``--timeline``, of ``--prompt`` or of the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS} | {"prompt": args.prompt}
    numbers = (args.seed, args.seconds, args.takes)
    if args.prompts is None:
        if args.timeline is None:
            return [make_scene(aspects, *numbers)]
        timeline = read_timeline(args.timeline)
        try:
            return [make_scene(aspects, *numbers, timeline=timeline, fade=args.fade)]
        except ValueError as error:
            raise type(error)(f"{plain(args.timeline)}: {error}") from error
    if any(aspects.values()) or args.timeline is not None:
        raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
    return read_scenes(args.prompts, *numbers, args.fade)


def fader(argument: str) -> tuple[str, float]:
    aspect, _, weight = argument.partition("=")
    try:
        return aspect, float(weight)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{plain(argument)!r} is no fader, expected an aspect and a number: sfx=2."
        ) from error


def typed_text(argument: str) -> str:
    """An argument as it was typed. In a locale of ASCII alone, Python cannot decode it, and it is UTF-8."""
    if not any("\ud800" <= letter <= "\udfff" for letter in argument):
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a} is not UTF-8: type it again in a UTF-8 terminal.") from error
