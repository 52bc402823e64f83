"""``dasheng generate``: prompts and options -> clips, each written as soon as it is there."""

import argparse
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batch.asked import recipe_of, sampling_options
from ..batch.clip_files import encode_clip, encode_stems, foreign_stem, stem_paths
from ..batch.jobs import Clip, Scene, check_numbers, jobs_to_do, make_scene, plan_jobs, read_scenes, read_timeline
from ..batch.model import fingerprint_model, load_model
from ..batch.rows import read_text
from ..control.emphasis import as_emphasis, without_aspect
from ..control.script import MOST_LETTERS, Script
from ..control.timeline import prompts_of
from ..delivery.audio_file import write_bytes
from ..delivery.file_notes import as_json, says_asked
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
    clips = plan_jobs(scenes, args.output, seed, args.format, recipe_of(args, fingerprint_model(args)))
    missing = jobs_to_do(clips, args.resume)
    check_stems(args, missing)
    as_device(args.device)
    if args.resume:
        log.info("%d of %d clips are there already.", len(clips) - len(missing), len(clips))
    if not missing:
        return
    if draws:
        log.info("seed %d, drawn: --seed %d makes the same again", seed, seed)
    try:
        make_clips(args, missing)
    except BaseException as error:
        done = sum(clip.path.exists() for clip in clips)
        if done or isinstance(error, KeyboardInterrupt):
            more = (
                f"; the same command with --resume{f' --seed {seed}' if draws else ''} makes the others" if done else ""
            )
            log.error("%d of %d clips are there%s.", done, len(clips), more)
        raise


def make_clips(args: argparse.Namespace, clips: list[Clip]) -> None:
    options = asdict(sampling_options(args))
    model = load_model(args)
    # Before the first clip: errors in prompts stop here, warnings are logged.
    texts = dict.fromkeys(text for clip in clips for text in (*prompts_of(clip.prompt), clip.negative) if text)
    for text in texts:
        model.tokenizer([text])
    # A signal in what libsndfile calls back would be lost, or crash it: not in the main thread.
    with ThreadPoolExecutor(1) as writer:
        for number, clip in enumerate(clips, start=1):
            with progress_bar(f"{number}/{len(clips)} {clip.path.name}", args.num_steps, "step") as update:
                report = lambda step, steps: update(1)  # noqa: E731
                given = {
                    "seed": clip.seed,
                    "duration": clip.seconds,
                    "emphasis": args.emphasis,
                    "negative": clip.negative,
                }
                audio = model.generate(clip.prompt, callback=report, **given, **options)[0]
            seconds = round(len(audio) / SAMPLE_RATE, 3)
            about = {"prompt": as_json(clip.prompt), "seed": clip.seed, "seconds": seconds, "asked": clip.asked}
            files = encode_stems(model.stems, clip, audio, about, args) if args.stems else {}
            writer.submit(write_clip, args, clip, about, audio, files).result()
            log.info("%s: %.2f s, seed %d", plain(clip.path), len(audio) / SAMPLE_RATE, clip.seed)


def check_stems(args: argparse.Namespace, clips: list[Clip]) -> None:
    """Raise ValueError for a prompt that has no stems, and FileExistsError where another file has the name of one."""
    for clip in clips if args.stems else ():
        for path in stem_paths(clip.path, clip.prompt).values():
            # A run that was stopped wrote it before its clip.
            if os.path.lexists(path) and not (path.is_file() and says_asked(path.read_bytes(), clip.asked)):
                raise foreign_stem(path)


def write_clip(
    args: argparse.Namespace, clip: Clip, about: dict[str, Any], audio: Tensor, stems: dict[Path, bytes]
) -> None:
    """A clip after its stems: where it is there, they are."""
    for path, encoded in stems.items():
        write_bytes(path, encoded, replace=True)
    write_bytes(clip.path, encode_clip(clip, audio, about, args))


def scenes_to_make(args: argparse.Namespace) -> list[Scene]:
    """The scenes of ``--prompts``, or the one of ``--timeline`` or ``--script``, of ``--prompt`` or of the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS} | {"prompt": args.prompt}
    options = {name: getattr(args, name) for name in ("seed", "seconds", "takes", "fade", "negative")}
    if args.script is not None and (args.timeline or args.prompts):
        raise PromptError("--script names a file of one clip: give no --timeline and no --prompts beside it.")
    if args.prompts is None:
        file = args.timeline or args.script
        if file is None:
            return [make_scene(aspects, **options)]
        timeline = [] if args.timeline is None else read_timeline(file)
        text = read_text(str(file), MOST_LETTERS) if args.timeline is None else ""
        try:
            return [make_scene(aspects, timeline=timeline or Script.parse(text, args.fade, args.seconds), **options)]
        except ValueError as error:
            raise type(error)(f"{plain(file)}: {error}") from error
    if any(aspects.values()) or args.timeline is not None:
        raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
    return read_scenes(args.prompts, **options)
