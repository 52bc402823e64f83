"""The worker that makes the clips of a batch: one in this process, or several on a Ray cluster."""

import argparse
import hashlib
import json
import os
import pickle
import platform
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import cached_property
from itertools import groupby
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..control.timeline import prompts_of
from ..delivery.file_notes import as_json, read_about, says_asked
from ..delivery.formats import FORMATS
from ..delivery.measures import LOUDNESS_SECONDS, decibels, loudness
from ..duration import FRAME_RATE, SAMPLE_RATE, frames_from_seconds
from ..pipeline import DashengAudioGen
from ..quoting import PATH, plain
from .asked import sampling_options
from .clip_files import encode_clip, encode_stems, foreign_stem, format_of, stem_paths
from .jobs import Clip
from .manifest import Entry
from .model import Model, fingerprint_model, load_model
from .rows import split_root
from .sets import SetMaker
from .storage import open_storage

WRITERS = 8
MEASURED = ("seconds", "loudness", "peak", "clipped")


class Worker:
    """Makes chunks of clips and writes each as soon as it is there. The first missing clip loads the model.

    ``expected``: the model of the run; None: of an unknown one.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, expected: Model | None = None):
        self.args, self.options, self.expected = args, asdict(sampling_options(args)), expected
        self.storage = open_storage(split_root(args.output)[0], folder)
        self.writers = ThreadPoolExecutor(WRITERS)
        self.name = f"{platform.node()}:{os.getpid()}"
        self.sets = SetMaker(args.apart)

    @cached_property
    def model(self) -> DashengAudioGen:
        mine = fingerprint_model(self.args) if self.expected else None
        for part, digest in (mine or {}).items():
            if self.expected and digest != self.expected[part]:
                raise OSError(
                    f"the files of --{part} here are not those of the run ({digest}, not {self.expected[part]}): copy the "
                    "same ones to each node."
                )
        try:
            return load_model(self.args)
        except ValueError as error:
            # No clip is the cause.
            raise OSError(error) from error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """The form of Ray Data: columns of bytes and of JSON."""
        clips = [pickle.loads(clip) for clip in batch["clip"]]
        return {"entry": [json.dumps(entry) for entry in self.make(clips)]}

    def make(self, clips: list[Clip]) -> Iterator[Entry]:
        """What becomes of each clip. An entry with ``stop`` is why this worker cannot go on.

        A file whose comment has the clip's digest counts as made: a killed worker wrote it.
        """
        sizes = {}
        try:
            for clip in clips:
                if not clip.remake and self.storage.size(clip.path) is not None:
                    # A signal in what libsndfile calls back would be lost, or crash it: not in the main thread.
                    yield self.writers.submit(self._written, clip).result()
                    continue
                try:
                    sizes[clip] = clip_size(self.model, clip)
                except ValueError as error:
                    yield self._entry(clip, error=str(error))
            for clip in [clip for clip in sizes if clip.is_set]:
                yield from self._make_group([clip], sizes.pop(clip)[0])
            for group in group_clips(sizes, self.args.batch_frames):
                yield from self._make_group(group, sizes[group[0]][0])
        except OSError as error:
            yield {"stop": f"worker {self.name}: {error}"}

    def _make_group(self, clips: list[Clip], frames: int) -> Iterator[Entry]:
        """Clips of one length in one evaluation; if that fails, one by one."""
        started = time.perf_counter()
        given = {"duration": frames / FRAME_RATE, "emphasis": self.args.emphasis, **self.options}
        try:
            if clips[0].is_set:
                made_clip, sound = self.sets.make(self.model, clips[0], max(1, self.args.batch_frames // frames), given)
                clips, sounds = [made_clip], sound[None]
            else:
                sounds = self.model.generate(
                    [clip.prompt for clip in clips],
                    seed=[clip.seed for clip in clips],
                    negative=[clip.negative for clip in clips if clip.negative is not None] or None,
                    **given,
                )
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(clips) == 1:
                yield self._entry(clips[0], error=str(error))
            else:
                for clip in clips:
                    yield from self._make_group([clip], frames)
            return
        made = []
        for clip, sound in zip(clips, sounds, strict=True):
            try:
                made.append((clip, sound, self._stems(clip, sound) if self.args.stems else {}))
            except (ValueError, torch.OutOfMemoryError) as error:
                yield self._entry(clip, error=str(error))
        took = round((time.perf_counter() - started) / len(clips), 3)
        # A disk answers slowly, and a bucket more so: several files are written at a time.
        kept = [self.writers.submit(self._keep, *given, took) for given in made]
        wait(kept)
        yield from (entry.result() for entry in kept)

    def _stems(self, clip: Clip, sound: Tensor) -> dict[Path, bytes]:
        return encode_stems(self.model.stems, clip, sound, about_clip(clip), self.args)

    def _keep(self, clip: Clip, sound: Tensor, stems: dict[Path, bytes], took: float) -> Entry:
        try:
            for file, encoded in stems.items():
                self._write_stem(file, encoded, clip)
            measured = measures(sound, format_of(clip, self.args))
            encoded = encode_clip(clip, sound, about_clip(clip) | measured, self.args)
            tag = self.storage.write(clip.path, encoded, clip.remake)
        except ValueError as error:
            return self._entry(clip, error=str(error))
        except FileExistsError:
            # Another worker already wrote it.
            return self._written(clip)
        return self._entry(clip, **about_file(encoded, measured), **tag, took=took)

    def _write_stem(self, file: Path, encoded: bytes, clip: Clip) -> None:
        """Before its clip: where that is there, its stems are."""
        if self.storage.size(file) is not None and not clip.remake:
            if not says_asked(self.storage.read(file), clip.asked):
                raise ValueError(str(foreign_stem(file)))
        self.storage.write(file, encoded, replace=True)

    def _written(self, clip: Clip) -> Entry:
        try:
            encoded = self.storage.read(clip.path)
            if says_asked(encoded, clip.asked):
                notes = read_about(encoded)
                tag = self.storage.sums(clip.path, deep=False)
                # A variation was made of a take that is known after it was drawn.
                clip = replace(clip, seed=notes.get("seed", clip.seed))
                return self._entry(clip, **{**tag, **about_file(encoded, {key: notes.get(key) for key in MEASURED})})
        except OSError:
            pass
        return self._entry(
            clip, error=f"{plain(clip.file, PATH)} is there and is not the sound of this scene: move it away."
        )

    def _entry(self, clip: Clip, **more: Any) -> Entry:
        asked = as_entry(clip)
        if "error" in more:
            del asked["file"]
        elif self.args.stems:
            paths = stem_paths(clip.path, clip.prompt)
            asked["stems"] = {stem: path.as_posix() for stem, path in paths.items()}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {**asked, **more, "worker": self.name, "time": now}


def about_clip(clip: Clip) -> Entry:
    """What the comment of its file says of what is asked for."""
    return {key: value for key, value in as_entry(clip).items() if key not in ("scene", "file")}


def as_entry(clip: Clip) -> Entry:
    """What is asked for, as the manifest's line has it."""
    return {
        "scene": clip.scene,
        "prompt": as_json(clip.prompt),
        "seed": clip.seed,
        "seconds": clip.seconds,
        **({} if clip.negative is None else {"negative": clip.negative}),
        **({"variation": clip.take, "of": clip.takes} if clip.is_set else {}),
        "file": clip.file,
        "asked": clip.asked,
    }


