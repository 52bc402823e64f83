"""What the network reads of each entry of a CONDITIONING. It goes through ComfyUI as ``extra_conds`` gives it.

Dimensions: S text tokens, X context width, T latent frames.
"""

from collections.abc import Hashable

import comfy.conds
import torch
from torch import Tensor

from ...dasheng_core.backbone import Backbone
from ...dasheng_core.condition import Condition
from ...dasheng_core.control.timeline import timeline_aligned, timeline_entries


class Prompt:
    """One entry in one sampling call, and what the network has computed of it. ComfyUI drops it with the call."""

    def __init__(self, context: Tensor | None, time_aligned: Tensor, mask: Tensor | None, spoken: Tensor | None = None):
        """
        Args:
            context: ``[1 or B, S, X]``; None: zeros, the unconditional branch.
            time_aligned: ``[1 or B, 1, X]``.
            mask: which frames of the whole clip read which tokens, ``[T, S]`` or a whole part of S; None: all read all.
            spoken: ``[1, T]``, see :class:`Condition`.
        """
        self.context, self.time_aligned, self.mask, self.spoken = context, time_aligned, mask, spoken
        self.conditions: dict[Hashable, Condition] = {}

    def condition(self, backbone: Backbone, device, dtype: torch.dtype, weights: Hashable) -> Condition:
        """Computed once for a backbone, a device, a dtype and ``weights``, the key of those in force, which hooks can change."""
        key = backbone, device, dtype, weights
        if key not in self.conditions:
            self.conditions[key] = self._computed(backbone, device, dtype)
        return self.conditions[key]

    def _computed(self, backbone: Backbone, device, dtype: torch.dtype) -> Condition:
        context = None if self.context is None else self.context.to(device, dtype)
        time_aligned = self.time_aligned.to(device, dtype)
        spoken = None if self.spoken is None else self.spoken.to(device)
        if context is None or self.mask is None:
            return backbone.condition(context, time_aligned)._replace(spoken=spoken)
        # ComfyUI repeats the tokens of one branch up to the number of another's.
        mask = self.mask.to(context)
        mask, entries = mask.repeat(1, context.shape[1] // mask.shape[1])[None], timeline_entries(mask[None])
        condition = backbone.condition(context, timeline_aligned(time_aligned[0, 0], mask), mask[:, None])
        return condition._replace(entries=entries, spoken=spoken)


class Prompts(comfy.conds.CONDConstant):
    """A list of one :class:`Prompt`, in a batch one a branch.

    A list is no tensor that context windows would cut, and any two can be evaluated as one batch.
    """

    def can_concat(self, other):
        return True

    def concat(self, others):
        return [prompt for cond in (self, *others) for prompt in cond.cond]
