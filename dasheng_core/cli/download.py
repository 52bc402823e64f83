"""The published files -> a ComfyUI ``models`` folder. The only code of this project that uses the network.

A file is fetched as ``<name>.part`` beside its place and moved there when its checksum is right. A part that was
interrupted stays, with the version it belongs to in ``<name>.part.etag``, and the next run goes on from its end.
The library huggingface_hub would do all this, but since version 2 it begins an interrupted file anew.
"""

import argparse
import hashlib
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ..progress import progress_bar

log = logging.getLogger(__name__)

DEFAULT_ENDPOINT = "https://huggingface.co"
CHUNK = 1 << 20
TIMEOUT = 60
REDIRECTS = 10


class DownloadError(Exception):
    """Why a file could not be fetched, and what to do."""


@dataclass(frozen=True)
class Published:
    """A file of a hub repository and its place in a ``models`` folder. ``optional``: not every version has it."""

    repository: str
    name: str
    place: str
    optional: bool = False


# Side files come before their weights, so that weights a loader lists always have them.
AUDIO_TOKENIZER = (
    Published("mispeech/dashengtokenizer", "config.json", "vae/dashengtokenizer.config.json"),
    Published("mispeech/dashengtokenizer", "model.safetensors", "vae/dashengtokenizer.safetensors"),
)
ENGLISH = (
    Published("mispeech/Dasheng-AudioGen", "config.json", "diffusion_models/dasheng_audiogen.config.json"),
    Published("mispeech/Dasheng-AudioGen", "tokenizer.json", "diffusion_models/dasheng_audiogen.tokenizer.json", True),
    Published("mispeech/Dasheng-AudioGen", "model.safetensors", "diffusion_models/dasheng_audiogen.safetensors"),
    Published("google/flan-t5-large", "config.json", "text_encoders/flan_t5_large.config.json"),
    Published("google/flan-t5-large", "tokenizer.json", "text_encoders/flan_t5_large.tokenizer.json"),
    Published("google/flan-t5-large", "model.safetensors", "text_encoders/flan_t5_large.safetensors"),
)
_MULTILINGUAL = "mispeech/Dasheng-AudioGen-Multilingual"
MULTILINGUAL = (
    Published(_MULTILINGUAL, "config.json", "diffusion_models/dasheng_audiogen_multilingual.config.json"),
    Published(_MULTILINGUAL, "tokenizer.json", "diffusion_models/dasheng_audiogen_multilingual.tokenizer.json", True),
    Published(_MULTILINGUAL, "model.safetensors", "diffusion_models/dasheng_audiogen_multilingual.safetensors"),
    Published("google/mt5-large", "config.json", "text_encoders/mt5_large.config.json"),
    Published("google/mt5-large", "spiece.model", "text_encoders/mt5_large.spiece.model"),
    Published("google/mt5-large", "pytorch_model.bin", "text_encoders/mt5_large.bin"),
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    command.add_argument(
        "--models", type=Path, required=True, metavar="FOLDER", help="ComfyUI's models folder, or another"
    )
    command.add_argument("--english", action="store_true", help="the English model (the default)")
    command.add_argument("--multilingual", action="store_true", help="the multilingual model; both with --english")
    command.add_argument(
        "--endpoint",
        default=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
        metavar="URL",
        help="where the hub is, if not in HF_ENDPOINT (now %(default)s); HF_TOKEN is sent there, and nowhere else",
    )


def run(args: argparse.Namespace) -> None:
    """Fetch the published files of the chosen models, the English one by default."""
    download_models(args.models, args.english or not args.multilingual, args.multilingual, args.endpoint)


@dataclass(frozen=True)
class Item:
    """A file at the hub and its place ``path``.

    Attributes:
        size: in bytes; None if the hub does not say.
        etag: its version, a checksum or any other tag; "" without one.
        kept: bytes that need not be fetched.
    """

    url: str
    path: Path
    size: int | None
    etag: str
    kept: int = 0

    @property
    def left(self) -> int:
        return (self.size or 0) - self.kept

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def part_etag(self) -> Path:
        return self.path.with_name(self.path.name + ".part.etag")


def download_models(models: Path, english: bool, multilingual: bool, endpoint: str = DEFAULT_ENDPOINT) -> None:
    """Log what is missing and how large it is, fetch it, and check every file.

    Args:
        models: an existing folder; files go to ``diffusion_models``, ``text_encoders`` and ``vae`` in it.
        endpoint: the address of the hub or of a mirror of it. The token in HF_TOKEN is sent there only.

    Raises:
        DownloadError: no such folder, no connection, a missing file, a wrong checksum, or a full disk. What was
            fetched stays, and another run goes on from there.
    """
    if not models.is_dir():
        raise DownloadError(f"{models} is not a folder: give the models folder of ComfyUI, or make this one first.")
    if (models / "models").is_dir():
        raise DownloadError(f"{models} holds a folder models: give that one, {models / 'models'}.")
    hub = Hub(endpoint)
    wanted = (ENGLISH if english else ()) + (MULTILINGUAL if multilingual else ()) + AUDIO_TOKENIZER
    missing = [item for file in wanted if (item := _look_up(hub, file, models)) is not None]
    log.info("%s to fetch.", _bytes(sum(item.left for item in missing)))
    _check_room(missing)
    for item in missing:
        _fetch(hub, item)
    for generator, encoder, chosen in (
        ("dasheng_audiogen", "flan_t5_large.safetensors", english),
        ("dasheng_audiogen_multilingual", "mt5_large.bin", multilingual),
    ):
        if chosen:
            log.info(
                "All there. ComfyUI lists the files; for the command line they are: --audiogen %s --text-encoder %s "
                "--audio-tokenizer %s",
                shlex.quote(str(models / "diffusion_models" / f"{generator}.safetensors")),
                shlex.quote(str(models / "text_encoders" / encoder)),
                shlex.quote(str(models / "vae" / "dashengtokenizer.safetensors")),
            )


class Hub:
    """Requests to one endpoint and to where it redirects."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint.rstrip("/")
        self._token = os.environ.get("HF_TOKEN", "").strip()
        self._opener = build_opener(_NoRedirects)

    def describe(self, file: Published, models: Path) -> Item | None:
        """A file's size and version; None for an optional one that is not there."""
        url = f"{self.endpoint}/{file.repository}/resolve/main/{file.name}"
        try:
            with self._open(url, "HEAD", stop_at="X-Linked-Size") as answer:
                headers = answer.headers
        except HTTPError as error:
            error.close()
            if error.code == 404 and file.optional:
                return None
            raise _refusal(url, error) from error
        # Large files lie on another server; these two headers are the hub's own.
        size = headers.get("X-Linked-Size") or headers.get("Content-Length")
        etag = headers.get("X-Linked-ETag") or headers.get("ETag") or ""
        return Item(url, models / file.place, int(size) if size else None, etag.strip().removeprefix("W/").strip('"'))

    @contextmanager
    def read(self, url: str, start: int) -> Iterator[tuple[HTTPResponse, int]]:
        """The body from byte ``start`` on and where it really starts: at 0 if the server cannot skip."""
        try:
            answer = self._open(url, "GET", {"Range": f"bytes={start}-"} if start else {})
        except HTTPError as error:
            error.close()
            raise _refusal(url, error) from error
        with answer:
            skipped = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            yield answer, int(skipped[1]) if answer.status == 206 and skipped else 0

    def _open(
        self, url: str, method: str, headers: dict[str, str] | None = None, stop_at: str | None = None
    ) -> HTTPResponse:
        """Follow redirects to an answer, or to one that has the header ``stop_at``; the token stays at the endpoint."""
        for _ in range(REDIRECTS):
            if urlsplit(url).scheme not in ("http", "https"):
                raise DownloadError(f"{url} is not a web address: give an --endpoint such as {DEFAULT_ENDPOINT}.")
            request = Request(url, method=method, headers={"User-Agent": "dasheng-audiogen", **(headers or {})})
            if self._token and urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]:
                request.add_header("Authorization", f"Bearer {self._token}")
            with _network(url):
                answer = self._opener.open(request, timeout=TIMEOUT)
            if answer.status not in (301, 302, 303, 307, 308) or (stop_at and stop_at in answer.headers):
                return answer
            answer.close()
            url = urljoin(url, answer.headers.get("Location", ""))
        raise DownloadError(f"{url}: redirected more than {REDIRECTS} times; try again later, or another --endpoint.")


