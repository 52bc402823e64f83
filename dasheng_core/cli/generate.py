"""``dasheng generate``: prompts and options -> clips, each written as soon as it is there."""

import argparse
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batch.asked import digest_of, recipe_of, sampling_options
from ..batch.jobs import Job, Scene, check_numbers, jobs_to_do, make_scene, plan_jobs, read_scenes, read_timeline
from ..batch.model import fingerprint_model, load_model
from ..batch.stem_files import encode_stems, foreign_stem, stem_paths
from ..control.emphasis import as_emphasis, without_aspect
from ..control.timeline import prompts_of
from ..delivery.audio_file import encode_audio, write_bytes
from ..delivery.file_notes import as_json, says_asked, with_notes
from ..duration import SAMPLE_RATE
from ..progress import progress_bar
from ..prompt import ASPECTS, PromptError
from ..quoting import plain
from ..sampling import random_seed
from ..tensors import as_device

log = logging.getLogger(__name__)


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
    check_stems(args, missing, recipe)
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


def make_clips(args: argparse.Namespace, jobs: list[Job], recipe: str) -> None:
    options = asdict(sampling_options(args))
    model = load_model(args)
    # Before the first clip: errors in prompts stop here, warnings are logged.
    for prompt in dict.fromkeys(prompt for job in jobs for prompt in (*prompts_of(job.prompt), job.negative) if prompt):
        model.tokenizer([prompt])
    # A signal in what libsndfile calls back would be lost, or crash it: not in the main thread.
    with ThreadPoolExecutor(1) as writer:
        for number, job in enumerate(jobs, start=1):
            with progress_bar(f"{number}/{len(jobs)} {job.path.name}", args.num_steps, "step") as update:
                report = lambda step, steps: update(1)  # noqa: E731
                given = {"seed": job.seed, "duration": job.seconds, "emphasis": args.emphasis, "negative": job.negative}
                audio = model.generate(job.prompt, callback=report, **given, **options)[0]
            about = about_clip(job, recipe, audio)
            files = {}
            if args.stems:
                files = encode_stems(model, job.path, audio, args.format, about, job.prompt, options)
            writer.submit(write_clip, args, job, about, audio, files).result()
            log.info("%s: %.2f s, seed %d", plain(job.path), len(audio) / SAMPLE_RATE, job.seed)


def about_clip(job: Job, recipe: str, audio: Tensor) -> dict[str, Any]:
    """What the comment of its file says."""
    return {
        "prompt": as_json(job.prompt),
        "seed": job.seed,
        "seconds": round(len(audio) / SAMPLE_RATE, 3),
        "asked": digest_of(recipe, job.prompt, job.seed, job.seconds, job.negative),
    }


def check_stems(args: argparse.Namespace, jobs: list[Job], recipe: str) -> None:
    """Raise ValueError for a prompt that has no stems, and FileExistsError where another file has the name of one."""
    for job in jobs if args.stems else ():
        asked = digest_of(recipe, job.prompt, job.seed, job.seconds, job.negative)
        for path in stem_paths(job.path, job.prompt).values():
            # A run that was stopped wrote it before its clip.
            if os.path.lexists(path) and not (path.is_file() and says_asked(path.read_bytes(), asked)):
                raise foreign_stem(path)


def write_clip(
    args: argparse.Namespace, job: Job, about: dict[str, Any], audio: Tensor, stems: dict[Path, bytes]
) -> None:
    """A clip after its stems: where it is there, they are."""
    for path, encoded in stems.items():
        write_bytes(path, encoded, replace=True)
    sound = encode_audio(job.path, audio, SAMPLE_RATE, args.format)
    loop = len(audio) if args.loop else None
    write_bytes(job.path, with_notes(sound, job.path.suffix.lower(), about, job.prompt, loop))


def scenes_to_make(args: argparse.Namespace) -> list[Scene]:
    """The scenes of ``--prompts``, or the one of ``--timeline``, of ``--prompt`` or of the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS} | {"prompt": args.prompt}
    numbers = (args.seed, args.seconds, args.takes)
    if args.prompts is None:
        if args.timeline is None:
            return [make_scene(aspects, *numbers, negative=args.negative)]
        timeline = read_timeline(args.timeline)
        try:
            return [make_scene(aspects, *numbers, timeline=timeline, fade=args.fade, negative=args.negative)]
        except ValueError as error:
            raise type(error)(f"{plain(args.timeline)}: {error}") from error
    if any(aspects.values()) or args.timeline is not None:
        raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
    return read_scenes(args.prompts, *numbers, args.fade, args.negative)
