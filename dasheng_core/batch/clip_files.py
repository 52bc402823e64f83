"""A clip as a file with its notes, and its stems beside it: ``NAME.wav`` has ``NAME.sfx.wav`` and others."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..control.stems import aspect_prompts
from ..control.timeline import Timeline, prompts_of
from ..delivery.audio_file import encode_audio
from ..delivery.file_notes import with_notes
from ..delivery.formats import choose_format
from ..delivery.tagged_sound import TaggedSound
from ..duration import SAMPLE_RATE
from ..quoting import plain
from .jobs import Clip


def stem_paths(path: Path, prompt: str | Timeline) -> dict[str, Path]:
    """The files of a clip's stems, by aspect. Raises ValueError for a prompt of a caption alone."""
    return {stem: path.with_suffix(f".{stem}{path.suffix}") for stem in aspect_prompts(prompts_of(prompt))}


def encode_clip(clip: Clip, sound: Tensor, about: Mapping[str, Any], args: argparse.Namespace) -> bytes:
    """The file of a clip ``[samples]`` with its notes; ``about`` and the recipe stand in its comment. Raises ValueError."""
    file_format, loop = format_of(clip, args), len(sound) if args.loop else None
    encoded = encode_audio(clip.path, sound, SAMPLE_RATE, file_format)
    made = {"format": file_format, "take": clip.take, "tags": clip.tags.given(), "recipe": json.loads(args.recipe)}
    tagged = TaggedSound(clip.tags, sound[None], SAMPLE_RATE, clip.seed, clip.take, clip.asked)
    return with_notes(encoded, clip.path.suffix.lower(), {**about, **made}, clip.prompt, loop, tagged)


def format_of(clip: Clip, args: argparse.Namespace) -> str:
    """The form of a clip's file: its line's, or the run's."""
    return choose_format(clip.path, clip.file_format or args.format)


def encode_stems(
    stems_of: Callable[..., dict[str, Tensor]],
    clip: Clip,
    sound: Tensor,
    about: Mapping[str, Any],
    args: argparse.Namespace,
) -> dict[Path, bytes]:
    """The files of the stems of a clip ``[samples]``; ``about`` is what its own comment says.

    ``stems_of``: :meth:`DashengAudioGen.stems`.
    """
    quiet = lambda done, rounds: None  # noqa: E731
    how = {"seed": clip.seed, "callback": quiet, "loop": args.loop, "window": args.window}
    stems = stems_of(clip.prompt, audio=sound[None], **how)
    return {
        file: encode_clip(replace(clip, file=file.as_posix()), stems[stem][0], {**about, "stem": stem}, args)
        for stem, file in stem_paths(clip.path, clip.prompt).items()
    }


def foreign_stem(path: Path) -> FileExistsError:
    return FileExistsError(
        f"{plain(path)} is there and is not a stem of that clip: choose another name, or move it away."
    )
