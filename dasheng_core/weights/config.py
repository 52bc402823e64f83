"""The config of a checkpoint: sizes from its tensors, the rest from its ``config.json``, both checked.

A config value must agree with the tensors' shapes. A value in neither of them is the published
one, except head counts, which are refused rather than guessed for a width that was never published.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from ..prompt import SPECIAL_TOKENS
from ..quoting import plain
from .checkpoint import Checkpoint
from .published import SPECIAL_TOKEN_TABLE as TABLE

# The ``model_type`` values of the three checkpoints' config.json.
AUDIOGEN_TYPES = ("dasheng_audiogen",)
TEXT_ENCODER_TYPES = ("t5", "mt5")
AUDIO_TOKENIZER_TYPES = ("dashengtokenizer",)

# Forms of the network that config.json can name; only these were published.
PUBLISHED_FORMS = {
    "sample_rate": SAMPLE_RATE,
    "downsampling_ratio": SAMPLES_PER_FRAME,
    "dit_patch_size": 1,
    "dit_input_type": "1d",
    "dit_time_fusion": "ada",
    "dit_rope_mode": "shared",
    "dit_context_fusion": "cross",
    "dit_context_norm": True,
    "dit_context_pe_method": "none",
    "dit_pe_method": "none",
    "dit_ta_context_fusion": "add",
    "dit_ta_context_norm": True,
    "dit_qk_norm": "layernorm",
    "dit_norm_layer": "layernorm",
    "dit_act_layer": "geglu",
}


def _size(tensor: str, rank: int, dimension: int, *keys: str) -> dict[str, Any]:
    """Where a size stands in a tensor's shape, and the keys of config.json that name it too."""
    return {"tensor": (tensor, rank, dimension), "keys": keys}


