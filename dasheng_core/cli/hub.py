"""Requests to a hub of model files. The only code of this project that uses the network by itself.

Nothing that a server sends is trusted: where it redirects to, what it reports of a file, how much it sends, how slowly.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from queue import Empty, SimpleQueue
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..quoting import plain

T = TypeVar("T")

DEFAULT_ENDPOINT = "https://huggingface.co"
BYTES_AT_ONCE = 1 << 18
# Seconds for the headers of an answer, and for each CHUNK of its body: 4.4 kB per second are enough.
PATIENCE = 60.0
REDIRECTS = 10


class DownloadError(Exception):
    """Why a file could not be fetched, and what to do."""


class Hub:
    """Requests to one endpoint and to where it redirects.

    Raises DownloadError where the endpoint is no plain web address, or HF_TOKEN no token. Neither is quoted: both can be
    secret.
    """

    def __init__(self, endpoint: str):
        self.endpoint = endpoint.rstrip("/")
        wrong = _not_an_address(self.endpoint)
        if wrong or "?" in endpoint or "#" in endpoint:
            raise DownloadError(
                f"The --endpoint (or HF_ENDPOINT) {wrong or 'has a ? or #'}: give one such as {DEFAULT_ENDPOINT}; what "
                "identifies you to the hub goes into HF_TOKEN."
            )
        self._token = os.environ.get("HF_TOKEN", "").strip()
        if not re.fullmatch("[!-~]*", self._token):
            raise DownloadError(
                "HF_TOKEN holds a space, a line break or another character that no token has: set it to the token alone, or "
                "unset it."
            )
        self._opener = build_opener(_NoRedirects)

    def describe(self, url: str, optional: bool = False) -> tuple[int | None, str] | None:
        """A file's size in bytes, and its SHA-256 (64 digits) or git's blob SHA-1 (40 digits); None and "" where it does not say.

        None for an optional file that is not there.
        """
        try:
            with self._open(url, "HEAD", stop_at="X-Linked-Size") as answer:
                headers = answer.headers
        except HTTPError as error:
            error.close()
            if error.code == 404 and optional:
                return None
            raise _refusal(url, error) from error
        # Large files lie on another server; these two headers are the hub's own.
        size = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
        tag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").strip().removeprefix("W/").strip('"')
        return (
            int(size) if re.fullmatch("[0-9]{1,15}", size) else None,
            tag if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", tag) else "",
        )

    @contextmanager
    def read(self, url: str, start: int, size: int) -> Iterator[tuple[Iterator[bytes], int]]:
        """The bytes of a file of ``size`` from byte ``start`` on, and where they really start: at 0 if it cannot skip.

        Never more than ``size`` bytes, whatever the server sends.
        """
        try:
            answer = self._open(url, "GET", {"Range": f"bytes={start}-"} if start else {})
        except HTTPError as error:
            error.close()
            if error.code == 416 and start:
                with self.read(url, 0, size) as anew:
                    yield anew
                return
            raise _refusal(url, error) from error
        start = _check_body(url, answer, start, size)
        yield _chunks(url, answer, size - start), start
        # Not after an error or Ctrl-C: a thread that still reads holds the answer, and this would wait for it.
        answer.close()

    def _open(
        self, url: str, method: str, headers: dict[str, str] | None = None, stop_at: str | None = None
    ) -> HTTPResponse:
        """Follow redirects to an answer, or to one that has the header ``stop_at``; the token stays at the endpoint."""
        asked = url
        for _ in range(REDIRECTS):
            request = Request(url, method=method, headers={"User-Agent": "dasheng-audiogen", **(headers or {})})
            if self._token and urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]:
                request.add_header("Authorization", f"Bearer {self._token}")
            answer = _patiently(url, self._opener.open, request, None, PATIENCE)
            if answer.status not in (301, 302, 303, 307, 308) or (stop_at and stop_at in answer.headers):
                return answer
            answer.close()
            url = _redirected(url, answer.headers.get("Location", ""))
        raise DownloadError(
            f"{shown_address(asked)}: redirected more than {REDIRECTS} times; try again later, or another --endpoint."
        )


class _NoRedirects(HTTPRedirectHandler):
    """Redirects come back as answers: their headers count, and the token must not follow them."""

    def http_error_302(self, request, answer, code, message, headers):
        return answer

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def shown_address(url: str) -> str:
    """A web address for a message, without what can be a secret in it: a user, a password, and what follows a ``?``."""
    try:
        parts = urlsplit(url)
        return plain(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")), 300)
    except ValueError:
        return "an address that is none"


def _not_an_address(url: str) -> str:
    """What keeps ``url`` from being the address of a web server; "" if nothing does. Quotes none of it."""
    try:
        parts = urlsplit(url)
        secret = "@" in parts.netloc
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        secret = whole = False
    if secret:
        return "has a user or a password in it"
    return "" if whole and re.fullmatch("[!-~]+", url) else "is not a web address"


def _redirected(url: str, location: str) -> str:
    try:
        new = urljoin(url, location)
        wrong = _not_an_address(new) if location else "it does not name"
    except ValueError:
        wrong = "is not a web address"
    if wrong:
        raise DownloadError(
            f"{shown_address(url)}: the server redirects to an address that {wrong}: try again later, or another --endpoint."
        )
    if urlsplit(url).scheme == "https" != urlsplit(new).scheme:
        raise DownloadError(
            f"{shown_address(url)}: the server redirects from https to http, where others can change what comes: try another "
            "--endpoint."
        )
    return new


def _check_body(url: str, answer: HTTPResponse, start: int, size: int) -> int:
    """Where the body starts: ``start``, or 0 if all comes. Raise DownloadError where it is not the rest of the file."""
    sent, asked = answer.headers.get("Content-Range"), f"bytes {start}-{size - 1}/{size}"
    wrong = ""
    if answer.status == 206 and sent not in (asked, asked.replace(f"/{size}", "/*")):
        wrong = f'sends the range "{plain(sent)}", and "{asked}" was asked for'
    elif answer.status not in (200, 206):
        wrong = f"answered {answer.status} {plain(answer.reason)}, and 200 or 206 was expected"
    elif (coding := answer.headers.get("Content-Encoding", "identity").strip().lower()) not in ("identity", ""):
        wrong = f'sends it packed as "{plain(coding)}", and the bytes as they are were asked for'
    start = start if answer.status == 206 else 0
    length = answer.headers.get("Content-Length")
    if not wrong and length is not None and length.strip() != str(size - start):
        wrong = f"sends {plain(length)} bytes, and {size - start} were expected"
    if wrong:
        raise DownloadError(f"{shown_address(url)}: the server {wrong}: try again later, or another --endpoint.")
    return start


def _chunks(url: str, answer: HTTPResponse, left: int) -> Iterator[bytes]:
    while left and (chunk := _patiently(url, answer.read, min(BYTES_AT_ONCE, left))):
        left -= len(chunk)
        yield chunk


def _patiently(url: str, work: Callable[..., T], *arguments: Any) -> T:
    """What ``work`` gives, if it does within PATIENCE seconds: a socket's own timeout restarts with each byte.

    A thread that came too late ends with the process.
    """
    done: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((work(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the thread that asked
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=PATIENCE)
    except Empty:
        error = TimeoutError(f"too little came in {PATIENCE:g} seconds")
    if error is None:
        return result
    if not isinstance(error, (OSError, HTTPException, ValueError)) or isinstance(error, HTTPError):
        raise error
    reason = getattr(error, "reason", None) or str(error) or type(error).__name__
    if isinstance(error, (InvalidURL, ValueError)):
        reason = "an address is not right: of the server, or of a proxy"  # the error quotes it, with what is secret
    raise DownloadError(
        f"{shown_address(url)}: the connection failed ({plain(reason)}): run the same command again, it goes on."
    ) from error


def _refusal(url: str, error: HTTPError) -> DownloadError:
    token, gone = "set HF_TOKEN to a token that may read it", "the file is not there; look at the --endpoint"
    hint = {401: token, 403: token, 404: gone}.get(error.code, "try again later")
    return DownloadError(f"{shown_address(url)}: the server answered {error.code} {plain(error.reason)}: {hint}.")
