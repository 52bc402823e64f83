"""Tokenizer and T5 or mT5 encoder (transformers), with the generator's projection on top.

Dimensions: B batch, S tokens, X width of the encoder (d_model).
"""

import logging
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from .checkpoint import Checkpoint, load_weights
from .config import AdapterConfig, CheckpointError, check_config

log = logging.getLogger(__name__)

ENCODER_PREFIXES = ("encoder.", "shared.")
PROJECTION = "content_encoder.text_encoder.proj."
SPECIAL_TOKEN_EMBEDDING = "content_encoder.text_encoder.special_token_embedding.weight"


class TextEncoder(nn.Module):
    """Token ids in, projected features out.

    Runs in bfloat16 or float32, never float16, in which T5's activations overflow.
    """

    def __init__(self, config: T5Config, content_dim: int, special_tokens: int, device=None, dtype=None):
        super().__init__()
        if dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"The text encoder runs in float32 or bfloat16, not {dtype}: T5 overflows in float16.")
        with torch.device(device or "cpu"):
            self.t5 = T5EncoderModel(config).to(dtype)
            self.proj = nn.Linear(config.d_model, content_dim, dtype=dtype)
            self.special_token_embedding = nn.Embedding(special_tokens, config.d_model, dtype=dtype) if special_tokens else None
        # Set once the tokenizer has given the special tokens their ids.
        self.special_token_ids: list[int] = []

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
        if self.special_token_embedding is None:
            return table(input_ids)
        ids = torch.tensor(self.special_token_ids, device=input_ids.device)
        is_special = input_ids[..., None] == ids
        # The tokenizer may number special tokens beyond the encoder's table.
        ordinary = table(input_ids.masked_fill(is_special.any(-1), 0))
        special = self.special_token_embedding(is_special.int().argmax(-1))
        return torch.where(is_special.any(-1, keepdim=True), special, ordinary)


def load_text_encoder(encoder: Checkpoint, audiogen: Checkpoint, adapter: AdapterConfig) -> TextEncoder:
    """Load the encoder half of a T5 checkpoint and the projection of an audio generator.

    Raises:
        CheckpointError: not a T5 encoder, or one of another width than the generator was trained with.
    """
    config = _encoder_config(encoder)
    if config.d_model != adapter.content_dim:
        raise CheckpointError(
            f"{encoder.path}: this text encoder is {config.d_model} wide, but {audiogen.path} was trained with one of "
            f"width {adapter.content_dim}: use the text encoder its config.json names (flan-t5-large for the English "
            "model, mt5-large for the multilingual one)."
        )
    dtype = torch.bfloat16 if _first_tensor(encoder).dtype == torch.bfloat16 else torch.float32
    module = TextEncoder(config, adapter.content_dim, len(adapter.special_tokens), device="meta", dtype=dtype)

    weights = {"t5." + name: encoder.tensor(name) for name in encoder.under(*ENCODER_PREFIXES)}
    # Both names stand for the same table; files carry one or the other.
    table = weights.get("t5.shared.weight", weights.get("t5.encoder.embed_tokens.weight"))
    weights["t5.shared.weight"] = weights["t5.encoder.embed_tokens.weight"] = table
    weights |= {name.removeprefix("content_encoder.text_encoder."): audiogen.tensor(name) for name in audiogen.under(PROJECTION)}
    if adapter.special_tokens:
        weights["special_token_embedding.weight"] = audiogen.tensor(SPECIAL_TOKEN_EMBEDDING)
    load_weights(module, weights, f"{encoder.path} with {audiogen.path}")
    return module


def load_tokenizer(*folders: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in the first of ``folders`` that has one: ``tokenizer.json``, or ``spiece.model`` alone.

    Raises:
        FileNotFoundError: no folder has either.
        ImportError: only ``spiece.model`` is there and the sentencepiece package is not.
    """
    for folder in folders:
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast(
                tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
            )
        if (folder / "spiece.model").exists():
            from transformers import T5Tokenizer

            return T5Tokenizer(str(folder / "spiece.model"), extra_ids=0, legacy=True)
    raise FileNotFoundError(
        f"No tokenizer in {' or '.join(str(folder) for folder in folders)}: put the text encoder's tokenizer.json "
        "(or spiece.model) beside its weights."
    )


class SceneTokenizer:
    """Prompts -> token ids, with the generator's special tokens added and its length limit applied."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: tuple[str, ...], max_tokens: int):
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        if special_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
        self.special_token_ids = tokenizer.convert_tokens_to_ids(list(special_tokens))

    def __call__(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids ``[B, S]`` int64 and mask ``[B, S]`` bool. What lies beyond the limit is cut, with a warning."""
        for prompt in prompts:
            ids = self.tokenizer(prompt)["input_ids"]
            if len(ids) > self.max_tokens:
                lost = self.tokenizer.decode(ids[self.max_tokens - 1 : -1])
                log.warning(
                    "The prompt is %d tokens long; the model reads %d. Not read: %r", len(ids), self.max_tokens, lost
                )
        batch = self.tokenizer(prompts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"].bool()


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


def _first_tensor(encoder: Checkpoint) -> Tensor:
    return encoder.tensor("encoder.final_layer_norm.weight")
