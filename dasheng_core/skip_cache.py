"""Skip-cache: the inner blocks of the U run every second step only, late in the schedule. An approximation.

The outer blocks and the long skip connections between them carry what changes from step to step; what the inner blocks
add changes slowly (DeepCache, arXiv 2312.00858; for transformers with skip connections Skip-DiT, arXiv 2411.17616). A
step that reuses runs ``in_blocks[:k]`` and ``out_blocks[-k:]``, and takes the input of the first of these from the step
before. The schedule decides beforehand which steps do; the early ones, which shape the sound, are never among them.
"""

from collections.abc import Sequence

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


class SkipCache:
    """What one sampling call keeps from step to step; drop it with the call.

    Kept is the input of a block, for each owner on its own. It is handed out at the next step only, for an equal owner
    and shape; whatever else comes is computed in full.

    Attributes:
        step: the step that evaluations belong to; the caller counts it up.
    """

    def __init__(self, outer_blocks: int, sigmas: Sequence[float]):
        self.outer_blocks = outer_blocks
        self.step = 0
        self._owner: object = None
        self._reusing = reusing_steps(sigmas)
        self._kept: list[tuple[int, object, Tensor]] = []

    # A compiler would compile every step anew: it leaves these three to Python.

    @torch.compiler.disable
    def serve(self, owner: object) -> None:
        """The next evaluation is the owner's: whatever tells one conditioning from another."""
        self._owner = owner

    @torch.compiler.disable
    def recall(self, rows: torch.Size) -> Tensor | None:
        """``[*rows, D]`` if this step reuses and the one before kept something of this shape for its owner, else None."""
        if self._reuses(self.step):
            for step, owner, x in self._kept:
                if step == self.step - 1 and owner == self._owner and x.shape[:-1] == rows:
                    return x
        return None

    @torch.compiler.disable
    def keep(self, x: Tensor) -> None:
        """Keep ``[..., D]``, if the next step reuses it."""
        self._kept = [kept for kept in self._kept if kept[0] >= self.step - 1 and kept[1] != self._owner]
        if self._reuses(self.step + 1):
            self._kept.append((self.step, self._owner, x))

    def _reuses(self, step: int) -> bool:
        return step < len(self._reusing) and self._reusing[step]
