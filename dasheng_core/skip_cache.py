"""Skip-cache: the inner blocks of the U run every second step only, late in the schedule. An approximation.

The outer blocks and the long skip connections between them carry what changes from step to step; what the inner blocks
add changes slowly (DeepCache, arXiv 2312.00858; for transformers with skip connections Skip-DiT, arXiv 2411.17616). A
step that reuses runs ``in_blocks[:k]`` and ``out_blocks[-k:]``, and takes the input of the first of these from the step
before. The schedule decides beforehand which steps do; the early ones, which shape the sound, are never among them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .inputs import as_int

# The middle of the sway schedule at -1 is at 0.707.
LATE = 0.71


def reusing_steps(sigmas: Sequence[float]) -> list[bool]:
    """Every second step from sigma :data:`LATE` on, counted from the last, which is full.

    Args:
        sigmas: one more than steps.
    """
    last = len(sigmas) - 2
    return [step > 0 and sigmas[step] <= LATE and (last - step) % 2 == 1 for step in range(last + 1)]


def check_outer_blocks(outer_blocks: int, depth: int) -> int:
    """The number itself. Raises ValueError unless a network of ``depth`` blocks and a middle one has that many at either end."""
    remedy = "the blocks at either end of the network that run at every step; 2 is a good start"
    return as_int(outer_blocks, "outer_blocks of the skip-cache", 1, depth // 2, remedy)


@dataclass
class InnerBlocks:
    """What the inner blocks of one evaluation give: ``x`` ``[B, T, D]``, to be written or, if recalled, read."""

    outer_blocks: int
    x: Tensor
    recalled: bool
    written: bool = False

    def exchange(self, x: Tensor) -> Tensor:
        if self.recalled:
            return self.x
        self.x.copy_(x)
        self.written = True
        return x


class SkipCache:
    """What one sampling call keeps from step to step; drop it with the call.

    It is handed out at the next step only, for an equal owner and shape; whatever else comes is computed in full.
    """

    def __init__(self, outer_blocks: int, sigmas: Sequence[float]):
        """``sigmas``: the schedule, one more than steps."""
        self.outer_blocks = outer_blocks
        self._sigmas = list(sigmas)
        self._reusing = reusing_steps(sigmas)
        self._kept: dict[Hashable, tuple[int, InnerBlocks]] = {}

    def at(self, sigma: float, owner: Hashable, shape: tuple[int, ...], like: Tensor) -> InnerBlocks | None:
        """For the evaluation at ``sigma`` of the owner (the key of a conditioning).

        Args:
            shape: of what the inner blocks give; ``like`` has its dtype and device.

        Returns:
            None: a full evaluation of which nothing is kept.
        """
        # The last step whose sigma is not below this one: a solver may evaluate between two. The last bit is ignored.
        step = max(sum(bound >= sigma - 1e-6 for bound in self._sigmas[:-1]) - 1, 0)
        # In place: several GPUs are evaluated in threads, each an owner of its own.
        for name, (kept_at, _) in list(self._kept.items()):
            if kept_at < step - 1:
                self._kept.pop(name, None)
        kept_at, kept = self._kept.get(owner, (-1, None))
        if kept and self._reuses(step) and kept_at == step - 1 and kept.written and kept.x.shape == shape:
            return InnerBlocks(self.outer_blocks, kept.x, recalled=True)
        if not self._reuses(step + 1):
            return None
        inner = InnerBlocks(self.outer_blocks, torch.empty(shape, dtype=like.dtype, device=like.device), recalled=False)
        self._kept[owner] = (step, inner)
        return inner

    def _reuses(self, step: int) -> bool:
        return step < len(self._reusing) and self._reusing[step]
