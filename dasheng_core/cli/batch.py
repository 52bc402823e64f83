"""``dasheng batch``: thousands of scenes -> clips, in this process or by the workers of a Ray cluster; resumable.

The plan is read twice and never held in memory: once to check it, once to make it. Between, a clip is two numbers: the hash of
its name, and what is to be done. The result of each clip is a line of the manifest, which this process alone writes.
"""

import argparse
import logging
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..batch.asked import recipe_of, sampling_options
from ..batch.cluster import make_on_ray, most_clips
from ..batch.jobs import Clip, check_numbers
from ..batch.manifest import Entry, Manifest
from ..batch.model import fingerprint_model
from ..batch.one_run import one_run
from ..batch.page import check_page, write_page
from ..batch.picks import take_picks
from ..batch.rows import split_root
from ..batch.sheets import check_results, write_results
from ..batch.storage import Storage, folder_of, open_storage
from ..batch.survey import REMAKE, STRICT, THERE, Chunks, Survey, check_differences, chunks_to_make, plan, survey
from ..batch.worker import Worker
from ..control.emphasis import as_emphasis
from ..delivery.formats import choose_format
from ..inputs import as_int
from ..progress import progress_bar
from ..quoting import PATH, plain
from ..tensors import as_device
from .stopping import came

log = logging.getLogger(__name__)

# What a resumed run must have in common with the first, beside how it samples.
SETTINGS = ("output", "format", "seconds", "takes", "fade", "emphasis", "negative", "dtype")
PROGRESS = "{desc}{postfix}, {remaining} left |{bar}| {n_fmt}/{total_fmt}"


def run(args: argparse.Namespace) -> None:
    """Check the whole plan, then make what is missing of it."""
    sampling_options(args)
    args.emphasis = as_emphasis(dict(args.emphasis or ()))
    args.resume |= args.remake or args.check or args.picks is not None
    if args.page + args.check + (args.picks is not None) > 1:
        raise ValueError("--page, --check and --picks are three commands: give one of them at a time.")
    check_numbers(args.seed, args.seconds, args.takes)
    as_int(args.batch_frames, "--batch-frames", 1, 10**9, "250 are one clip of ten seconds")
    if args.ray is None:
        as_device(args.device)
    root, output = split_root(args.output)
    choose_format(Path(output), args.format)
    storage = open_storage(root, Path.cwd())
    # A bucket is asked, and a folder tried, before anything is read or loaded.
    storage.check(output)
    check_results(args)
    with one_run(storage, folder_of(output), args.break_lock):
        run_alone(args, storage)


def run_alone(args: argparse.Namespace, storage: Storage) -> None:
    name = Path(args.scenes).stem
    manifest = Manifest(args.manifest or Path(f"{name}.manifest.jsonl"), args.resume)
    folder = folder_of(split_root(args.output)[1])
    if args.picks:
        take_picks(args.picks, manifest, folder, storage)
        return
    settings = {name: getattr(args, name) for name in SETTINGS} | asdict(sampling_options(args))
    # Options of later versions are no settings of a run without them.
    settings |= {name: value for name in ("stems", "metadata", "category") if (value := getattr(args, name))}
    seed, model = manifest.agree(settings, fingerprint_model(args), args.seed)
    recipe = args.recipe = recipe_of(args, model)
    found = survey(args, seed, recipe, manifest, storage)
    clips = len(found.todo) - found.todo.count(THERE)
    if args.check:
        check_all(found, clips)
        return
    if not args.remake:
        check_differences(found)
    page = folder / f"{name}.html"
    if args.page:
        check_page(page, len(found.todo), storage)
    log.info(
        "%d clips to make, seed %d; %d are there%s, %d scenes refused.",
        clips,
        seed,
        len(found.todo) - clips,
        f", {remade} of the others are made again" if (remade := found.todo.count(REMAKE)) else "",
        len(found.refused),
    )
    with manifest.opened({"settings": settings, "seed": seed, "model": model}):
        for entry in found.refused:
            log.warning("%s", entry["error"])
            manifest.add(entry)
        if clips:
            chunks = partial(chunks_to_make, args, seed, recipe, found.todo)
            make = make_on_ray if args.ray else make_here
            with closing(until_stopped(make(args, clips, chunks, Worker, args, Path.cwd(), model))) as entries:
                if not record(entries, manifest, clips, args) and clips == len(found.todo):
                    raise OSError(
                        f"None of the {clips} clips could be made: {plain(manifest.path, PATH)} says why of each."
                    )
    if args.page:
        with Manifest(manifest.path, resume=True).lines() as line_of:
            made = (line_of(clip.file) for clip in plan(args, seed, recipe) if isinstance(clip, Clip))
            write_page(page, filter(None, made), args.loop, storage)
        log.info("%s plays them in a browser; --picks reads what is saved there.", plain(page))
    write_results(args, seed, manifest.path)


def check_all(found: Survey, clips: int) -> None:
    """Raise ValueError where a clip is missing or is not what was made."""
    differ = found.todo.count(REMAKE)
    for entry in found.refused:
        log.warning("%s", entry["error"])
    if clips:
        raise ValueError(
            f"Of {len(found.todo)} clips {clips - differ} are missing or are in no line of the manifest, which --resume makes or "
            f"writes down, and {differ} differ from what was made, which --remake makes again."
        )
    log.info("%d clips are there, and each is what was made.", len(found.todo))


def make_here(
    args: argparse.Namespace, clips: int, chunks: Chunks, worker: type, *arguments: Any
) -> Generator[Entry, None, None]:
    """What one worker in this process makes; as :func:`make_on_ray`."""
    here = worker(*arguments)
    for chunk in chunks(most_clips(args)):
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
    """Write the entry of each clip to the manifest, and show the progress. Returns how many were made.

    Raises OSError where a worker cannot go on, or, with ``--strict``, a clip cannot be made.
    """
    done = failed = clipped = 0
    goes_on = False
    started = time.monotonic()
    try:
        with progress_bar("batch", clips, "clip", bar_format=PROGRESS, smoothing=0) as update:
            for entry in entries:
                if "stop" in entry:
                    raise OSError(entry["stop"])
                manifest.add(entry)
                done, failed = done + ("file" in entry), failed + ("error" in entry)
                clipped += bool(entry.get("clipped"))
                pace = 60 * (done + failed) / (time.monotonic() - started)
                update(1, f"{done} made, {failed} failed, {pace:.3g} per minute")
                if "error" in entry:
                    error = f"{plain(args.scenes, PATH)}:{entry['scene']}: {entry['error']}"
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
        log.info("%d of %d clips made, %d failed: %s%s.", done, clips, failed, plain(manifest.path), more)
        if clipped:
            log.warning(
                '%d clips pass full scale and are clipped, as "clipped" in their lines says: --format wav32 keeps peaks.',
                clipped,
            )
    return done
