"""What makes the clips of a batch: one of it in this process, or one in each worker of a Ray cluster."""

import argparse
import io
import json
import os
import pickle
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import soundfile
import torch

from ..audio_file import encode_audio
from ..direction import Timeline, prompts_of
from ..duration import FRAME_RATE, SAMPLE_RATE, frames_from_seconds
from ..measures import LOUDNESS_SECONDS, decibels, loudness
from ..pipeline import DashengAudioGen
from ..wav_chunks import timeline_chunks
from .generate import load_model, sampling_options
from .rows import split_root
from .storage import open_storage

Entry = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """One clip to make: the row that it is of, what is asked, and the file under the output's root."""

    scene: int
    prompt: str | Timeline
    seed: int
    seconds: float | None
    file: str


class Worker:
    """Makes chunks of clips and writes each as soon as it is there. The first missing clip loads the model."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.options = args, asdict(sampling_options(args))
        self.storage = open_storage(split_root(args.output)[0], folder)
        self.name = f"{platform.node()}:{os.getpid()}"

    @cached_property
    def model(self) -> DashengAudioGen:
        return load_model(self.args)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """The form of Ray Data: columns of bytes and of JSON."""
        clips = [pickle.loads(clip) for clip in batch["clip"]]
        return {"entry": [json.dumps(entry) for entry in self.make(clips)]}

    def make(self, clips: list[Clip]) -> Iterator[Entry]:
        """What becomes of each clip. An entry with ``stop`` is why this worker cannot go on.

        A whole file that is there counts as made: a killed worker wrote it.
        """
        missing = []
        for clip in clips:
            if self.storage.exists(Path(clip.file)):
                yield self._found(clip)
            else:
                missing.append(clip)
        try:
            if missing:
                yield from self._make_missing(missing)
        except OSError as error:
            yield {"stop": f"worker {self.name}: {error}"}

    def _make_missing(self, clips: list[Clip]) -> Iterator[Entry]:
        try:
            model = self.model
        except ValueError as error:
            raise OSError(error) from error
        sizes = {}
        for clip in clips:
            try:
                sizes[clip] = clip_size(model, clip)
            except ValueError as error:
                yield self._failed(clip, error)
        for group in group_clips(sizes, self.args.batch_frames):
            yield from self._make_group(group, sizes[group[0]][0])

    def _make_group(self, clips: list[Clip], frames: int) -> Iterator[Entry]:
        """Clips of one length in one evaluation; if that fails, one by one."""
        started = time.perf_counter()
        try:
            sounds = self.model.generate(
                [clip.prompt for clip in clips],
                seed=[clip.seed for clip in clips],
                duration=frames / FRAME_RATE,
                emphasis=self.args.emphasis,
                **self.options,
            )
            data = [
                encode_audio(Path(clip.file), sound, SAMPLE_RATE, self.args.format, timeline_chunks(clip.prompt))
                for clip, sound in zip(clips, sounds, strict=True)
            ]
        except (ValueError, torch.OutOfMemoryError) as error:
            if len(clips) == 1:
                yield self._failed(clips[0], error)
            else:
                for clip in clips:
                    yield from self._make_group([clip], frames)
            return
        took = (time.perf_counter() - started) / len(clips)
        for clip, encoded in zip(clips, data, strict=True):
            entry = self._entry(clip, **measures(encoded), took=round(took, 3))
            try:
                self.storage.write(Path(clip.file), encoded)
            except FileExistsError:
                # A worker that was lost from sight has made the same.
                entry = self._found(clip)
            yield entry

    def _found(self, clip: Clip) -> Entry:
        try:
            return self._entry(clip, **measures(self.storage.read(Path(clip.file))))
        except (OSError, soundfile.SoundFileError):
            return self._failed(clip, f"{clip.file} is there and is no whole sound: move it away.")

    def _entry(self, clip: Clip, **more: Any) -> Entry:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return {**asdict(clip), **more, "worker": self.name, "time": now}

    def _failed(self, clip: Clip, error: object) -> Entry:
        entry = self._entry(clip, error=str(error))
        del entry["file"]
        return entry


def clip_size(model: DashengAudioGen, clip: Clip) -> tuple[int, int]:
    """Frames and tokens of a clip. Raises ValueError for a prompt that the model cannot read."""
    tokens = frames = 0
    for text in prompts_of(clip.prompt):
        tokens += int(model.tokenizer([text])[1].sum())
        if clip.seconds is None:
            frames = max(frames, int(model.encode_text([text])[2]))
    return frames if clip.seconds is None else frames_from_seconds(clip.seconds), tokens


def group_clips(sizes: dict[Clip, tuple[int, int]], most_frames: int) -> Iterator[list[Clip]]:
    """Clips of one length, those of similar text together, at most so many frames at once or a single clip."""
    group: list[Clip] = []
    for clip in sorted(sizes, key=sizes.__getitem__):
        frames = sizes[clip][0]
        if group and (frames != sizes[group[0]][0] or (len(group) + 1) * frames > most_frames):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def measures(encoded: bytes) -> dict[str, float | None]:
    """Seconds, loudness in LUFS and peak in dBFS of a sound file. None: of silence, or of a clip that is too short."""
    sound, rate = soundfile.read(io.BytesIO(encoded), dtype="float32")
    clip = torch.from_numpy(sound)
    levels = {"loudness": None, "peak": decibels(clip.abs().max().item())}
    if len(clip) >= LOUDNESS_SECONDS * rate:
        # Without scipy there is none.
        with suppress(ImportError):
            levels["loudness"] = loudness(clip[None], rate)
    rounded = {
        name: round(level, 2) if level is not None and isfinite(level) else None for name, level in levels.items()
    }
    return {"seconds": round(len(clip) / rate, 3), **rounded}
