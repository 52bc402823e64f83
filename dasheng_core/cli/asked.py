"""What is asked of a clip, as one digest: two clips that have the same one are asked of the same model in the same words."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from ..audio_file import choose_format
from ..control.timeline import Timeline
from ..file_notes import as_json
from ..opening import open_file
from ..pipeline import open_parts
from ..sampling import SamplingOptions
from ..weights.checkpoint import files_of
from .rows import split_root

Model = dict[str, str]
DEFAULTS = asdict(SamplingOptions())
# A file up to this size is read whole. Of a larger one its header and so many blocks, evenly spread, stand for it.
WHOLE, HEADER, BLOCKS, BLOCK = 2**25, 2**20, 64, 2**12


def fingerprint_model(args: argparse.Namespace) -> Model | None:
    """A digest of each checkpoint's files, by the option that names it; None where a file is not on this machine.

    Another name or time of a file does not change it. Takes 0.2 s for the published files.
    """
    try:
        parts = open_parts(args.audiogen, args.text_encoder, args.audio_tokenizer)
        return {name: _digest(part.path) for name, part in zip(PARTS, parts, strict=True)}
    except (OSError, ValueError, ImportError):
        # The worker that loads the model says what is wrong with it.
        return None


PARTS = ("audiogen", "text-encoder", "audio-tokenizer")


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """Raises ValueError for options no schedule can have."""
    return SamplingOptions(**{field.name: getattr(args, field.name) for field in fields(SamplingOptions)})


def recipe_of(args: argparse.Namespace, model: Mapping[str, str] | None) -> str:
    """All that clips of one run have in common and that changes their bytes."""
    # An option that comes with a later version changes nothing where it is left at its default.
    options = {name: value for name, value in asdict(sampling_options(args)).items() if value != DEFAULTS[name]}
    said = {
        "format": choose_format(Path(split_root(args.output)[1]), args.format),
        "emphasis": args.emphasis or {},
        "dtype": args.dtype,
        "model": model,
        **options,
    }
    return json.dumps(said, sort_keys=True)


def digest_of(recipe: str, prompt: str | Timeline, seed: int, seconds: float | None) -> str:
    return hashlib.sha256(json.dumps([recipe, as_json(prompt), seed, seconds]).encode()).hexdigest()[:32]


def _digest(checkpoint: Path) -> str:
    found = hashlib.blake2b(digest_size=8)
    for path in files_of(checkpoint):
        with open_file(path) as file:
            size = file.seek(0, 2)
            found.update(f"{size} ".encode())
            starts = (
                [0]
                if size <= WHOLE
                else [0, *(HEADER + i * (size - HEADER - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS))]
            )
            for start in starts:
                file.seek(start)
                found.update(file.read(size if size <= WHOLE else BLOCK if start else HEADER))
    return found.hexdigest()