def clip_size(model: DashengAudioGen, clip: Clip) -> tuple[int, int]:
    """Frames and tokens of a clip. Raises ValueError for a prompt that the model cannot read."""
    tokens = frames = 0
    if clip.negative is not None:
        model.tokenizer([clip.negative])
    for text in prompts_of(clip.prompt):
        tokens += int(model.tokenizer([text])[1].sum())
        if clip.seconds is None:
            frames = max(frames, int(model.encode_text([text])[2]))
    return frames if clip.seconds is None else frames_from_seconds(clip.seconds), tokens


def group_clips(sizes: dict[Clip, tuple[int, int]], most_frames: int) -> Iterator[list[Clip]]:
    """Clips of one length, all or none with a negative, those of similar text together; at most so many frames, or one clip."""

    def kind(clip: Clip) -> tuple[int, bool]:
        return sizes[clip][0], clip.negative is not None

    for (frames, _), same in groupby(sorted(sizes, key=lambda clip: (kind(clip), sizes[clip])), key=kind):
        clips, most = list(same), max(1, most_frames // frames)
        yield from (clips[start : start + most] for start in range(0, len(clips), most))


def measures(sound: Tensor, file_format: str) -> dict[str, float | None]:
    """Seconds, loudness in LUFS and peak in dBFS of a waveform ``[samples]``, and how many samples its file clips.

    None: of silence, or of a clip that is too short.
    """
    size = sound.abs()
    levels = {"loudness": -inf, "peak": decibels(size.max().item())}
    if len(sound) >= LOUDNESS_SECONDS * SAMPLE_RATE:
        # Without scipy there is none.
        with suppress(ImportError):
            levels["loudness"] = loudness(sound[None], SAMPLE_RATE)
    rounded = {name: round(level, 2) if isfinite(level) else None for name, level in levels.items()}
    clipped = 0 if FORMATS[file_format][1] == "FLOAT" else int((size > 1).sum())
    return {"seconds": round(len(sound) / SAMPLE_RATE, 3), **rounded, "clipped": clipped}


def about_file(encoded: bytes, measured: Mapping[str, Any]) -> Entry:
    return {**measured, "bytes": len(encoded), "sha256": hashlib.sha256(encoded).hexdigest()}
