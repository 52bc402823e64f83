"""The command line: ``dasheng generate --caption "..." -o rain.wav``, or ``python -m dasheng_core``."""

import logging
import signal
from collections.abc import Callable
from importlib import import_module

from ..progress import AboveTheBar
from ..quoting import MESSAGE, plain
from .arguments import build_parser
from .hub import DownloadError
from .stopping import came, interruptible

log = logging.getLogger("dasheng_core")


def main(argv: list[str] | None = None) -> int:
    handler = AboveTheBar()
    handler.addFilter(each_warning_once())
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        with interruptible():
            args = build_parser().parse_args(argv)
            # Only now is torch imported, and what else the command needs.
            import_module(f".{args.command}", __name__).run(args)
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


def each_warning_once() -> Callable[[logging.LogRecord], bool]:
    """A filter of log records: a warning about a prompt is logged once, however many clips are made of it."""
    logged = set()

    def is_new(record: logging.LogRecord) -> bool:
        key = record.levelno == logging.WARNING and record.getMessage()
        new = not key or key not in logged
        logged.add(key)
        return new

    return is_new
