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
    # transformers 5 imports a torchaudio that is installed, also one that does not load: to it, there is none.
    transformers.utils.is_torchaudio_available = lambda: False
    from transformers import T5Config, T5EncoderModel

from .checkpoint import Checkpoint, load_weights
from .config import AdapterConfig, CheckpointError, check_config
from .tokenizer import TOKENIZER_FILES, SceneTokenizer

PREFIX = "content_encoder.text_encoder."
FINAL_NORM = "encoder.final_layer_norm.weight"
# T5 and flan-T5 share one table; mT5's is longer.
T5_TABLE_ROWS = 32128


class TextEncoder(nn.Module):
    """Token ids in, projected features out.

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
            f"{encoder.path}: this text encoder is {config.d_model} wide, but {audiogen.path} was trained with one of "
            f"width {adapter.content_dim}: use the one its config.json names (flan-t5-large for the English model, "
            "mt5-large for the multilingual one)."
        )
    file = _find_tokenizer(encoder, audiogen, fallback_tokenizer if is_t5 else None)
    tokenizer = SceneTokenizer(file, adapter.special_tokens, adapter.max_tokens)
    if tokenizer.file.size > config.vocab_size:
        raise CheckpointError(
            f"{file} has {tokenizer.file.size} tokens, more than the {config.vocab_size} that {encoder.path} knows: "
            "it belongs to another text encoder."
        )
    dtype = torch.bfloat16 if encoder.tensor(FINAL_NORM).dtype == torch.bfloat16 else torch.float32
    module = TextEncoder(config, adapter.content_dim, tokenizer.special_token_ids, device="meta", dtype=dtype)
    weights = {"t5." + name: encoder.tensor(name) for name in encoder.under("encoder.", "shared.")}
    # Both names stand for the same table; files carry one or the other.
    table = weights.get("t5.shared.weight", weights.get("t5.encoder.embed_tokens.weight"))
    weights["t5.shared.weight"] = weights["t5.encoder.embed_tokens.weight"] = table
    weights |= {name.removeprefix(PREFIX): audiogen.tensor(name) for name in audiogen.under(PREFIX)}
    if not adapter.special_tokens:
        weights["special_token_embedding.weight"] = torch.empty(0, config.d_model)
    load_weights(module, weights, f"{encoder.path} with {audiogen.path}")
    return tokenizer, module


def _find_tokenizer(encoder: Checkpoint, audiogen: Checkpoint, fallback: Path | None) -> Path:
    """``tokenizer.json`` or ``spiece.model``: the generator's own, the text encoder's, or the fallback."""
    own = audiogen.beside("tokenizer.json", in_shared_folder=False)
    found = own or next(
        filter(None, (encoder.beside(name, in_shared_folder=True) for name in TOKENIZER_FILES)), fallback
    )
    if found is None:
        raise FileNotFoundError(
            f"{encoder.path} has no tokenizer: put the text encoder's tokenizer.json (or spiece.model) beside its weights."
        )
    return found


def _encoder_config(encoder: Checkpoint) -> T5Config:
    table = encoder.shapes.get("shared.weight") or encoder.shapes.get("encoder.embed_tokens.weight")
    attention = "encoder.block.0.layer.0.SelfAttention."
    gated = encoder.shapes.get("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")
    if table is None or gated is None or attention + "relative_attention_bias.weight" not in encoder.shapes:
        raise CheckpointError(
            f"{encoder.path} is not a T5 v1.1 text encoder: expected shared.weight, encoder.block.*, as flan-t5-large and "
            "mt5-large have them."
        )
    buckets, heads = encoder.shapes[attention + "relative_attention_bias.weight"]
    told = {
        "vocab_size": table[0],
        "d_model": table[1],
        "d_ff": gated[0],
        "num_layers": len({name.split(".")[2] for name in encoder.under("encoder.block.")}),
        "num_heads": heads,
        "d_kv": encoder.shapes[attention + "q.weight"][0] // heads,
        "relative_attention_num_buckets": buckets,
    }
    check_config(told, encoder.config, str(encoder.path))
    given = encoder.config or {}
    return T5Config(
        **told,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        layer_norm_epsilon=given.get("layer_norm_epsilon", 1e-6),
        relative_attention_max_distance=given.get("relative_attention_max_distance", 128),
        use_cache=False,
    )