def _blocks(key: str, *prefixes: str) -> dict[str, Any]:
    """The prefixes of numbered modules, whose number is a size, and its key in config.json."""
    return {"prefixes": prefixes, "keys": (key,)}


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the backbone, each read from its tensors."""

    latent_dim: int = field(
        metadata=_size("backbone.patch_embed.proj.weight", 3, 1, "latent_dim", "dit_in_chans", "dit_out_chans")
    )
    embed_dim: int = field(metadata=_size("backbone.patch_embed.proj.weight", 3, 0, "dit_embed_dim"))
    depth: int = field(metadata=_blocks("dit_depth", "backbone.in_blocks.", "backbone.out_blocks."))
    num_heads: int
    mlp_dim: int = field(metadata=_size("backbone.mid_block.mlp.net.2.weight", 2, 1))
    context_dim: int = field(metadata=_size("backbone.context_embed.0.weight", 2, 1, "dit_context_dim"))
    ta_context_dim: int = field(
        metadata=_size("backbone.mid_block.ta_context_projection.weight", 2, 1, "dit_ta_context_dim")
    )

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "BackboneConfig":
        sizes = _sizes(cls, checkpoint)
        width, (head_dim,) = sizes["embed_dim"], tensor_shape(checkpoint, "backbone.mid_block.attn.norm_q.weight", 1)
        if width % head_dim:
            raise checkpoint.error(f"heads of width {head_dim} do not divide the width {width}.")
        config = cls(num_heads=width // head_dim, **sizes)
        check_config({"dit_num_heads": config.num_heads, "dit_mlp_ratio": config.mlp_dim / width}, checkpoint)
        return config


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes and constants of the text side of an audio generator: projection, content adapter, clip length."""

    content_dim: int = field(metadata=_size("instruction_embedding", 3, 2, "content_dim", "task_instruction_dim"))
    num_heads: int
    instruction_seq_len: int = field(metadata=_size("instruction_embedding", 3, 1, "instruction_seq_len"))
    use_zero_instruction: bool
    duration_offset: float
    max_tokens: int
    special_tokens: tuple[str, ...]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "AdapterConfig":
        sizes = _sizes(cls, checkpoint)
        tokens = tensor_shape(checkpoint, TABLE, 2)[0] if TABLE in checkpoint.shapes else 0
        # The one multilingual checkpoint published has a row for each of the six tags.
        special_tokens = tuple(config_value(checkpoint, "special_tokens", SPECIAL_TOKENS[:tokens], TEXTS))
        if len(special_tokens) != tokens:
            lacks = "" if tokens else ", or the file lacks part of the text side: use the published or a repacked one"
            raise checkpoint.error(
                f"special_tokens has {len(special_tokens)} entries, but {TABLE} has {tokens} rows: config.json "
                f"belongs to another checkpoint{lacks}."
            )
        return cls(
            **sizes,
            num_heads=_head_count(checkpoint, "adapter_num_heads", sizes["content_dim"], published_width=1024),
            use_zero_instruction=config_value(checkpoint, "use_zero_instruction", False, FLAG),
            duration_offset=config_value(checkpoint, "duration_offset", 1.0, NUMBER),
            max_tokens=config_value(checkpoint, "tokenizer_max_length", 512, whole(2)),
            special_tokens=special_tokens,
        )


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the audio tokenizer's decoder."""

    latent_dim: int = field(metadata=_size("upsampler.weight", 3, 0, "embed_dim"))
    dim: int = field(metadata=_size("decoder.backbone.embed.weight", 3, 0, "decoder_embed_dim"))
    depth: int = field(metadata=_blocks("decoder_depth", "decoder.backbone.convnext."))
    intermediate_dim: int = field(
        metadata=_size("decoder.backbone.convnext.0.pwconv1.weight", 2, 0, "decoder_intermediate_size")
    )
    n_fft: int
    hop_length: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "DecoderConfig":
        sizes = _sizes(cls, checkpoint)
        stride = tensor_shape(checkpoint, "upsampler.weight", 3)[2]
        # A magnitude and a phase for each frequency.
        n_fft = tensor_shape(checkpoint, "decoder.head.out.weight", 2)[0] - 2
        check_config({"istft_n_fft": n_fft, "upsample_tokens": stride}, checkpoint)
        hop_length = config_value(checkpoint, "istft_hop", SAMPLES_PER_FRAME // stride, whole(0))
        if hop_length * stride != SAMPLES_PER_FRAME:
            raise checkpoint.error(
                f"istft_hop {hop_length} x upsample_tokens {stride} is not the {SAMPLES_PER_FRAME} samples "
                "of a latent frame: config.json belongs to another model."
            )
        return cls(n_fft=n_fft, hop_length=hop_length, **sizes)


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the audio tokenizer's encoder."""

    embed_dim: int = field(metadata=_size("encoder.model.patch_embed.proj.weight", 4, 0, "embed_dim"))
    depth: int = field(metadata=_blocks("depth", "encoder.model.blocks."))
    num_heads: int
    mlp_dim: int = field(metadata=_size("encoder.model.blocks.0.mlp.fc1.weight", 2, 0))
    semantic_mels: int = field(metadata=_size("encoder.model.patch_embed.proj.weight", 4, 2))
    acoustic_mels: int = field(metadata=_size("encoder.patch_embed.weight", 4, 2, "n_mels_patch"))
    patch_frames: int = field(metadata=_size("encoder.model.patch_embed.proj.weight", 4, 3))
    window_patches: int = field(metadata=_size("encoder.model.time_pos_embed", 4, 3))
    hop_length: int

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> "EncoderConfig":
        if not _count(checkpoint, "encoder."):
            raise checkpoint.error("it holds a decoder only: to encode audio, use the published dashengtokenizer.")
        sizes = _sizes(cls, checkpoint)
        heads = _head_count(checkpoint, "num_heads", sizes["embed_dim"], published_width=1280)
        config = cls(num_heads=heads, hop_length=SAMPLES_PER_FRAME // sizes["patch_frames"], **sizes)
        check_config({"hop_length": config.hop_length}, checkpoint)
        return config


def _sizes(kind: type, checkpoint: Checkpoint) -> dict[str, Any]:
    """The sizes of a config that tensors have, once ``config.json`` agrees with them."""
    sizes = {}
    for size in fields(kind):
        if "tensor" in size.metadata:
            tensor, rank, dimension = size.metadata["tensor"]
            sizes[size.name] = tensor_shape(checkpoint, tensor, rank)[dimension]
        elif "prefixes" in size.metadata:
            sizes[size.name] = sum(_count(checkpoint, prefix) for prefix in size.metadata["prefixes"])
    named = {key: sizes[size.name] for size in fields(kind) for key in size.metadata.get("keys", ())}
    check_config(named, checkpoint)
    return sizes


def check_published_forms(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError when ``config.json`` names a form of the network that was never published."""
    for key, published in PUBLISHED_FORMS.items():
        value = (checkpoint.config or {}).get(key, published)
        if value != published:
            raise checkpoint.error(
                f"{key} is {plain(repr(value))} in config.json; only {published!r} was ever published and is computed here."
            )


def tensor_shape(checkpoint: Checkpoint, name: str, rank: int) -> tuple[int, ...]:
    """The shape of tensor ``name``, of ``rank`` dimensions, none of them 0. Raises CheckpointError if it has another."""
    checkpoint.require(name)
    shape = checkpoint.shapes[name]
    if len(shape) != rank or 0 in shape:
        raise checkpoint.error(
            f"tensor {plain(name)} has shape {plain(list(shape))}, expected {rank} dimensions, none of them 0."
        )
    return tuple(shape)


def whole(lowest: int) -> tuple[str, Callable[[Any], bool]]:
    """What :func:`config_value` expects: a whole number."""
    return f"a whole number from {lowest}", lambda value: type(value) is int and lowest <= value < 2**31


TEXT = "a text", lambda value: isinstance(value, str)
FLAG = "true or false", lambda value: isinstance(value, bool)
NUMBER = "a number", lambda value: type(value) in (int, float) and math.isfinite(value)
TEXTS = (
    "a list of different texts",
    lambda value: (
        isinstance(value, list | tuple)
        and all(isinstance(text, str) and text for text in value)
        and len({*value}) == len(value)
    ),
)


def config_value(checkpoint: Checkpoint, key: str, default, expected: tuple[str, Callable[[Any], bool]]):
    """The value of ``key`` in the checkpoint's config, or ``default``.

    Args:
        expected: a description of the values that are allowed, and their test.

    Raises CheckpointError for another.
    """
    value = (checkpoint.config or {}).get(key, default)
    description, holds = expected
    if not holds(value):
        raise checkpoint.error(f"{key} is {plain(repr(value))} in config.json, expected {description}.")
    return value


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    """How many numbered modules follow ``prefix``."""
    return len({name[len(prefix) :].split(".")[0] for name in checkpoint.shapes if name.startswith(prefix)})


def check_config(sizes: Mapping[str, object], checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where ``config.json`` contradicts the tensors' sizes."""
    for key, value in sizes.items():
        given = (checkpoint.config or {}).get(key, value)
        if given != value:
            raise checkpoint.error(
                f"{key} is {plain(repr(given))} in config.json, but the tensors say {value}: one is another checkpoint's."
            )


def _head_count(checkpoint: Checkpoint, key: str, width: int, published_width: int) -> int:
    """No tensor has these two head counts as a size; the published checkpoints have 16."""
    if key not in (checkpoint.config or {}) and width != published_width:
        raise checkpoint.error(f"tensors of width {width} do not give {key}: put config.json beside them.")
    heads = config_value(checkpoint, key, 16, whole(1))
    if width % heads:
        raise checkpoint.error(f"{key} {heads} does not divide the width {width}.")
    return heads
