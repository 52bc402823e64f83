"""One page beside the sounds of a batch, to hear them and to pick: ``page.html`` with their data, as escaped JSON, in it.

It needs no network and no server.
"""

import base64
import io
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import torch
import torch.nn.functional as F

from ..audio_tokenizer.spectral import picture_mel
from ..prompt import parse_prompt
from ..quoting import plain
from .manifest import Entry
from .storage import NO_FILE, Storage

TEMPLATE = Path(__file__).with_name("page.html")
MOST_SOUNDS = 10_000
# Sounds that are read at the same time.
SOUND_READERS = 8
# Cells of a spectrogram, the dB of its 16 levels, and the least level of its loudest cell.
SIZE, RANGE_DB, LEAST_DB = (96, 32), 70.0, -20.0
ON_PAGE = ("scene", "file", "sha256", "seed", "seconds", "loudness", "peak", "clipped", "verdict")


def check_page(page: Path, sounds: int, storage: Storage) -> None:
    """Raise ValueError for more sounds than a page holds, FileExistsError where ``page`` is something else."""
    if sounds > MOST_SOUNDS:
        raise ValueError(
            f"--page holds at most {MOST_SOUNDS} sounds, and these are {sounds}: split the file of scenes."
        )
    size, mark = storage.size(page), TEMPLATE.read_bytes().partition(b"\n")[0]
    if size is not None and (size == NO_FILE or not storage.read(page).startswith(mark)):
        raise FileExistsError(f"{plain(page)} is there and is no page of a batch: move it away, or leave --page out.")


def write_page(page: Path, lines: Iterable[Entry], loop: bool, storage: Storage) -> None:
    """Write the page of these lines of a manifest, in their order. Raises OSError where a sound cannot be read."""
    lines = list(lines)
    scenes: dict[int, dict[str, Any]] = {}
    sounds: list[dict[str, Any]] = []
    with ThreadPoolExecutor(SOUND_READERS) as readers:
        for line, picture in zip(lines, readers.map(partial(_picture, storage), lines), strict=True):
            prompt, file = line["prompt"], PurePosixPath(line["file"])
            prompts = [prompt] if isinstance(prompt, str) else [text for _, text in prompt["entries"]]
            said = {"caption": parse_prompt(prompts[0])["caption"], "prompt": "\u2002".join(prompts), "sounds": []}
            scenes.setdefault(line["scene"], said)["sounds"].append(len(sounds))
            path = file.relative_to(page.parent.as_posix()).as_posix()
            sound = {"name": file.stem, "path": path, "picture": picture}
            sounds.append(sound | {key: line.get(key) for key in ON_PAGE})
    text = json.dumps({"title": page.stem, "loop": loop, "size": SIZE, "scenes": scenes, "sounds": sounds})
    # Only these can end a script element, or begin another.
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    storage.write(page, TEMPLATE.read_text("utf-8").replace("@DATA@", text).encode(), replace=True)


def _picture(storage: Storage, line: Entry) -> str:
    """The mel spectrogram of a sound from the highest band to the lowest, two cells in a byte, in base64."""
    samples, rate = soundfile.read(io.BytesIO(storage.read(Path(line["file"]))), dtype="float32", always_2d=True)
    mel = picture_mel(torch.from_numpy(samples).mean(dim=1)[None], rate, SIZE[1])[0].flip(0)
    mel = F.adaptive_max_pool1d(mel, SIZE[0])
    share = 1 + (mel - max(mel.max().item(), LEAST_DB)) / RANGE_DB
    cells = (15 * share.clamp(min=0)).round().to(torch.uint8).flatten()
    return base64.b64encode((16 * cells[::2] + cells[1::2]).numpy().tobytes()).decode()
