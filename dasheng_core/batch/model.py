"""The model of a run: loaded as its options say, and a digest that identifies it."""

import argparse
import hashlib
import os
from pathlib import Path

from ..opening import open_file
from ..pipeline import DashengAudioGen
from ..tensors import DTYPES
from ..weights.checkpoint import A_TEXT_ENCODER, AN_AUDIO_TOKENIZER, AN_AUDIOGEN, files_of, name_taker
from ..weights.parts import open_parts

Model = dict[str, str]
CHECKPOINT_OPTIONS = ("audiogen", "text-encoder", "audio-tokenizer")
# Which option takes a checkpoint of which kind.
TAKERS = {AN_AUDIOGEN: "--audiogen", A_TEXT_ENCODER: "--text-encoder", AN_AUDIO_TOKENIZER: "--audio-tokenizer"}
# A file up to this size is read whole. Of a larger one the header and so many evenly spread blocks are read.
READ_WHOLE, HEADER_BYTES, SAMPLES, SAMPLE_BYTES = 2**25, 2**20, 64, 2**12


def load_model(args: argparse.Namespace) -> DashengAudioGen:
    try:
        with name_taker(TAKERS):
            files = args.audiogen, args.text_encoder, args.audio_tokenizer
            return DashengAudioGen.from_pretrained(*files, args.device, DTYPES[args.dtype], args.compile)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} The options are {', '.join(TAKERS.values())}.") from error


def fingerprint_model(args: argparse.Namespace) -> Model | None:
    """A digest of each checkpoint's files, by the option that names it; None where a file is not on this machine.

    The name and time of a file do not change it. Of a large file it reads a megabyte and 64 blocks of 4 kB.
    """
    try:
        parts = open_parts(args.audiogen, args.text_encoder, args.audio_tokenizer)
        return {name: _digest(part.path) for name, part in zip(CHECKPOINT_OPTIONS, parts, strict=True)}
    except (OSError, ValueError, ImportError):
        # The worker that loads the model raises the error.
        return None


def _digest(checkpoint: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in files_of(checkpoint):
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            is_large = size > READ_WHOLE
            digest.update(f"{size} ".encode())
            digest.update(file.read(HEADER_BYTES if is_large else size))
            for i in range(SAMPLES if is_large else 0):
                file.seek(HEADER_BYTES + i * (size - HEADER_BYTES - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