class _NoRedirects(HTTPRedirectHandler):
    """Redirects come back as answers: their headers count, and the token must not follow them."""

    def http_error_302(self, request, answer, code, message, headers):
        return answer

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _look_up(hub: Hub, file: Published, models: Path) -> Item | None:
    """A file to fetch, or None if it is there or not needed; logs what will be done."""
    item = hub.describe(file, models)
    if item is None:
        log.info("%10s  %s: %s has none, and needs none", "-", file.place, file.repository)
        return None
    if item.path.exists():
        size = item.path.stat().st_size
        if item.size not in (None, size):
            raise DownloadError(
                f"{item.path} is there with {size} bytes, but {item.url} has {item.size}: it is another file. Move it away to "
                "fetch this one."
            )
        log.info("%10s  %s: already there", _bytes(size), file.place)
        return None
    known = item.part_etag.read_text("utf-8") if item.part_etag.exists() else ""
    if item.part.exists() and item.etag and known == item.etag:
        kept = item.part.stat().st_size
        if item.size is not None and kept <= item.size:
            item = replace(item, kept=kept)
    more = f" (goes on after {_bytes(item.kept)})" if item.kept else ""
    log.info("%10s  %s <- %s%s", _bytes(item.size), file.place, item.url, more)
    return item


def _check_room(items: list[Item]) -> None:
    """Raise DownloadError where a disk has not the room for what goes there; folders can be links to other disks."""
    needs: dict[int, tuple[Path, int]] = {}
    for item in items:
        folder = next(parent for parent in item.path.parents if parent.exists())
        disk = folder.stat().st_dev
        needs[disk] = folder, needs.get(disk, (folder, 0))[1] + item.left
    for folder, need in needs.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise DownloadError(
                f"{folder} has {_bytes(free)} free, but {_bytes(need)} are to be fetched: make room, or give --models "
                "on another disk."
            )


