"""What the app shows at a node: progress while it runs; what it found and warns of, after it; errors by their sentence alone.

Results and warnings are the node's UI output, under a key of our own: ComfyUI keeps it in its history, sends it to the client that
queued, and again where it remembers the node. The app's progress text goes when a run ends. ``web/js/dasheng.js`` draws the output.
"""

import functools
import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from comfy_execution.utils import get_executing_context

from ..dasheng_core.quoting import MESSAGE, plain, plain_lines

# Letters of all that stands at a node.
MOST = 50_000
# Scripts take "text" for what was asked to be previewed, and the app shows it as a job's result where there is no other.
KEY = "dasheng_text"
# Before each warning.
SIGN = "\u26a0 "
# The message of a warning at a node of another pack or of ComfyUI, which has no UI output of ours.
EVENT = "dasheng.warning"


def said(*lines: str) -> dict[str, list[str]]:
    """The UI output of a node that found something; the warnings of its run come before it."""
    return {KEY: ["\n".join(lines)]}


class NodeText(logging.Handler):
    """Collects the pack's warnings for the node that runs."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self._collected: list[str] | None = None
        self._run: Hashable = None
        self._elsewhere: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[list[str]]:
        """The warnings of one of our nodes, each once."""
        self._collected = warnings = []
        try:
            yield warnings
        finally:
            self._collected = None

    def emit(self, record: logging.LogRecord) -> None:
        # Handlers behind this one write to ComfyUI's terminal.
        record.msg, record.args = plain(record.getMessage(), MESSAGE), ()
        context = get_executing_context()
        if context is None:
            return
        if self._run != context:
            self._run, self._elsewhere = context, []
        warnings = self._elsewhere if self._collected is None else self._collected
        if record.msg in warnings:
            return
        warnings.append(record.msg)
        if self._collected is None and (server := _server_of_client()):
            text = "\n".join(SIGN + warning for warning in warnings)[:MOST]
            server.send_sync(EVENT, {"node": context.node_id, "text": text}, server.client_id)


_texts = NodeText()


def _server_of_client():
    """The server whose client queued what runs; None without one, and for a client that knows no texts."""
    # Where a node runs there is a server; whoever uses the loaders alone need not have one.
    from server import PromptServer

    server = PromptServer.instance
    # A client that announced no features takes every binary message for a picture.
    return server if server.sockets_metadata.get(server.client_id, {}).get("feature_flags") else None


def show_progress(text: str) -> None:
    """Send a short text of our own to the window that queued; other clients have other graphs."""
    context = get_executing_context()
    if context is not None and (server := _server_of_client()):
        server.send_progress_text(text, context.node_id, server.client_id)


def step_progress() -> Callable[[int, int], None]:
    """A function of a sampling call that shows how many steps are done and, from the second on, how long the others take."""
    times: list[float] = []

    def show(done: int, steps: int) -> None:
        times.append(time.monotonic())
        text = f"{done} of {steps} steps"
        if len(times) > 1 and done < steps:
            left = (times[-1] - times[0]) / (len(times) - 1) * (steps - done)
            text += f", about {max(1, round(left))} s left" if left < 90 else f", about {round(left / 60)} min left"
        show_progress(text)

    return show


def show_warnings() -> None:
    """From now on the warnings of the pack are shown at the node that runs, and in the log as before."""
    ours = logging.getLogger(__package__.rpartition(".")[0])
    if _texts not in ours.handlers:
        ours.addHandler(_texts)


def plain_errors(execute: Callable) -> Callable:
    """The app writes an error's class before its sentence: ours, with its module's path, does not help its user."""

    @functools.wraps(execute)
    def wrapped(*args, **kwargs):
        try:
            return execute(*args, **kwargs)
        except ValueError as error:
            # The log writes what an error came from, too, in the words of libraries, which quote as they like.
            raise ValueError(plain(error, MESSAGE)).with_traceback(error.__traceback__) from None

    return wrapped


def reporting(execute: Callable) -> Callable:
    """``execute`` of a node with plain errors, and with the warnings of its run in its UI output."""
    execute = plain_errors(execute)

    @functools.wraps(execute)
    def wrapped(*args, **kwargs):
        with _texts.collect() as warnings:
            output = execute(*args, **kwargs)
        ui = output.ui or {}
        ui = ui if isinstance(ui, dict) else ui.as_dict()
        lines = [*(SIGN + warning for warning in warnings), *ui.get(KEY, ())]
        # Of a node that runs for each item of a list ComfyUI joins the outputs key by key: each needs all of them.
        output.ui = {**ui, KEY: [plain_lines("\n".join(lines))[:MOST]] if lines else []}
        return output

    return wrapped
