"""``dasheng repack``: an audio generator's checkpoint as one smaller file."""

import argparse

from ..repack import repack_checkpoint
from ..weights.parts import locate


def run(args: argparse.Namespace) -> None:
    repack_checkpoint(locate(args.audiogen), args.output, args.dtype)