def _fetch(hub: Hub, item: Item) -> None:
    try:
        with _disk(item.part):
            item.path.parent.mkdir(parents=True, exist_ok=True)
        if item.kept == 0 or item.kept != item.size:
            _fetch_part(hub, item)
        _verify(item)
    except KeyboardInterrupt:
        if item.part.exists():
            came, whole = _bytes(item.part.stat().st_size), _bytes(item.size)
            log.error("%s of %s are kept in %s: the same command goes on from there.", came, whole, item.part)
        raise
    with _disk(item.path):
        os.replace(item.part, item.path)
        item.part_etag.unlink(missing_ok=True)


def _fetch_part(hub: Hub, item: Item) -> None:
    """Write the part file to its end."""
    with hub.read(item.url, item.kept) as (answer, start):
        if start not in (0, item.kept):
            raise DownloadError(f"{item.url}: asked for byte {item.kept} and got {start}: try again later.")
        with (
            _disk(item.part),
            open(item.part, "ab" if start else "wb") as file,
            progress_bar(item.path.name, item.size, done=start) as update,
        ):
            item.part_etag.write_text(item.etag, "utf-8")
            while chunk := _read(answer, item.url):
                file.write(chunk)
                update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = item.part.stat().st_size
    if item.size is not None and size < item.size:
        raise DownloadError(
            f"{item.url}: the connection ended after {_bytes(size)} of {_bytes(item.size)}: run the same command again, it goes "
            "on from there."
        )


def _read(answer: HTTPResponse, url: str) -> bytes:
    with _network(url):
        return answer.read(CHUNK)


def _verify(item: Item) -> None:
    """Compare the part with the size and checksum the hub gave; a wrong part is deleted.

    The hub's tag is the SHA-256 of a large file and git's blob SHA-1 of a small one.
    """
    size = item.part.stat().st_size
    found, expected = f"{size} bytes", f"{size if item.size is None else item.size} bytes"
    if re.fullmatch("[0-9a-f]{64}", item.etag):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", item.etag):
        digest = hashlib.sha1(b"blob %d\0" % size)
    else:
        digest = None
        log.info("%s: the server offered no checksum; only the length was compared.", item.path.name)
    if digest and found == expected:
        with open(item.part, "rb") as file, progress_bar(f"checking {item.path.name}", size) as update:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                update(len(chunk))
        found, expected = f"checksum {digest.hexdigest()}", f"checksum {item.etag}"
    if found != expected:
        item.part.unlink()
        item.part_etag.unlink(missing_ok=True)
        raise DownloadError(f"{item.url}: got {found}, expected {expected}. It was deleted: run the command again.")


@contextmanager
def _network(url: str):
    try:
        yield
    except HTTPError:
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        # What follows the ? of a redirect can be a key.
        raise DownloadError(
            f"{url.split('?')[0]}: the connection failed ({reason}): run the same command again, it goes on."
        ) from error


@contextmanager
def _disk(path: Path):
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{path} could not be written ({error.strerror}): make room or give another folder, then run the command "
            "again; it goes on where it stopped."
        ) from error


def _refusal(url: str, error: HTTPError) -> DownloadError:
    token, gone = "set HF_TOKEN to a token that may read it", "the file is not there; is the --endpoint right?"
    hint = {401: token, 403: token, 404: gone}.get(error.code, "try again later")
    return DownloadError(f"{url}: the server answered {error.code} {error.reason}: {hint}.")


def _bytes(size: int | None) -> str:
    """``size`` in the decimal units in which the hub and disks give theirs."""
    if size is None:
        return "? B"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"
