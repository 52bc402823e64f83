"""What the backbone computes of a prompt, once for a sampling call.

Dimensions: B batch, T latent frames, N frames that are evaluated, S text tokens, D embedding, H heads, d their width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Of 1000. From this timestep up self-attention stays within each span of a timeline: what sounds, and where, is decided
# there, as in a clip of that length. Below, self-attention goes over the whole clip, which makes the joins continuous.
APART = 800
# And down to this one within a span that has words of its own, in every branch: words that were said before, or a sound before
# the first word, would otherwise count as the beginning of these.
SPOKEN_APART = 100


class Condition(NamedTuple):
    """All that the blocks read of one prompt. Item i of the first dimension belongs to block i.

    Attributes:
        constant: ``[blocks, B, T, D]``, B and T may be 1: what the time-aligned context adds and, without text, all
            that cross-attention adds.
        keys, values: ``[blocks, B, H, S, d]``, B may be 1; None without text.
        frames: which frames read which tokens, see :meth:`Backbone.condition`; None: all read all.
        entries: ``[B, T, E]``, B may be 1: how much of each of E prompts a frame reads. Self-attention between two frames is
            scaled by the prompt weights that they share; None: it is not scaled.
        spoken: ``[B, T]``, B may be 1: the number of the prompt whose words a frame says, or 0. Frames of another number are
            not read; None: all are.
    """

    constant: Tensor
    keys: Tensor | None = None
    values: Tensor | None = None
    frames: Tensor | None = None
    entries: Tensor | None = None
    spoken: Tensor | None = None

    def text(self, block: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of a block, and which frames read which tokens; of a condition that has a text."""
        assert self.keys is not None and self.values is not None
        return self.keys[block], self.values[block], self.frames

    def at_frames(self, index: Tensor) -> "Condition":
        """The condition of the frames ``index`` ``[B or 1, N]`` of a clip."""
        constant, frames, entries, spoken = self.constant, self.frames, self.entries, self.spoken
        if constant.shape[2] > 1:
            constant = torch.take_along_dim(constant, index[None, :, :, None], dim=2)
        if frames is not None and frames.shape[2] > 1:
            frames = torch.take_along_dim(frames, index[:, None, :, None], dim=2)
        if entries is not None:
            entries = torch.take_along_dim(entries, index[:, :, None], dim=1)
        if spoken is not None:
            spoken = torch.take_along_dim(spoken, index, dim=1)
        return self._replace(constant=constant, frames=frames, entries=entries, spoken=spoken)

    def at_timestep(self, timestep: float) -> "Condition":
        """The condition as a step reads it: self-attention goes over the whole clip below :data:`APART`, or :data:`SPOKEN_APART`."""
        if timestep >= APART:
            return self
        return self._replace(entries=None, spoken=self.spoken if timestep >= SPOKEN_APART else None)
