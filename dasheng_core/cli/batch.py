"""``dasheng batch``: thousands of scenes -> clips, in this process or by the workers of a Ray cluster; resumable.

The plan is read twice and never held: once to check it, once to make it. Between, a clip is two numbers: the hash of its
name, and whether it is there. What has become of each clip is a line of the manifest, which this process alone writes.
"""

import argparse
import logging
import re
import time
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import compress, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from ..audio_file import choose_format
from ..direction import as_emphasis, without
from ..inputs import as_int
from ..progress import progress_bar
from . import generate
from .cluster import MOST_CLIPS, make_on_ray
from .jobs import check_numbers, claim, plain_name, read_scene, scene_jobs, with_fields
from .manifest import Manifest
from .rows import read_rows, split_root
from .stopping import came
from .storage import open_storage
from .worker import Clip, Entry, Worker

log = logging.getLogger(__name__)

# What a resumed run must have in common with the first, beside how it samples.
SETTINGS = ("output", "format", "seconds", "takes", "fade", "emphasis", "dtype")
NONE = "None of the {} scenes can be made; this is the first."
STRICT = "--strict ends the run here: mend that scene, or leave --strict out."
PROGRESS = "{desc}{postfix}, {remaining} left |{bar}| {n_fmt}/{total_fmt}"


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    command.add_argument(
        "scenes",
        metavar="SCENES",
        help="a file of prompts as for dasheng generate --prompts, or a .csv or .parquet table with the same columns; local, "
        "or any URI that pyarrow reads, as s3://bucket/scenes.jsonl",
    )
    generate.add_model_arguments(command)
    generate.add_output_arguments(command)
    command.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="the .jsonl file that says what became of each clip (default: the name of SCENES with .manifest.jsonl, here)",
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="end at the first scene that cannot be made, in place of noting it and going on",
    )
    command.add_argument(
        "--batch-frames",
        type=int,
        default=2500,
        metavar="N",
        help="latent frames, 25 a second, that are evaluated at once where clips are of the same length: more need more "
        "memory (default %(default)s, ten clips of ten seconds)",
    )
    cluster = command.add_argument_group("on Ray")
    cluster.add_argument("--ray", metavar="ADDRESS", help="the address of a cluster, or local: one on this machine")
    cluster.add_argument(
        "--workers",
        type=pool_size,
        default=(1, None),
        metavar="MIN[,MAX]",
        help="each holds the model; as many as there is work for, from MIN to MAX (default: from 1 to what the cluster holds)",
    )
    cluster.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="(default: 1 with --device cuda, else 0); 0.5: two share one"
    )
    cluster.add_argument(
        "--cpus-per-worker", type=float, default=1.0, metavar="N", help="cores that Ray keeps for each (default 1)"
    )


def pool_size(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"([1-9]\d*)(?:,([1-9]\d*))?", text)
    least, most = map(int, match.groups(match[1])) if match else (1, 0)
    if most < least:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of workers, expected one, or the least and the most: 1,8."
        )
    return least, most


def run(args: argparse.Namespace) -> None:
    """Check the whole plan, then make what is missing of it."""
    options = generate.sampling_options(args)
    args.emphasis = as_emphasis(dict(args.emphasis or ()))
    check_numbers(args.seed, args.seconds, args.takes)
    as_int(args.batch_frames, "--batch-frames", 1, 10**9, "250 are one clip of ten seconds")
    if args.ray is None:
        generate.check_device(args.device)
    manifest = Manifest(args.manifest or Path(f"{Path(args.scenes).stem}.manifest.jsonl"), args.resume)
    settings = {name: getattr(args, name) for name in SETTINGS} | asdict(options)
    seed = manifest.agree(settings, args.seed)
    missing, refused = survey(args, seed, manifest.made)
    clips = sum(missing)
    log.info(
        "%d clips to make, seed %d; %d are there, %d scenes refused.", clips, seed, len(missing) - clips, len(refused)
    )
    with manifest.opened({"settings": settings, "seed": seed}):
        for entry in refused:
            log.warning("%s", entry["error"])
            manifest.add(entry)
        if clips:
            chunks = partial(chunks_to_make, args, seed, missing)
            make = make_on_ray if args.ray else make_here
            with closing(until_stopped(make(args, clips, chunks, Worker, args, Path.cwd()))) as entries:
                if not record(entries, manifest, clips, args) and clips == len(missing):
                    raise OSError(f"None of the {clips} clips could be made: {manifest.path} says why of each.")


