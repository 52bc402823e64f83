"""The content adapter: text features -> the context of the backbone and the length of the clip.

Dimensions: B batch, S text tokens, X content width, L instruction tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .weights import published
from .weights.checkpoint import Checkpoint, StoredTensor
from .weights.config import AdapterConfig
from .weights.loading import OfAnyLayers, load_weights


class ContentAdapter(OfAnyLayers):
    """Cross-attends the text to a stored instruction, and estimates the clip's length from the result."""

    instruction_lengths: Tensor

    def __init__(self, config: AdapterConfig, operations=nn, device=None, dtype=torch.float32):
        super().__init__()
        self.config = config
        self.dtype = dtype
        factory = {"device": device, "dtype": dtype}
        X = config.content_dim
        self.attn = InstructionAttention(X, config.num_heads, operations, factory)
        self.norm = operations.LayerNorm(X, **factory)
        self.content_proj = operations.Conv1d(X, X, kernel_size=1, **factory)
        # The length is exp(g): rounding g to bfloat16 changes the length of a 10 s clip by four frames.
        length = {"device": device, "dtype": torch.float32}
        # In the published names, index 2 is a dropout without weights.
        self.global_duration_mlp = nn.Sequential(
            operations.Linear(X, X, **length), nn.ReLU(), nn.Identity(), operations.Linear(X, 1, **length)
        )
        self.instruction_embedding = nn.Parameter(torch.empty(1, config.instruction_seq_len, X, **factory))
        self.register_buffer("instruction_lengths", torch.empty(1, dtype=torch.int64, device=device))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Adapt text features.

        Args:
            features: ``[B, S, X]``, the projected last hidden state of the text encoder.
            mask: ``[B, S]`` bool, True for real tokens.

        Returns:
            The context of the backbone ``[B, S, X]`` and the global duration g ``[B]`` (float32);
            see :func:`frames_from_duration`.
        """
        x = self._attend(features, mask)
        content = self.content_proj(x.transpose(1, 2)).transpose(1, 2)
        weight = mask[..., None].float()
        pooled = (x.float() * weight).sum(dim=1) / weight.sum(dim=1)
        return content, self.global_duration_mlp(pooled)[:, 0]

    def _attend(self, features: Tensor, mask: Tensor) -> Tensor:
        features = features.to(self.dtype)
        if self.config.use_zero_instruction:
            instruction, keys = features.new_zeros(1, 1, self.config.content_dim), None
        else:
            instruction = self.instruction_embedding.to(features)
            position = torch.arange(instruction.shape[1], device=features.device)
            keys = (position < self.instruction_lengths.to(features.device))[None]
        attended = self.attn(features, instruction, keys) * mask[..., None]
        return self.norm(attended + features)


class InstructionAttention(nn.Module):
    """Multi-head attention in separate linear layers: ``nn.MultiheadAttention`` weights cannot be cast or offloaded."""

    def __init__(self, width: int, num_heads: int, operations, factory: dict[str, Any]):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = operations.Linear(width, width, **factory)
        self.to_k = operations.Linear(width, width, **factory)
        self.to_v = operations.Linear(width, width, **factory)
        self.out_proj = operations.Linear(width, width, **factory)

    def forward(self, x: Tensor, instruction: Tensor, keys: Tensor | None) -> Tensor:
        """``x`` ``[B, S, X]``, ``instruction`` ``[1, L, X]``, ``keys`` ``[1, L]`` bool -> ``[B, S, X]``."""
        instruction = instruction.expand(len(x), -1, -1)
        q, k, v = (
            rearrange(tensor, "b n (h d) -> b h n d", h=self.num_heads)
            for tensor in (self.to_q(x), self.to_k(instruction), self.to_v(instruction))
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


def load_adapter(checkpoint: Checkpoint, config: AdapterConfig, operations=nn, dtype=torch.float32) -> ContentAdapter:
    """Load the content adapter of an audio generator.

    Raises CheckpointError for what is no audio generator, or tensors missing or wrongly shaped.
    """
    adapter = ContentAdapter(config, operations, device="meta", dtype=dtype)
    load_weights(adapter, adapter_weights(checkpoint), checkpoint)
    return adapter


def adapter_weights(checkpoint: Checkpoint) -> dict[str, StoredTensor | Tensor]:
    """The content adapter's tensors by their names in :class:`ContentAdapter`."""
    names = checkpoint.under(*published.prefixes(published.AUDIOGEN, "content adapter"))
    unread = published.prefixes(published.AUDIOGEN, None)
    weights: dict[str, Any] = {
        name.removeprefix(published.ADAPTER): checkpoint.tensor(name) for name in names if not name.startswith(unread)
    }
    if published.INSTRUCTION in weights:
        weights.setdefault(
            published.INSTRUCTION_LENGTHS, torch.tensor([checkpoint.shapes[published.INSTRUCTION][1]], device="cpu")
        )
    # The published layout is nn.MultiheadAttention's: q, k and v stacked in one tensor.
    for kind in ("weight", "bias"):
        stacked = weights.pop(f"attn.in_proj_{kind}", None)
        if stacked is not None and stacked.shape:
            parts = stacked.to(torch.float32).tensor_split(3)
            weights |= {f"attn.to_{name}.{kind}": part.clone() for name, part in zip("qkv", parts, strict=True)}
    return weights


def frames_from_duration(global_duration: Tensor, offset: float, frame_rate: float) -> Tensor:
    """Clip length in latent frames, ``[B]`` int64, from the adapter's g ``[B]``: exp(g) - offset seconds.

    Rounds half to even in float32 as the published model does, and keeps at least one frame.
    """
    seconds = torch.exp(global_duration.float()) - offset
    return torch.round(seconds * frame_rate).clamp(min=1).to(torch.int64)
