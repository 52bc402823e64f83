"""T5 or mT5 encoder (transformers), with the generator's projection on top.

Dimensions: B batch, S tokens, X width of the encoder (d_model).
"""

from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

try:
    from transformers import T5Config, T5EncoderModel
except (ImportError, OSError, RuntimeError):
    # transformers 5 imports an installed torchaudio even if it does not load: report it as missing.
    transformers.utils.is_torchaudio_available = lambda: False  # type: ignore[attr-defined]
    from transformers import T5Config, T5EncoderModel

from .quoting import plain
from .tokenizer import SceneTokenizer
from .weights import published
from .weights.checkpoint import ANOTHER, Checkpoint, StoredTensor
from .weights.config import NUMBER, AdapterConfig, check_config, config_value, tensor_shape, whole
from .weights.loading import load_weights
from .weights.reading import CheckpointError
from .weights.tokenizer_files import TOKENIZER_FILES

FINAL_NORM = "encoder.final_layer_norm.weight"
# T5 and flan-T5 share one table; mT5's is longer.
T5_TABLE_ROWS = 32128


class TextEncoder(nn.Module):
    """Token ids -> projected features.

    Runs in bfloat16 or float32, never float16, in which T5's activations overflow.
    """

    def __init__(self, config: T5Config, content_dim: int, special_token_ids: list[int], device=None, dtype=None):
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"The text encoder runs in float32 or bfloat16, not {dtype}: T5 overflows in float16.")
        with torch.device(device or "cpu"):
            self.t5 = T5EncoderModel(config).to(dtype)
            self.proj = nn.Linear(config.d_model, content_dim, dtype=dtype)
            self.special_token_embedding = nn.Embedding(len(special_token_ids), config.d_model, dtype=dtype)
        self.special_token_ids = special_token_ids

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            input_ids: ``[B, S]`` int64.
            mask: ``[B, S]``, non-zero for real tokens.

        Returns:
            The encoder's last hidden state and its projection, both ``[B, S, X]``.
        """
        hidden = self.t5(inputs_embeds=self._embed(input_ids), attention_mask=mask).last_hidden_state
        return hidden, self.proj(hidden)

    def _embed(self, input_ids: Tensor) -> Tensor:
        table = self.t5.get_input_embeddings()
        if not self.special_token_ids:
            return table(input_ids)
        ids = torch.tensor(self.special_token_ids, device=input_ids.device)
        is_special = input_ids[..., None] == ids
        # The tokenizer may number special tokens beyond the encoder's table.
        ordinary = table(input_ids.masked_fill(is_special.any(-1), 0))
        special = self.special_token_embedding(is_special.int().argmax(-1))
        return torch.where(is_special.any(-1, keepdim=True), special, ordinary)


def load_text_encoder(
    encoder: Checkpoint, audiogen: Checkpoint, adapter: AdapterConfig, fallback_tokenizer: Path | None = None
) -> tuple[SceneTokenizer, TextEncoder]:
    """Load the encoder half of a T5 checkpoint, the projection of an audio generator, and the tokenizer of either.

    Args:
        fallback_tokenizer: T5's tokenizer.json, for an encoder with T5's table and no tokenizer beside it.

    Raises:
        CheckpointError: not a T5 encoder, one of another width than the generator was trained with, or a
            tokenizer of another model.
        FileNotFoundError: no tokenizer.
        ImportError: only spiece.model is there and the sentencepiece package is not.
    """
    config = _encoder_config(encoder)
    is_t5 = config.vocab_size == T5_TABLE_ROWS
    if config.d_model != adapter.content_dim:
        raise CheckpointError(
            f"{plain(encoder.path)}: this text encoder is {config.d_model} wide, but {plain(audiogen.path)} was trained with one of "
            f"width {adapter.content_dim}: use the one its config.json names (flan-t5-large for the English model, "
            "mt5-large for the multilingual one)."
        )
    file = _find_tokenizer(encoder, audiogen, fallback_tokenizer if is_t5 else None)
    tokenizer = SceneTokenizer(file, adapter.special_tokens, adapter.max_tokens, config.vocab_size)
    if tokenizer.file.size > config.vocab_size:
        raise CheckpointError(
            f"{plain(file)} has {tokenizer.file.size} tokens, more than the {config.vocab_size} of {plain(encoder.path)}: "
            "it belongs to another text encoder."
        )
    dtype = torch.bfloat16 if encoder.tensor(FINAL_NORM).dtype == torch.bfloat16 else torch.float32
    module = TextEncoder(config, adapter.content_dim, tokenizer.file.special_token_ids, device="meta", dtype=dtype)
    weights: dict[str, StoredTensor | Tensor] = {
        "t5." + name: encoder.tensor(name)
        for name in encoder.under(*published.prefixes(published.TEXT_ENCODER, "text encoder"))
    }
    # Both names stand for the same table; files carry one or the other.
    shared, embedded = "t5.shared.weight", "t5.encoder.embed_tokens.weight"
    weights[shared] = weights[embedded] = weights[shared if shared in weights else embedded]
    weights |= {
        name.removeprefix(published.PROJECTION): audiogen.tensor(name) for name in audiogen.under(published.PROJECTION)
    }
    if not adapter.special_tokens:
        weights["special_token_embedding.weight"] = torch.empty(0, config.d_model, dtype=dtype, device="cpu")
    load_weights(module, weights, encoder, beside=audiogen)
    return tokenizer, module


def _find_tokenizer(encoder: Checkpoint, audiogen: Checkpoint, fallback: Path | None) -> Path:
    """``tokenizer.json`` or ``spiece.model``: the generator's own, the text encoder's, or the fallback."""
    own = audiogen.beside("tokenizer.json", in_shared_folder=False)
    theirs = (encoder.beside(name, in_shared_folder=True) for name in TOKENIZER_FILES)
    found = own or next(filter(None, theirs), fallback)
    if found is None:
        raise FileNotFoundError(
            f"{plain(encoder.path)} has no tokenizer: put tokenizer.json (or spiece.model) beside it."
        )
    return found


def _encoder_config(encoder: Checkpoint) -> T5Config:
    source, shapes = plain(encoder.path), encoder.shapes
    if "token_embd.weight" in shapes:
        raise CheckpointError(
            f"{source} is a text encoder in llama.cpp's GGUF form, which is not read here: use the published "
            "model.safetensors (or .bin) of flan-t5-large or mt5-large."
        )
    table = "shared.weight" if "shared.weight" in shapes else "encoder.embed_tokens.weight"
    bias, query = (f"encoder.block.0.layer.0.SelfAttention.{name}.weight" for name in ("relative_attention_bias", "q"))
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    if not {table, bias, gated} <= set(shapes):
        kind = None if query in shapes else encoder.other_kind()
        found = (
            f"is {kind}, expected {ANOTHER}"
            if kind
            else "is not a T5 v1.1 text encoder, expected one like flan-t5-large or mt5-large"
        )
        raise CheckpointError(f"{plain(encoder.path.name)} {found} ({source}).")
    vocab_size, d_model = tensor_shape(encoder, table, 2)
    buckets, heads = tensor_shape(encoder, bias, 2)
    width, _ = tensor_shape(encoder, query, 2)
    if width % heads:
        raise CheckpointError(f"{source}: {heads} heads do not divide the width {width} of {query}.")
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": tensor_shape(encoder, gated, 2)[0],
        "num_layers": len({name.split(".")[2] for name in encoder.under("encoder.block.")}),
        "num_heads": heads,
        "d_kv": width // heads,
        "relative_attention_num_buckets": buckets,
    }
    check_config(sizes, encoder)
    distance = config_value(encoder, "relative_attention_max_distance", 128, whole(buckets // 4 + 1))
    return T5Config(
        **sizes,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        layer_norm_epsilon=config_value(encoder, "layer_norm_epsilon", 1e-6, NUMBER),
        relative_attention_max_distance=distance,
        use_cache=False,
    )
