"""``python -m dasheng_core``, and the console script ``dasheng``."""

import signal
import sys

from .cli import main as run
from .cli.stopping import stop_at_once


def main() -> int:
    """Run the command line. Ray ends after it: Ctrl-C is no traceback there."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop_at_once)
    return run()


if __name__ == "__main__":
    sys.exit(main())
