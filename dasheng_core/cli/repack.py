"""``dasheng repack``: an audio generator's checkpoint as one smaller file."""

import argparse
import logging
from pathlib import Path

from ..pipeline import locate
from ..weights.repack import FORMS, repack_checkpoint

log = logging.getLogger(__name__)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    command.add_argument("audiogen", metavar="AUDIOGEN", help="a folder, a file, or a repository in the local cache")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the .safetensors to make")
    command.add_argument(
        "--dtype",
        choices=FORMS,
        default="bf16",
        help="of the backbone (default %(default)s, 4.4 GB; fp8 2.2 GB, and less exact; fp32 8.7 GB)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the repacked form of an audio generator's checkpoint."""
    if args.command == "fold":
        log.warning("fold is called repack now; the old name works too.")
    repack_checkpoint(locate(args.audiogen), args.output, args.dtype)