def plan(args: argparse.Namespace, seed: int) -> Iterator[Clip | Entry]:
    """All clips of the file, made or not, and what is wrong with a scene that none can be made of: its numbers stay free."""
    output = split_root(args.output)[1]
    choose_format(Path(output), args.format)
    template, index = with_fields(output), 1
    for number, row in read_rows(args.scenes):
        takes = args.takes
        try:
            scene = read_scene(row, None, args.seconds, takes, args.fade)
            takes = scene.takes
            for aspect in args.emphasis or ():
                without(scene.prompt, aspect)
            for job in scene_jobs(scene, template, seed, index):
                yield Clip(number, job.prompt, job.seed, job.seconds, job.path.as_posix())
        except ValueError as error:
            yield {"scene": number, "error": f"{args.scenes}:{number}: {error}"}
        index += takes


def chunks_to_make(args: argparse.Namespace, seed: int, missing: Iterable[int], size: int) -> Iterator[list[Clip]]:
    clips = compress((clip for clip in plan(args, seed) if isinstance(clip, Clip)), missing)
    while chunk := list(islice(clips, size)):
        yield chunk


def survey(args: argparse.Namespace, seed: int, made: "array[int]") -> tuple[bytes, list[Entry]]:
    """1 for each clip that is to be made, 0 for one that is ``made`` and whose file is there; and what cannot be made.

    Raises:
        ValueError: no scenes, two clips of one name, or a refused scene with ``--strict``.
        FileExistsError: a file is there, without ``--resume``.
        OSError: a folder that cannot be written to.
    """
    root, output = split_root(args.output)
    is_there = open_storage(root, Path.cwd()).check(output)
    names, files_there, refused = array("q"), bytearray(), []
    for clip in plan(args, seed):
        if isinstance(clip, dict):
            if args.strict:
                raise ValueError(f"{clip['error']} {STRICT}")
            refused.append(clip)
            continue
        there = is_there(Path(clip.file))
        if there and not args.resume:
            raise FileExistsError(
                f"{clip.file} is already there: choose another name, move the old files away, or go on by --resume."
            )
        names.append(hash(plain_name(clip.file)))
        files_there.append(there)
    if not names:
        if refused:
            raise ValueError(f"{refused[0]['error']} {NONE.format(len(refused))}")
        raise ValueError(f"{args.scenes} has no scenes: write one object a line of a .jsonl, or one row a scene.")
    if not np.diff(np.sort(names)).all():
        # Two hashes may be alike by chance.
        owners: dict[str, int] = {}
        for number, (clip,) in enumerate(chunks_to_make(args, seed, repeat(1), 1), start=1):
            claim(owners, Path(clip.file), number)
    return (~(np.isin(names, made) & np.frombuffer(files_there, bool))).tobytes(), refused


def make_here(
    args: argparse.Namespace, clips: int, chunks: Callable[[int], Iterator[list[Clip]]], worker: type, *arguments: Any
) -> Generator[Entry, None, None]:
    """What one worker in this process makes; as :func:`make_on_ray`."""
    here = worker(*arguments)
    for chunk in chunks(MOST_CLIPS):
        yield from here.make(chunk)


def until_stopped(entries: Generator[Entry, None, None]) -> Generator[Entry, None, None]:
    """``entries``; after a signal, what Ray raises while it is broken off is the interruption."""
    try:
        yield from entries
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise


def record(entries: Iterable[Entry], manifest: Manifest, clips: int, args: argparse.Namespace) -> int:
    """Write down what has become of each clip as it comes, and show how far it is. Returns how many were made.

    Raises:
        OSError: a worker cannot go on, or, with ``--strict``, a clip cannot be made.
    """
    done = failed = 0
    goes_on = False
    started = time.monotonic()
    try:
        with progress_bar("batch", clips, "clip", bar_format=PROGRESS, smoothing=0) as update:
            for entry in entries:
                if "stop" in entry:
                    raise OSError(entry["stop"])
                manifest.add(entry)
                done, failed = done + ("file" in entry), failed + ("error" in entry)
                pace = 60 * (done + failed) / (time.monotonic() - started)
                update(1, f"{done} made, {failed} failed, {pace:.3g} a minute")
                if "error" in entry:
                    error = f"{args.scenes}:{entry['scene']}: {entry['error']}"
                    if args.strict:
                        raise OSError(f"{error} {STRICT}")
                    log.warning("%s", error)
                if came:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        goes_on = True
        raise
    finally:
        goes_on |= 0 < done + failed < clips
        what = "makes the others" if goes_on else "tries what failed once more"
        more = f"; the same command with --resume {what}" if goes_on or failed else ""
        log.info("%d of %d clips made, %d failed: %s%s.", done, clips, failed, manifest.path, more)
    return done
