"""Where each part of a prompt sounds in a finished latent, as curves over time.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, A parts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbone import Backbone
from ..condition import Condition
from ..prompt import parse_prompt
from ..schedule import make_timesteps

# The sigma of the evaluations: near enough to the noise that the prompt decides what will sound.
LISTENING_SIGMA = 0.8
# Frames over which a curve is smoothed: half a second, since one draw of noise gives a rough curve.
SMOOTHING = 13


class Part(NamedTuple):
    """A part of a prompt and its tokens."""

    name: str
    first: int
    end: int


def prompt_parts(encode: Callable[[str], list[int]], prompt: str, words: bool = False) -> list[Part]:
    """The tokens of each aspect of a tagged prompt without its tag, and of each word of its transcript.

    No token of T5 or mT5 crosses a space: a text has as many tokens as its words have alone.

    Args:
        encode: text -> token ids with an end, as :attr:`SceneTokenizer.file` has it.
        words: of the transcript each word apart, named ``asr: word``.
    """
    parts, end, before = [], 0, ""
    for aspect, text in parse_prompt(prompt).items():
        # The tokens of a tag depend on the text before it, of which the last word is enough.
        end += _tokens(encode, f"{before} <|{aspect}|>".lstrip()) - _tokens(encode, before)
        apart = words and aspect == "asr"
        for piece in text.split() if apart else [text] * bool(text):
            first, end = end, end + _tokens(encode, piece)
            parts.append(Part(f"asr: {piece}" if apart else aspect, first, end))
        before = (text or f"<|{aspect}|>").rpartition(" ")[2]
    return parts


def _tokens(encode: Callable[[str], list[int]], text: str) -> int:
    return len(encode(text)) - 1 if text else 0


def part_masks(parts: Sequence[Part], tokens: int) -> Tensor:
    """``[A, S]``, 1 at each part's tokens; a prompt that was cut at the limit has fewer."""
    place = torch.arange(tokens, device="cpu")
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
    """How much worse the network explains each frame when its cross-attention may not read a part, ``[B, A, T]``, 0 if no worse.

    It is the mean square error of the velocity, over channels and :data:`SMOOTHING` frames, less that with all parts
    (the idea of arXiv 2303.16203, frame by frame). One evaluation, and one more for each part.

    Args:
        latent, noise: ``[B, C, T]``; an evaluation reads ``(1 - sigma) latent + sigma noise``.
        condition: one whose every token every frame may read: a timeline's mask would be the answer.
        parts: ``[A, S]``, see :func:`part_masks`; each leaves something to read.
    """
    modulation = backbone.modulation(
        make_timesteps(torch.tensor([sigma], dtype=torch.float32, device="cpu")).to(latent.device)
    )
    seen = torch.lerp(latent, noise, sigma).to(backbone.dtype)

    def error(frames: Tensor | None) -> Tensor:
        velocity = backbone.step(seen, modulation, [condition._replace(frames=frames)]).float()
        error = (velocity - (noise - latent)).square().mean(dim=1, keepdim=True)
        return F.avg_pool1d(error, SMOOTHING, stride=1, padding=SMOOTHING // 2, count_include_pad=False)

    every = latent.new_ones(1, 1, 1, parts.shape[-1], dtype=torch.bool)
    readable = every if condition.frames is None else condition.frames
    without = [error(readable & (part == 0)) for part in parts.to(latent.device)]
    return (torch.cat(without, dim=1) - error(condition.frames)).clamp(min=0)
