"""``dasheng remake``: the sound of a file made again, by what its comment says and by the same checkpoints."""

import argparse
import io
import json
import logging
from typing import Any

import soundfile
import torch
from torch import Tensor

from ..batch.jobs import MOST_BYTES, Clip, jobs_to_do, make_scene
from ..batch.model import fingerprint_model, load_model
from ..batch.sets import SetMaker
from ..control.emphasis import as_emphasis
from ..delivery.file_notes import read_about
from ..delivery.formats import FORMATS, choose_format
from ..delivery.library_tags import LibraryTags
from ..inputs import as_choice, as_int, as_text
from ..opening import explained, read_file
from ..options import BACKBONE_DTYPES, DEFAULT_OPTIONS, DISTANCES, SamplingOptions
from ..quoting import plain
from ..tensors import as_device
from .generate import make_sound, write_clip

log = logging.getLogger(__name__)

ANOTHER_FILE = "it does not say how it was made, expected a file of dasheng generate or dasheng batch, of this version"


def run(args: argparse.Namespace) -> None:
    """Make the sound of ``args.file``, compare it with what is there, and write it where ``args.output`` says."""
    as_device(args.device)
    with explained(f"{plain(args.file)} cannot be read", "name a sound of dasheng generate or dasheng batch"):
        encoded = read_file(args.file, MOST_BYTES)
    try:
        clip = read_clip(args, read_about(encoded))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{plain(args.file)} cannot be made again: {ANOTHER_FILE}.") from error
    except ValueError as error:
        raise ValueError(f"{plain(args.file)} cannot be made again: {error}") from error
    if args.output:
        choose_format(clip.path, args.format)
        jobs_to_do([clip], resume=False)
    model = load_model(args)
    _, sound = make_sound(model, args, clip, args.file.name, SetMaker(DISTANCES))
    if args.output:
        write_clip(args, clip, sound, model)
    log.info("%s", compared(sound, encoded, args))


def read_clip(args: argparse.Namespace, about: dict[str, Any]) -> Clip:
    """The clip that a file's comment asks for; ``args`` gets the options that it names.

    Raises ValueError for a comment of another program, other checkpoints, or a value that no clip has; KeyError, TypeError or
    AttributeError for what is no such comment.
    """
    if "made_by" not in about and isinstance(about.get("prompt"), dict):
        raise ValueError(
            "ComfyUI saved it: drop the .json beside it onto ComfyUI, which opens its graph, and queue that."
        )
    if "stem" in about:
        raise ValueError("it is a stem: name the file of its clip, whose stems are made with it.")
    if "variation" in about:
        raise ValueError("it is one of a set of variations: make its line again, by dasheng batch --remake.")
    recipe = dict(about["recipe"])
    args.recipe = json.dumps(recipe)
    del recipe["format"]
    recipe.pop("apart", None)
    check_model(args, recipe.pop("model"))
    args.format = as_choice(about["format"], "format", FORMATS)
    args.dtype = as_choice(recipe.pop("dtype"), "dtype", BACKBONE_DTYPES)
    args.emphasis, args.stems = as_emphasis(recipe.pop("emphasis")), bool(recipe.pop("stems", False))
    for name, value in {**DEFAULT_OPTIONS, **recipe}.items():
        setattr(args, name, tuple(value) if isinstance(value, list) else value)
    SamplingOptions(**{**DEFAULT_OPTIONS, **recipe})
    prompt, timeline = about["prompt"], {}
    if isinstance(prompt, dict):
        timeline = {"timeline": prompt["entries"], "fade": prompt["fade"]}
    aspects = {"prompt": None if timeline else as_text(prompt, "prompt")}
    scene = make_scene(aspects, about["seed"], about["seconds"], negative=about.get("negative"), **timeline)
    take = as_int(about["take"], "take", 1, 10**6, "it counts the takes of a scene")
    asked, tags = as_text(about["asked"], "asked"), LibraryTags(**about["tags"])
    given: dict[str, Any] = {"negative": scene.negative, "take": take, "tags": tags}
    return Clip(1, scene.prompt, about["seed"], about["seconds"], args.output or args.file.name, asked, **given)


def check_model(args: argparse.Namespace, model: dict[str, str]) -> None:
    """Raise ValueError where the checkpoints given are not those of the file, by their fingerprints."""
    mine = fingerprint_model(args) or {}
    for part, digest in model.items():
        if mine.get(part, digest) != digest:
            raise ValueError(
                f"it was made by another --{plain(part)} (fingerprint {plain(digest)}, not {mine[part]}): name the file by which "
                "it was made."
            )


def compared(sound: Tensor, encoded: bytes, args: argparse.Namespace) -> str:
    """How far a sound ``[samples]`` is from the one in a file."""
    there = torch.from_numpy(soundfile.read(io.BytesIO(encoded), dtype="float32", always_2d=True)[0][:, 0])
    if there.shape != sound.shape:
        return f"{plain(args.file)} has {len(there)} samples, and {len(sound)} were made: it was changed after it was made."
    # A file of whole numbers has no peaks beyond full scale.
    most = (there - (sound if args.format == "wav32" else sound.clamp(-1, 1))).abs().max().item()
    return f"{plain(args.file)} ({args.format}) was made again: the largest difference is {most:.1e} of full scale."
