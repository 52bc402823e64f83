"""Before a batch: all its clips, and which of them are made, by the manifest and by the files in the folder."""

import argparse
import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..control.emphasis import without_aspect
from ..delivery.file_notes import as_json, is_whole, says_asked
from ..delivery.formats import choose_format
from ..duration import FRAME_RATE, frames_from_seconds
from ..opening import explained
from ..progress import progress_bar
from ..quoting import PATH, plain
from .clip_files import stem_paths
from .jobs import MOST_BYTES, Clip, line_defaults, read_scene, scene_clips
from .manifest import Entry, Manifest
from .naming import claim, plain_name, with_fields
from .rows import read_rows, split_root
from .storage import NO_FILE, Storage

log = logging.getLogger(__name__)

NONE = "None of the {} scenes can be made; this is the first."
STRICT = "--strict ends the run here: correct that scene, or leave --strict out."
# Clips that are compared at the same time: a disk answers slowly, and a bucket more so.
READERS, CHUNK = 8, 256
# How many of the clips that differ a message names.
NAMED = 5
# What is to be done about a clip.
THERE, MAKE, REMAKE = range(3)


class Survey(NamedTuple):
    """``todo``: a byte for each clip. ``refused``: scenes that no clip can be made of. ``differ``: clips whose file is another sound."""

    todo: bytes
    refused: list[Entry]
    differ: int
    named: list[str]


def plan(args: argparse.Namespace, seed: int, recipe: str = "") -> Iterator[Clip | Entry]:
    """All clips of the file, made or not, and what is wrong with a scene that none can be made of: its numbers stay free."""
    output = split_root(args.output)[1]
    choose_format(Path(output), args.format)
    template, index, defaults = with_fields(output), 1, line_defaults(args)
    for number, row in read_rows(args.scenes):
        takes = args.takes
        try:
            scene = read_scene(row, **defaults)
            takes = scene.takes
            for aspect in args.emphasis or ():
                without_aspect(scene.prompt, aspect)
            for clip in scene_clips(scene, number, template, seed, index, recipe):
                if args.stems:
                    stem_paths(clip.path, clip.prompt)
                yield clip
        except ValueError as error:
            yield {"scene": number, "error": f"{plain(args.scenes, PATH)}:{number}: {error}"}
        index += takes


def chunks_to_make(
    args: argparse.Namespace, seed: int, recipe: str, todo: Iterable[int], size: int
) -> Iterator[list[Clip]]:
    clips = (clip for clip in plan(args, seed, recipe) if isinstance(clip, Clip))
    wanted = (replace(clip, remake=what == REMAKE) for clip, what in zip(clips, todo, strict=False) if what != THERE)
    while chunk := list(islice(wanted, size)):
        yield chunk


def survey(args: argparse.Namespace, seed: int, recipe: str, manifest: Manifest, storage: Storage) -> Survey:
    """What is to be done about each clip; with ``--check``, by all bytes that are there.

    Raises:
        ValueError: no scenes, two clips of one name, or a refused scene with ``--strict``.
        FileExistsError: a file is there, without ``--resume``, or something that is no file.
        OSError: a folder that cannot be written to, or a file that cannot be read.
    """
    size_of = storage.sizes(split_root(args.output)[1])
    names, todo, refused = array("q"), bytearray(), []
    differ: Counter[int] = Counter()
    named: list[str] = []
    everything = plan(args, seed, recipe)
    with (
        manifest.lines() as line_of,
        ThreadPoolExecutor(READERS) as readers,
        progress_bar("there", None, "clip") as update,
    ):
        while chunk := list(islice(everything, CHUNK)):
            clips = []
            for clip in chunk:
                if isinstance(clip, Clip):
                    clips.append(clip)
                elif args.strict:
                    raise ValueError(f"{clip['error']} {STRICT}")
                else:
                    refused.append(clip)
            names.extend(hash(plain_name(clip.file)) for clip in clips)
            sizes = [size_of(clip.path) for clip in clips]
            for clip, size in zip(clips, sizes, strict=True):
                _check_name(clip, size, args.resume)
            lines = [None if size is None else line_of(clip.file) for clip, size in zip(clips, sizes, strict=True)]
            compare = _Compare(storage, args.check)
            for clip, (what, why) in zip(clips, readers.map(compare, clips, sizes, lines), strict=True):
                todo.append(what)
                if what == REMAKE:
                    differ[clip.scene] += 1
                place = f"{plain(args.scenes, PATH)}:{clip.scene}"
                if args.check and what != THERE:
                    log.warning("%s (%s): %s", plain(clip.file, PATH), place, why)
                elif what == REMAKE and len(named) < NAMED:
                    named.append(f"{plain(clip.file, PATH)} ({place}): {why}")
            update(len(clips))
    if not names and refused:
        raise ValueError(f"{refused[0]['error']} {NONE.format(len(refused))}")
    if not names:
        raise ValueError(
            f"{plain(args.scenes, PATH)} has no scenes: write one object per line of a .jsonl, or one row per scene."
        )
    if not np.diff(np.sort(names)).all():
        # Two names can have one hash.
        owners: dict[str, int] = {}
        for number, (clip,) in enumerate(chunks_to_make(args, seed, recipe, repeat(MAKE), 1), start=1):
            claim(owners, clip.path, number)
    return Survey(bytes(todo), refused, len(differ), named)


