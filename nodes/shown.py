"""What the app shows at a node while it runs: warnings, progress in words, and errors by their sentence alone."""

import functools
import logging
from collections.abc import Callable, Hashable

from comfy_execution.utils import get_executing_context


class NodeText(logging.Handler):
    """Writes the pack's warnings under the node that runs, and below them what it is doing."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self._run: Hashable = None
        self._warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.show(record.getMessage(), warning=True)

    def show(self, text: str, warning: bool = False) -> None:
        context = get_executing_context()
        if context is None:
            return
        # Where a node runs there is a server; whoever uses the loaders alone need not have one.
        from server import PromptServer

        if self._run != context:
            self._run, self._warnings = context, []
        if warning and text not in self._warnings:
            self._warnings.append(text)
        lines = self._warnings if warning else [*self._warnings, text]
        PromptServer.instance.send_progress_text("\n".join(lines), context.node_id)


_text = NodeText()
show = _text.show


def show_warnings() -> None:
    """From now on the warnings of the pack are shown at the node that runs, and in the log as before."""
    ours = logging.getLogger(__package__.rpartition(".")[0])
    if _text not in ours.handlers:
        ours.addHandler(_text)


def plain_errors(execute: Callable) -> Callable:
    """The app writes an error's class before its sentence: ours, with its module's path, does not help its user."""

    @functools.wraps(execute)
    def wrapped(*args, **kwargs):
        try:
            return execute(*args, **kwargs)
        except ValueError as error:
            raise ValueError(str(error)) from error

    return wrapped
