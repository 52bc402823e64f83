"""What the app shows at a node while it runs: warnings, progress in words, and errors by their sentence alone."""

import functools
import logging
import re
from collections.abc import Callable, Hashable

from comfy_execution.utils import get_executing_context

from ..dasheng_core.quoting import MESSAGE, plain, plain_lines

# Letters of all that stands at a node.
MOST = 50_000
# Two letters without width or glyph. The first is white space to what reads Markdown, but at the start of a message a
# decoder drops it as a byte order mark; the second stays.
JOINER = "\ufeff\u2060"
# Frontend 1.32 puts texts into innerHTML, 1.49 keeps links and line breaks, 1.58 escapes: an element, an entity, a link
# [[label|address]] and what stands for it meanwhile, and addresses that become links. In Nodes 2.0 all three read Markdown:
# a line that is a heading, a list or a table by its start, emphasis, [label](address) and ![picture](address), escapes.
_MARKUP = re.compile(
    r"^(?=[^\w\n]|\d+[.)](?:\s|$))|<|&(?=[#a-z])|\[(?=\[)|_(?=LNK)|:(?=//)|www(?=\.)"
    r"|[*~]|(?<![^\W_])_|\](?=[(\[:])|\\(?=[!-/:-@\[-`{-~]|$)|(?<=[\w.+-])@",
    re.IGNORECASE | re.MULTILINE,
)


def inert(text: str) -> str:
    """``text`` as every frontend shows it letter by letter: a joiner breaks what one of them takes for markup."""
    # Nothing without a glyph breaks `code`: its sign becomes its twin. Markdown ends a line at two spaces.
    text = text.replace("`", "\u02cb").replace("\n", "  \n")
    return _MARKUP.sub(lambda start: start[0] + JOINER, text)


class NodeText(logging.Handler):
    """Writes the pack's warnings under the node that runs, and below them what it is doing."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self._run: Hashable = None
        self._warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # Handlers behind this one write to ComfyUI's terminal.
        record.msg, record.args = plain(record.getMessage(), MESSAGE), ()
        self.show(record.msg, warning=True)

    def show(self, text: str, warning: bool = False) -> None:
        """Send a text of one or several lines to the window that queued; other clients have other graphs."""
        context = get_executing_context()
        if context is None:
            return
        # Where a node runs there is a server; whoever uses the loaders alone need not have one.
        from server import PromptServer

        if self._run != context:
            self._run, self._warnings = context, []
        if warning and text not in self._warnings:
            self._warnings.append(text)
        server = PromptServer.instance
        # A client that announced no features takes every binary message for a picture.
        if not server.sockets_metadata.get(server.client_id, {}).get("feature_flags"):
            return
        text = "\n".join(self._warnings if warning else [*self._warnings, text])[:MOST]
        server.send_progress_text(inert(plain_lines(text)), context.node_id, server.client_id)


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
            # The log writes what an error came from, too, in the words of libraries, which quote as they like.
            raise ValueError(plain(error, MESSAGE)).with_traceback(error.__traceback__) from None

    return wrapped
