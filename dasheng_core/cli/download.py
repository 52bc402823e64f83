"""The published files -> a ComfyUI ``models`` folder.

A file is fetched as ``<name>.part`` beside its place and renamed when its checksum is right. A part that was
interrupted stays, with the version it belongs to in ``<name>.part.etag``, and the next run goes on from its end.
The library huggingface_hub would do all this, but since version 2 it starts an interrupted file again from byte 0.
"""

import argparse
import hashlib
import logging
import os
import shlex
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..progress import progress_bar
from ..quoting import plain
from .hub import BYTES_AT_ONCE, DEFAULT_ENDPOINT, DownloadError, Hub, shown_address

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A file of a hub repository and its place in a ``models`` folder. ``optional``: not every version has it."""

    repository: str
    name: str
    place: str
    optional: bool = False


@dataclass(frozen=True)
class Known:
    """One version of a published file: the repository's commit, the size in bytes, the SHA-256 in hexadecimal."""

    revision: str
    size: int
    sha256: str


# Empty: the published files were not at hand when this was written, so the newest version is fetched and compared with
# the size and checksum that the server names. What stands here, by repository and name, is fetched in this version only
# and compared with these:
#     ("google/flan-t5-large", "config.json"): Known("<commit>", 123, "<SHA-256>"),
KNOWN: dict[tuple[str, str], Known] = {}

# Side files come before their weights, so that weights a loader lists always have them.
AUDIO_TOKENIZER_FILES = (
    Published("mispeech/dashengtokenizer", "config.json", "vae/dashengtokenizer.config.json"),
    Published("mispeech/dashengtokenizer", "model.safetensors", "vae/dashengtokenizer.safetensors"),
)
ENGLISH_FILES = (
    Published("mispeech/Dasheng-AudioGen", "config.json", "diffusion_models/dasheng_audiogen.config.json"),
    Published("mispeech/Dasheng-AudioGen", "tokenizer.json", "diffusion_models/dasheng_audiogen.tokenizer.json", True),
    Published("mispeech/Dasheng-AudioGen", "model.safetensors", "diffusion_models/dasheng_audiogen.safetensors"),
    Published("google/flan-t5-large", "config.json", "text_encoders/flan_t5_large.config.json"),
    Published("google/flan-t5-large", "tokenizer.json", "text_encoders/flan_t5_large.tokenizer.json"),
    Published("google/flan-t5-large", "model.safetensors", "text_encoders/flan_t5_large.safetensors"),
)
_MULTILINGUAL = "mispeech/Dasheng-AudioGen-Multilingual"
MULTILINGUAL_FILES = (
    Published(_MULTILINGUAL, "config.json", "diffusion_models/dasheng_audiogen_multilingual.config.json"),
    Published(_MULTILINGUAL, "tokenizer.json", "diffusion_models/dasheng_audiogen_multilingual.tokenizer.json", True),
    Published(_MULTILINGUAL, "model.safetensors", "diffusion_models/dasheng_audiogen_multilingual.safetensors"),
    Published("google/mt5-large", "config.json", "text_encoders/mt5_large.config.json"),
    Published("google/mt5-large", "spiece.model", "text_encoders/mt5_large.spiece.model"),
    Published("google/mt5-large", "pytorch_model.bin", "text_encoders/mt5_large.bin"),
)


def run(args: argparse.Namespace) -> None:
    """Fetch the published files of the chosen models, the English one by default."""
    endpoint = args.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    download_models(args.models, args.english or not args.multilingual, args.multilingual, endpoint)


