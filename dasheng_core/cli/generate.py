"""``dasheng generate``: prompts and options -> clips, each written as soon as it is there."""

import argparse
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from torch import Tensor

from ..batch.asked import recipe_of, sampling_options
from ..batch.clip_files import encode_clip, encode_stems, foreign_stem, stem_paths
from ..batch.jobs import (
    Clip,
    Scene,
    check_numbers,
    jobs_to_do,
    line_defaults,
    make_scene,
    plan_jobs,
    read_scenes,
    read_timeline,
)
from ..batch.model import fingerprint_model, load_model
from ..batch.rows import read_text
from ..batch.sets import SetMaker
from ..control.emphasis import as_emphasis, without_aspect
from ..control.script import LONGEST_SCRIPT, Script
from ..control.timeline import prompts_of
from ..delivery.audio_file import write_bytes
from ..delivery.file_notes import as_json, says_asked
from ..duration import SAMPLE_RATE
from ..pipeline import DashengAudioGen
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
    args.recipe = recipe_of(args, fingerprint_model(args))
    clips = plan_jobs(scenes, args.output, seed, args.format, args.recipe)
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
    model, sets = load_model(args), SetMaker(args.apart)
    # Before the first clip: errors in prompts stop here, warnings are logged.
    texts = dict.fromkeys(text for clip in clips for text in (*prompts_of(clip.prompt), clip.negative) if text)
    for text in texts:
        model.tokenizer([text])
    # A signal in what libsndfile calls back would be lost, or crash it: not in the main thread.
    with ThreadPoolExecutor(1) as writer:
        for number, clip in enumerate(clips, start=1):
            clip, audio = make_sound(model, args, clip, f"{number}/{len(clips)} {clip.path.name}", sets)
            writer.submit(write_clip, args, clip, audio, model).result()
            log.info("%s: %.2f s, seed %d", plain(clip.path), len(audio) / SAMPLE_RATE, clip.seed)


def make_sound(
    model: DashengAudioGen, args: argparse.Namespace, clip: Clip, name: str, sets: SetMaker
) -> tuple[Clip, Tensor]:
    """A clip with the seed it was made with, and its sound ``[samples]``; ``name`` is what the progress bar says."""
    with progress_bar(name, args.num_steps, "step") as update:
        report = lambda step, steps: update(1)  # noqa: E731
        given = {"duration": clip.seconds, "emphasis": args.emphasis, "callback": report}
        given |= asdict(sampling_options(args))
        if clip.is_set:
            return sets.make(model, clip, clip.takes, given)
        return clip, model.generate(clip.prompt, seed=clip.seed, negative=clip.negative, **given)[0]


def check_stems(args: argparse.Namespace, clips: list[Clip]) -> None:
    """Raise ValueError for a prompt that has no stems, and FileExistsError where another file has the name of one."""
    for clip in clips if args.stems else ():
        for path in stem_paths(clip.path, clip.prompt).values():
            # A run that was stopped wrote it before its clip.
            if os.path.lexists(path) and not (path.is_file() and says_asked(path.read_bytes(), clip.asked)):
                raise foreign_stem(path)


def write_clip(args: argparse.Namespace, clip: Clip, audio: Tensor, model: DashengAudioGen) -> None:
    """A clip after its stems: where it is there, they are."""
    seconds = round(len(audio) / SAMPLE_RATE, 3)
    about = {"prompt": as_json(clip.prompt), "seed": clip.seed, "seconds": seconds, "asked": clip.asked}
    about |= {} if clip.negative is None else {"negative": clip.negative}
    about |= {"variation": clip.take, "of": clip.takes} if clip.is_set else {}
    for path, encoded in (encode_stems(model.stems, clip, audio, about, args) if args.stems else {}).items():
        write_bytes(path, encoded, replace=True)
    write_bytes(clip.path, encode_clip(clip, audio, about, args))


def scenes_to_make(args: argparse.Namespace) -> list[Scene]:
    """The scenes of ``--prompts``, or the one of ``--timeline`` or ``--script``, of ``--prompt`` or of the aspects given one by one."""
    aspects = {aspect: getattr(args, aspect) for aspect in ASPECTS} | {"prompt": args.prompt}
    options = {"seed": args.seed, **line_defaults(args)}
    if args.script is not None and (args.timeline or args.prompts):
        raise PromptError("--script names a file of one clip: give no --timeline and no --prompts beside it.")
    if args.prompts is not None:
        if any(aspects.values()) or args.timeline is not None:
            raise PromptError("--prompts names a file of prompts: give no other prompt beside it.")
        return read_scenes(args.prompts, **options)
    tags, _ = options.pop("tags"), options.pop("categories")
    file = args.timeline or args.script
    if file is None:
        return [replace(make_scene(aspects, **options), tags=tags)]
    timeline = [] if args.timeline is None else read_timeline(file)
    text = read_text(str(file), LONGEST_SCRIPT) if args.timeline is None else ""
    try:
        scene = make_scene(aspects, timeline=timeline or Script.parse(text, args.fade, args.seconds), **options)
        return [replace(scene, tags=tags)]
    except ValueError as error:
        raise type(error)(f"{plain(file)}: {error}") from error
