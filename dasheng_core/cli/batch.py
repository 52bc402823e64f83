"""``dasheng batch``: thousands of scenes -> clips, in this process or by the workers of a Ray cluster; resumable.

The plan is read twice and never held: once to check it, once to make it. What has become of each clip is a line of the
manifest, which this process alone writes.
"""

import argparse
import logging
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from ..audio_file import choose_format
from ..direction import as_emphasis, without
from ..inputs import as_int
from ..progress import progress_bar
from . import generate
from .cluster import MOST_CLIPS, make_on_ray
from .jobs import check_numbers, claim, read_scene, scene_jobs, with_fields
from .manifest import Manifest
from .rows import read_rows, split_root
from .storage import open_storage
from .worker import Clip, Entry, Worker

log = logging.getLogger(__name__)

# What a resumed run must have in common with the first, beside how it samples.
SETTINGS = ("output", "format", "seconds", "takes", "fade", "emphasis", "dtype")


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
    command.add_argument("--strict", action="store_true", help="end at the first scene that cannot be made")
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
    least, _, most = text.partition(",")
    size = int(least), int(most or least)
    if not 1 <= size[0] <= size[1]:
        raise ValueError
    return size


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
    plan = Plan(args, seed, manifest.made)
    clips, refused = survey(plan, args)
    log.info("%d clips to make, seed %d; %d are there.", clips, seed, len(manifest.made))
    with manifest.opened({"settings": settings, "seed": seed}):
        for scene in refused:
            log.warning("%s", scene.error)
            manifest.add(asdict(scene))
        if clips:
            if args.ray:
                entries = make_on_ray(args, clips, plan.chunks, Worker, args, Path.cwd())
            else:
                entries = make_here(plan, Worker(args, Path.cwd()))
            with closing(entries):
                record(entries, manifest, clips, args.strict)


@dataclass(frozen=True)
class Refused:
    """A row of the file that no clip can be made of."""

    scene: int
    error: str


@dataclass
class Plan:
    """The clips of the file that are not made, read anew each time. A refused scene keeps its numbers free."""

    args: argparse.Namespace
    seed: int
    made: set[str]

    def __post_init__(self) -> None:
        self.root, output = split_root(self.args.output)
        choose_format(Path(output), self.args.format)
        self.template = with_fields(output)

    def rows(self) -> Iterator[Clip | Refused]:
        """All clips, made or not, and the scenes that none can be made of."""
        args, index = self.args, 1
        for number, row in read_rows(args.scenes):
            takes = args.takes
            try:
                scene = read_scene(row, None, args.seconds, takes, args.fade)
                takes = scene.takes
                for aspect in args.emphasis or ():
                    without(scene.prompt, aspect)
                for job in scene_jobs(scene, self.template, self.seed, index):
                    yield Clip(number, job.prompt, job.seed, job.seconds, job.path.as_posix())
            except ValueError as error:
                yield Refused(number, f"{args.scenes}:{number}: {error}")
            index += takes

    def chunks(self, size: int) -> Iterator[list[Clip]]:
        clips = (clip for clip in self.rows() if isinstance(clip, Clip) and clip.file not in self.made)
        while chunk := list(islice(clips, size)):
            yield chunk


def survey(plan: Plan, args: argparse.Namespace) -> tuple[int, list[Refused]]:
    """How many clips are to be made, and what cannot be; a made clip whose file has gone is not made.

    Raises:
        ValueError: no scenes, two clips of one name, or a refused scene with ``--strict``.
        FileExistsError: a file is there, without ``--resume``.
        OSError: a folder that cannot be written to.
    """
    is_there = open_storage(plan.root, Path.cwd()).check(plan.template)
    owners: dict[str, int] = {}
    refused = []
    number = left = 0
    for clip in plan.rows():
        if isinstance(clip, Refused):
            if args.strict:
                raise ValueError(clip.error)
            refused.append(clip)
            continue
        number += 1
        claim(owners, Path(clip.file), number)
        there = is_there(Path(clip.file))
        if there and not args.resume:
            raise FileExistsError(
                f"{clip.file} is already there: choose another name, move the old files away, or go on by --resume."
            )
        if not there:
            plan.made.discard(clip.file)
        left += clip.file not in plan.made
    if not owners and not refused:
        raise ValueError(f"{args.scenes} has no scenes: write one object a line of a .jsonl, or one row a scene.")
    return left, refused


def make_here(plan: Plan, worker: Worker) -> Generator[Entry, None, None]:
    for chunk in plan.chunks(MOST_CLIPS):
        yield from worker.make(chunk)


def record(entries: Iterable[Entry], manifest: Manifest, clips: int, strict: bool) -> None:
    """Write down what has become of each clip as it comes, and show how far it is.

    Raises:
        OSError: a worker cannot go on, or, with ``--strict``, a clip cannot be made.
    """
    done = failed = 0
    goes_on = False
    try:
        with progress_bar("batch", clips, "clip") as update:
            for entry in entries:
                if "stop" in entry:
                    raise OSError(entry["stop"])
                manifest.add(entry)
                update(1)
                if "file" in entry:
                    done += 1
                    continue
                failed += 1
                if strict:
                    raise OSError(entry["error"])
                log.warning("scene %d: %s", entry["scene"], entry["error"])
    except KeyboardInterrupt:
        goes_on = True
        raise
    finally:
        goes_on |= 0 < done + failed < clips
        more = "; the same command with --resume makes the others" if goes_on else ""
        log.info("%d of %d clips made, %d failed: %s%s.", done, clips, failed, manifest.path, more)