@dataclass(frozen=True)
class Item:
    """A file at the hub and its place ``path``.

    Attributes:
        size: in bytes.
        checksum: its SHA-256 (64 digits) or git's blob SHA-1 (40 digits), which the hub gives for small files.
        kept: bytes that need not be fetched.
    """

    url: str
    path: Path
    size: int
    checksum: str
    kept: int = 0

    @property
    def left(self) -> int:
        return self.size - self.kept

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

    Raises DownloadError where there is no such folder, no connection, a missing file, one of no or of a wrong checksum, or a full
    disk. What was fetched stays, and another run goes on from there.
    """
    if not models.is_dir():
        raise DownloadError(
            f"{plain(models, 300)} is not a folder: give the models folder of ComfyUI, or make this one first."
        )
    if (models / "models").is_dir():
        raise DownloadError(
            f"{plain(models, 300)} holds a folder models: give that one, {plain(models / 'models', 300)}."
        )
    hub = Hub(endpoint)
    wanted = (ENGLISH_FILES if english else ()) + (MULTILINGUAL_FILES if multilingual else ()) + AUDIO_TOKENIZER_FILES
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


def _look_up(hub: Hub, file: Published, models: Path) -> Item | None:
    """A file to fetch, or None if it is there or not needed; logs what will be done."""
    item = _describe(hub, file, models)
    if item is None:
        log.info("%10s  %s: %s has none, and needs none", "-", file.place, file.repository)
        return None
    for path in (item.path, item.part, item.part_etag):
        # Reading a pipe would wait for a writer.
        if path.exists() and not path.is_file():
            raise DownloadError(f"{plain(path, 300)} is there and is not a file: move it away.")
    if item.path.exists():
        size = item.path.stat().st_size
        found, expected = f"{size} bytes", f"{item.size} bytes"
        if size == item.size:
            found, expected = f"checksum {_checksum(item.path, item)}", f"checksum {item.checksum}"
        if found != expected:
            raise DownloadError(
                f"{plain(item.path, 300)} is there with {found}, but {shown_address(item.url)} has {expected}: it is another file. "
                "Move it away to fetch this one."
            )
        log.info("%10s  %s: already there", _bytes(size), file.place)
        return None
    if item.part.exists() and item.part_etag.exists() and item.part_etag.read_bytes() == item.checksum.encode():
        kept = item.part.stat().st_size
        if kept <= item.size:
            item = replace(item, kept=kept)
    more = f" (goes on after {_bytes(item.kept)})" if item.kept else ""
    log.info("%10s  %s <- %s%s", _bytes(item.size), file.place, shown_address(item.url), more)
    return item


def _describe(hub: Hub, file: Published, models: Path) -> Item | None:
    """A file's size and checksum; None for an optional one that is not there."""
    known = KNOWN.get((file.repository, file.name))
    url = f"{hub.endpoint}/{file.repository}/resolve/{known.revision if known else 'main'}/{file.name}"
    named = hub.describe(url, file.optional)
    if named is None:
        return None
    size, checksum = named
    if known:
        if size not in (None, known.size) or (len(checksum) == 64 and checksum != known.sha256):
            raise DownloadError(
                f"{shown_address(url)}: the server has {size} bytes with checksum {checksum or 'unknown'}, and the published file "
                f"has {known.size} with {known.sha256}: try another --endpoint."
            )
        size, checksum = known.size, known.sha256
    if size is None or not checksum:
        raise DownloadError(
            f"{shown_address(url)}: the server names no {'checksum' if size is not None else 'size'} of it, so the "
            f"bytes cannot be checked: use an --endpoint that does, as {DEFAULT_ENDPOINT} does."
        )
    return Item(url, models / file.place, size, checksum)


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
                f"{plain(folder, 300)} has {_bytes(free)} free, but {_bytes(need)} are to be fetched: make room, or give --models "
                "on another disk."
            )


def _fetch(hub: Hub, item: Item) -> None:
    try:
        with _disk(item.part):
            item.path.parent.mkdir(parents=True, exist_ok=True)
        if item.left or not item.part.exists():
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
    with hub.read(item.url, item.kept, item.size) as (chunks, start):
        with (
            _disk(item.part),
            open(item.part, "ab" if start else "wb") as file,
            progress_bar(item.path.name, item.size, done=start) as update,
        ):
            item.part_etag.write_text(item.checksum, "utf-8")
            for chunk in chunks:
                file.write(chunk)
                update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    size = item.part.stat().st_size
    if size < item.size:
        raise DownloadError(
            f"{shown_address(item.url)}: the connection ended after {_bytes(size)} of {_bytes(item.size)}: run the same command "
            "again, it goes on from there."
        )


def _verify(item: Item) -> None:
    """Compare the part with the checksum; a wrong one is deleted."""
    found = _checksum(item.part, item)
    if found != item.checksum:
        item.part.unlink()
        item.part_etag.unlink(missing_ok=True)
        raise DownloadError(
            f"{shown_address(item.url)}: got checksum {found}, expected checksum {item.checksum}. It was deleted: run the command again."
        )


def _checksum(path: Path, item: Item) -> str:
    """The checksum of a file, of the kind that ``item`` has."""
    digest = hashlib.sha256() if len(item.checksum) == 64 else hashlib.sha1(b"blob %d\0" % item.size)
    with open(path, "rb") as file, progress_bar(f"checking {item.path.name}", item.size) as update:
        while chunk := file.read(BYTES_AT_ONCE):
            digest.update(chunk)
            update(len(chunk))
    return digest.hexdigest()


@contextmanager
def _disk(path: Path):
    try:
        yield
    except OSError as error:
        raise DownloadError(
            f"{plain(path, 300)} could not be written ({error.strerror}): make room or give another folder, then run the command "
            "again; it goes on where it stopped."
        ) from error


def _bytes(size: int) -> str:
    """``size`` in the decimal units in which the hub and disks give theirs."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"
