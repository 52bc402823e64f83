"""The command line: ``dasheng generate --caption "..." -o rain.wav``, or ``python -m dasheng_core``."""

import argparse
import logging
import signal
from collections.abc import Callable
from contextlib import contextmanager

from ..progress import AboveTheBar
from . import batch, download, generate, repack

log = logging.getLogger("dasheng_core")


class Terminated(KeyboardInterrupt):
    """SIGTERM or a closed terminal: stop as for Ctrl-C, with an exit code of its own."""


def main(argv: list[str] | None = None) -> int:
    handler = AboveTheBar()
    handler.addFilter(each_warning_once())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        with terminated_as_interrupted():
            args = build_parser().parse_args(argv)
            args.run(args)
    except (download.DownloadError, ValueError, OSError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt as stop:
        log.error("Stopped.")
        return 128 + (stop.args[0] if isinstance(stop, Terminated) else signal.SIGINT)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dasheng", description="Dasheng-AudioGen without ComfyUI.")
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


@contextmanager
def terminated_as_interrupted():
    """While it lasts, SIGTERM and SIGHUP raise :class:`Terminated`, so that they clean up as Ctrl-C does."""

    def stop(number, frame):
        raise Terminated(number)

    # Windows has no SIGHUP; nohup has it ignored.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
