"""The names of the published tensors: which part reads them, which a file may lack, and why. The one table of them."""

import re
from typing import NamedTuple

BACKBONE = "backbone."
ADAPTER = "content_adapter."
LOCAL_DURATIONS = ADAPTER + "duration_predictor."
INSTRUCTION, INSTRUCTION_LENGTHS = "instruction_embedding", "instruction_lengths"
PROJECTION = "content_encoder.text_encoder."
SPECIAL_TOKEN_TABLE = PROJECTION + "special_token_embedding.weight"
ENCODER = "encoder."


class Names(NamedTuple):
    """The tensors whose names start with ``prefix``.

    Attributes:
        part: what reads them; None: nothing does.
        absent: why a file may lack them; None: it may not.
    """

    prefix: str
    part: str | None
    absent: str | None = None


AUDIOGEN = (
    Names(BACKBONE, "backbone"),
    Names("dummy_ta_embed", "backbone"),
    Names(ADAPTER, "content adapter"),
    Names(LOCAL_DURATIONS, None, "local durations are not read; repacked files leave them out"),
    Names(INSTRUCTION, "content adapter"),
    Names(INSTRUCTION_LENGTHS, "content adapter", "GGUF files leave it out; the whole instruction counts then"),
    Names(PROJECTION, "text encoder"),
    Names(SPECIAL_TOKEN_TABLE, "text encoder", "the English model has no special tokens"),
    Names("dummy_nta_embed", None, "it is for other tasks than text-to-audio"),
    Names("dummy_param", None, "it is for other tasks than text-to-audio"),
)
TEXT_ENCODER = (
    Names("encoder.", "text encoder"),
    Names("shared.", "text encoder", "encoder.embed_tokens.weight is the same table"),
)
AUDIO_TOKENIZER = (
    Names("upsampler.", "decoder"),
    Names("decoder.", "decoder"),
    Names(ENCODER, "encoder", "a file with a decoder alone decodes and cannot encode"),
)
# Constants that checkpoints carry and that are computed here: any file may lack them.
DERIVED = re.compile(
    r"\.rotary\.inv_freq$|\.istft\.window$|\.mel_scale\.fb$|\.spectrogram\.window$|\.num_batches_tracked$"
)
# In front of the keys of config.json among the metadata of a GGUF file.
GGUF_CONFIG = "dasheng_audiogen."


def prefixes(table: tuple[Names, ...], part: str | None) -> tuple[str, ...]:
    """What the names of one part's tensors start with."""
    return tuple(names.prefix for names in table if names.part == part)
