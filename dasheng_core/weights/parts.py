"""Where the three checkpoints of a model lie: folders, files, or repositories in the hub's local cache."""

import os
from functools import partial
from pathlib import Path

from ..quoting import plain
from .checkpoint import Checkpoint, open_checkpoint
from .config import AUDIO_TOKENIZER_TYPES, AUDIOGEN_TYPES, TEXT, TEXT_ENCODER_TYPES, config_value

AUDIO_TOKENIZER_NAME = "mispeech/dashengtokenizer"


def open_parts(
    audiogen: str | Path, text_encoder: str | Path | None, audio_tokenizer: str | Path | None
) -> tuple[Checkpoint, Checkpoint, Checkpoint]:
    """The three checkpoints of a model, opened; arguments and errors as of :meth:`DashengAudioGen.from_pretrained`."""
    audiogen = locate(audiogen)
    if (audiogen / "audiogen").is_dir():
        text_encoder = text_encoder or audiogen / "text_encoder"
        audio_tokenizer = audio_tokenizer or audiogen / "audio_tokenizer"
        audiogen = audiogen / "audiogen"
    generator = open_checkpoint(audiogen, AUDIOGEN_TYPES)
    named = partial(config_value, generator, expected=TEXT)
    text_encoder = text_encoder or named("text_encoder_name", "")
    if not text_encoder:
        raise FileNotFoundError(
            f"{plain(generator.path)} has no config.json that names its text_encoder: give the folder or file of that one too."
        )
    t5 = open_checkpoint(locate(text_encoder), TEXT_ENCODER_TYPES)
    codec = open_checkpoint(
        locate(audio_tokenizer or named("tokenizer_name", AUDIO_TOKENIZER_NAME)), AUDIO_TOKENIZER_TYPES
    )
    return generator, t5, codec


def locate(name: str | Path) -> Path:
    """A path as it is; the id of a hub repository as its folder in the local cache.

    Raises FileNotFoundError where neither exists.
    """
    path = Path(name)
    if os.path.exists(path):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{plain(path)} is neither a path nor a hub repository in the local cache: give the folder or file of the checkpoint."
        ) from error
