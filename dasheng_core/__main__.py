"""``python -m dasheng_core``, and the console script ``dasheng``."""

import os
import signal
import sys


def main() -> int:
    """Run the command line. Importing it takes seconds, in which Ctrl-C would end as a traceback."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _stop_at_once)
    from .cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _stop_at_once(*_) -> None:
    os.write(2, b"Stopped.\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