def check_differences(found: Survey) -> None:
    """Raise ValueError where what is there is not what is asked for."""
    if not found.differ:
        return
    scenes = "1 scene differs" if found.differ == 1 else f"{found.differ} scenes differ"
    some = "; ".join(found.named)
    raise ValueError(f"{scenes} from what was made: give another -o and --manifest, or --remake. {some}.")


def _check_name(clip: Clip, size: int | None, resume: bool) -> None:
    if size == NO_FILE:
        raise FileExistsError(
            f"{plain(clip.file, PATH)} is there and is not a file: choose another name, or move it away."
        )
    if size is not None and not resume:
        raise FileExistsError(
            f"{plain(clip.file, PATH)} is already there: choose another name, move the old files away, or go on by --resume."
        )


class _Compare:
    """A clip, the size of its file, and its line of the manifest -> what is to be done, and why."""

    def __init__(self, storage: Storage, deep: bool):
        self.storage, self.deep = storage, deep

    def __call__(self, clip: Clip, size: int | None, line: Entry | None) -> tuple[int, str]:
        if size is None:
            return MAKE, "it is missing"
        with explained(f"{plain(clip.file, PATH)} cannot be read", "look at its permissions and its disk"):
            if line is None or (changed := _changed(clip, line)):
                # A run was killed before it wrote the line: the comment of the file has the digest.
                if size <= MOST_BYTES and says_asked(self.storage.read(clip.path), clip.asked):
                    return MAKE, "no line of the manifest says that it is made"
                return REMAKE, changed if line else "neither the manifest nor its own comment says what it is"
            for stem in line.get("stems", {}).values():
                if self.storage.size(Path(stem)) is None:
                    return REMAKE, f"its stem {plain(stem, PATH)} is missing"
            differs = self._bytes_differ(clip, size, line)
            return (REMAKE, differs) if differs else (THERE, "")

    def _bytes_differ(self, clip: Clip, size: int, line: Entry) -> str:
        if "bytes" not in line:
            # Of the first form of manifests.
            whole = size <= MOST_BYTES and is_whole(self.storage.read(clip.path), line.get("seconds"))
            return "" if whole else "it is not the whole sound that was made"
        if line["bytes"] != size:
            return f"it has {size} bytes, and {plain(line['bytes'])} were written"
        sums = self.storage.sums(clip.path, self.deep)
        other = [kind for kind, value in sums.items() if line.get(kind) not in (None, value)]
        return f"its bytes are not those that were written (another {other[0]})" if other else ""


def _changed(clip: Clip, line: Entry) -> str:
    """The difference between what is asked for and the clip that was made."""
    if line.get("asked") == clip.asked:
        return ""
    prompt, before = json.loads(json.dumps(as_json(clip.prompt))), line.get("prompt")
    if prompt != before:
        return f"its prompt was {plain(before)!r} and is {plain(prompt)!r}"
    if line.get("negative") != clip.negative:
        was, now = (f"'{plain(text)}'" if text else "none" for text in (line.get("negative"), clip.negative))
        return f"its negative was {was} and is {now}"
    if line.get("seed") != clip.seed:
        return f"its seed was {plain(line.get('seed'))} and is {clip.seed}"
    if clip.seconds is not None and _seconds(clip.seconds) != line.get("seconds"):
        return f"its length was {plain(line.get('seconds'))} s and is {clip.seconds:g} s"
    return "its length, its settings or its model were others" if "asked" in line else ""


def _seconds(seconds: float) -> float:
    return round(frames_from_seconds(seconds) / FRAME_RATE, 3)


Chunks = Callable[[int], Iterator[list[Clip]]]
