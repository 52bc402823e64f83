"""``python -m dasheng_core``, and the console script ``dasheng``."""

import os
import signal
import sys


def main() -> int:
    """Run the command line. Before it there are seconds of imports, and after it Ray ends: Ctrl-C is no traceback there."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
    from .cli import main as run

    return run()


def stop_at_once(number: int, *_: object) -> None:
    os.write(2, b"Stopped.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
