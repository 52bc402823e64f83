"""How many kernels a program asks for: on a GPU each costs the host some microseconds."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# They move no data.
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "empty", "empty_like", "expand", "lift_fresh",
    "narrow", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten",
    "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts operations that are no views. Under ``torch.inference_mode`` composite ones are counted whole: use ``no_grad``."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name.partition("::")[2] not in VIEWS
        return function(*args, **(kwargs or {}))


def launches_per_step(sample) -> float:
    """``sample``: a sampling call of so many steps."""
    counts = []
    for steps in (4, 8):
        with torch.no_grad(), Launches() as launches:
            sample(steps)
        counts.append(launches.count)
    return (counts[1] - counts[0]) / 4
