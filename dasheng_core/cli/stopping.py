"""Ctrl-C, SIGTERM and a closed terminal: they end a command at any moment, each with its exit code."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

# The signals that came. Their KeyboardInterrupt is not enough: what it breaks off may raise another error in its place, as
# Ray does, and C code that calls Python drops it.
came: list[int] = []


def stop_at_once(number: int, *_: object) -> None:
    os.write(2, b"Stopped.\n")
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """While it lasts, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, except signals that the caller ignores; a third one exits at once."""

    def stop(number, frame):
        came.append(number)
        if len(came) == 1:
            raise KeyboardInterrupt
        # The second does not interrupt the clean-up: coreutils' timeout, for one, sends each signal twice.
        if len(came) > 2:
            stop_at_once(number)

    came.clear()
    # Windows has no SIGHUP; nohup has it ignored.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
