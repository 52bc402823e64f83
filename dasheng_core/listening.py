"""Where each part of a prompt sounds: one evaluation's cross-attention on a finished latent, as curves over time.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, H heads, d width of a head, A parts.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from .backbone import FRAMES_AT_ONCE, Backbone, Condition
from .prompt import parse_prompt
from .schedule import make_timesteps

# Where an evaluation listens: much of the sound is there, and there is still something to ask the prompt about.
LISTENING_SIGMA = 0.5


class Part(NamedTuple):
    """A part of a prompt and its tokens."""

    name: str
    first: int
    end: int


def prompt_parts(encode: Callable[[str], list[int]], prompt: str, words: bool = False) -> list[Part]:
    """The tokens of each aspect of a tagged prompt without its tag, and of each word of its transcript.

    No token of T5 or mT5 goes over a space: a prompt cut there has as many tokens as it has before it.

    Args:
        encode: text -> token ids with an end, as :attr:`SceneTokenizer.file` has it.
        words: of the transcript each word apart, named ``asr: word``.
    """
    parts, read = [], ""
    for aspect, text in parse_prompt(prompt).items():
        read = f"{read} <|{aspect}|>".lstrip()
        apart = words and aspect == "asr"
        for piece in text.split() if apart else [text] * bool(text):
            first = len(encode(read)) - 1
            read = f"{read} {piece}"
            parts.append(Part(f"asr: {piece}" if apart else aspect, first, len(encode(read)) - 1))
    return parts


def part_masks(parts: Sequence[Part], tokens: int) -> Tensor:
    """``[A, S]``, 1 at each part's tokens; a prompt that was cut at the limit has fewer."""
    place = torch.arange(tokens)
    return torch.stack([((place >= part.first) & (place < part.end)).float() for part in parts])


@torch.inference_mode()
def listen(
    backbone: Backbone,
    latent: Tensor,
    noise: Tensor,
    condition: Condition,
    parts: Tensor,
    sigma: float = LISTENING_SIGMA,
) -> Tensor:
    """The share of its attention that each frame gives each part, in the mean over blocks and heads, ``[B, A, T]``.

    The network is called once and as it is; queries are read on their way, where cross-attention has normalised them.

    Args:
        latent, noise: ``[B, C, T]``; the evaluation sees ``(1 - sigma) latent + sigma noise``.
        condition: one whose every token every frame may read: a timeline's mask would be the answer.
        parts: ``[A, S]``, see :func:`part_masks`.
    """
    parts = parts.to(latent.device)
    heard = torch.zeros(len(latent), latent.shape[-1], len(parts), device=latent.device)

    def read(keys: Tensor, mask: Tensor | None):
        def hook(module, inputs, queries: Tensor):
            for first in range(0, queries.shape[1], FRAMES_AT_ONCE):
                q = queries[:, first : first + FRAMES_AT_ONCE].float()
                scores = (
                    torch.einsum("bthd,bhsd->bhts", q, keys.float().expand(len(q), -1, -1, -1)) / q.shape[-1] ** 0.5
                )
                if mask is not None:
                    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
                heard[:, first : first + FRAMES_AT_ONCE] += scores.softmax(dim=-1).mean(dim=1) @ parts.T

        return hook

    with ExitStack() as hooks:
        assert condition.keys is not None, "a condition without text has nothing to hear"
        for block, keys in zip(backbone.blocks, condition.keys, strict=True):
            handle = block.cross_attn.norm_q.register_forward_hook(read(keys, condition.frames))
            hooks.callback(handle.remove)
        modulation = backbone.modulation(make_timesteps(torch.tensor([sigma])).to(latent.device))
        seen = torch.lerp(latent, noise, sigma).to(backbone.dtype)
        backbone.step(seen, modulation, [condition])
    return heard.mT / len(backbone.blocks)
