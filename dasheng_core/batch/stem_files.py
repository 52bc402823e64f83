"""The stems of a clip as files beside it: ``NAME.wav`` has ``NAME.sfx.wav`` and others, with its notes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ..control.stems import aspect_prompts
from ..control.timeline import Timeline, prompts_of
from ..delivery.audio_file import encode_audio
from ..delivery.file_notes import with_notes
from ..duration import SAMPLE_RATE
from ..quoting import plain


def stem_paths(path: Path, prompt: str | Timeline) -> dict[str, Path]:
    """The files of a clip's stems, by aspect. Raises ValueError for a prompt of a caption alone."""
    return {stem: path.with_suffix(f".{stem}{path.suffix}") for stem in aspect_prompts(prompts_of(prompt))}


class Separates(Protocol):
    def stems(self, prompts: str | Timeline, **given: Any) -> dict[str, Tensor]: ...


def encode_stems(
    model: Separates,
    path: Path,
    sound: Tensor,
    file_format: str | None,
    about: Mapping[str, Any],
    prompt: str | Timeline,
    options: Mapping[str, Any],
) -> dict[Path, bytes]:
    """The files of the stems of a clip ``[samples]``; ``about`` is what its own comment says, and ``options`` how it was sampled."""
    how = {name: options[name] for name in ("loop", "window")}
    stems = model.stems(prompt, audio=sound[None], seed=about["seed"], callback=lambda done, rounds: None, **how)
    loop = len(sound) if options["loop"] else None
    files = {}
    for stem, file in stem_paths(path, prompt).items():
        encoded = encode_audio(file, stems[stem][0], SAMPLE_RATE, file_format)
        files[file] = with_notes(encoded, path.suffix.lower(), {**about, "stem": stem}, prompt, loop)
    return files


def foreign_stem(path: Path) -> FileExistsError:
    return FileExistsError(
        f"{plain(path)} is there and is not a stem of that clip: choose another name, or move it away."
    )
