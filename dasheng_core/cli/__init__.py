"""The command line: ``dasheng generate --caption "..." -o rain.wav``, or ``python -m dasheng_core``."""

import argparse
import logging
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..progress import AboveTheBar
from ..quoting import MESSAGE, plain
from . import batch, download, generate, repack
from .hub import DownloadError
from .stopping import came, interruptible

log = logging.getLogger("dasheng_core")

# Arguments that are paths.
PLACES = (
    "scenes",
    "prompts",
    "timeline",
    "audiogen",
    "text_encoder",
    "audio_tokenizer",
    "output",
    "manifest",
    "models",
)


def main(argv: list[str] | None = None) -> int:
    handler = AboveTheBar()
    handler.addFilter(each_warning_once())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        with interruptible():
            args = at_home(build_parser().parse_args(argv))
            args.run(args)
    except BaseException as error:
        # After a signal, whatever ends the run is the stop.
        if came or isinstance(error, KeyboardInterrupt):
            log.error("Stopped.")
            return 128 + (came[0] if came else signal.SIGINT)
        if isinstance(error, (DownloadError, ValueError, OSError)):
            log.error("%s", plain(error, MESSAGE))
            return 1
        raise
    return 0


class Parser(argparse.ArgumentParser):
    """What it refuses is shown so that it cannot act on the terminal; for a text that begins with a dash it says what to write."""

    def error(self, message: str) -> NoReturn:
        # argparse takes such a text for an option.
        if match := re.match(r"argument (?:-\w/)?(--[\w-]+): expected (?:one|at least one) argument", message):
            message += f"; a text that begins with a dash is written {match[1]}='-...'"
        super().error(plain(message, MESSAGE))


def at_home(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with ``~`` as the user's folder, which no shell writes for it within quotes or behind ``=``."""
    for name in PLACES:
        place = getattr(args, name, None)
        if isinstance(place, (str, Path)):
            setattr(args, name, type(place)(os.path.expanduser(place)))
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dasheng", description="Dasheng-AudioGen without ComfyUI.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module, names, what in (
        (generate, ["generate"], "make clips from prompts"),
        (batch, ["batch"], "make clips from a file of thousands of scenes, on one machine or on Ray"),
        (download, ["download"], "fetch the published files into a ComfyUI models folder"),
        (repack, ["repack", "fold"], "write an audio generator's checkpoint as one smaller file"),
    ):
        module.add_arguments(commands.add_parser(names[0], aliases=names[1:], help=what))
    return parser


def each_warning_once() -> Callable[[logging.LogRecord], bool]:
    """A filter of log records: a warning about a prompt is logged once, however many clips are made of it."""
    said = set()

    def is_new(record: logging.LogRecord) -> bool:
        key = record.levelno == logging.WARNING and record.getMessage()
        new = not key or key not in said
        said.add(key)
        return new

    return is_new
