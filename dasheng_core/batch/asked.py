"""The digest of a clip: two clips with the same one have the same prompt, seed, length, options and model."""

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..control.timeline import Timeline
from ..delivery.file_notes import as_json
from ..delivery.formats import choose_format
from ..options import DEFAULT_OPTIONS, DISTANCES, SamplingOptions
from .rows import split_root


def sampling_options(args: argparse.Namespace) -> SamplingOptions:
    """Raises ValueError for options no schedule can have."""
    return SamplingOptions(**{field.name: getattr(args, field.name) for field in fields(SamplingOptions)})


def recipe_of(args: argparse.Namespace, model: Mapping[str, str] | None) -> str:
    """All that clips of one run have in common and that changes their bytes."""
    # An option that a later version adds changes no digest while it has its default; a graph repeats a step to the last bit.
    given = asdict(replace(sampling_options(args), graphs=False))
    options = {name: value for name, value in given.items() if value != DEFAULT_OPTIONS[name]}
    common = {
        "format": choose_format(Path(split_root(args.output)[1]), args.format),
        "emphasis": args.emphasis or {},
        "dtype": args.dtype,
        "model": model,
        **({"stems": True} if args.stems else {}),
        **({"apart": args.apart} if tuple(args.apart) != DISTANCES else {}),
        **options,
    }
    return json.dumps(common, sort_keys=True)


def digest_of(
    recipe: str,
    prompt: str | Timeline,
    seed: int,
    seconds: float | None,
    negative: str | None = None,
    delivery: Mapping[str, Any] | None = None,
) -> str:
    """``delivery``: what its own line says of the file, and not of the sound."""
    parts = [recipe, as_json(prompt), seed, seconds, *([] if negative is None else [negative])]
    parts += [dict(delivery)] if delivery else []
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
