"""Weights of a checkpoint -> the parameters and buffers of a module, each checked."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..quoting import PATH, plain
from .checkpoint import Checkpoint, StoredTensor
from .quantized import SCALE_SUFFIX, QuantizedLinear
from .reading import CheckpointError


class OfAnyLayers(nn.Module):
    """A module that is built by (config, operations, device, dtype); ``operations`` has the layers, those of ``torch.nn`` or of others."""

    config: Any
    dtype: torch.dtype

    def twin(self) -> "OfAnyLayers":
        """The same of ``torch.nn``'s layers on the meta device: others may have no weights before they are loaded."""
        return type(self)(self.config, device="meta", dtype=self.dtype)


def load_weights(
    module: nn.Module,
    weights: Mapping[str, StoredTensor | Tensor],
    checkpoint: Checkpoint,
    quantized_linear: type[QuantizedLinear] | None = None,
    beside: Checkpoint | None = None,
) -> None:
    """Give every parameter and buffer of ``module`` (built on the meta device) its tensor, in the dtypes it was built with.

    Args:
        checkpoint: which the weights are of, and of ``beside`` where it is given.
        quantized_linear: what takes the place of an ``nn.Linear`` whose weight is stored quantised; None: such
            weights are expanded.

    Raises CheckpointError, which names missing, unexpected or wrongly shaped tensors.
    """
    wanted, source = check_weights(module, weights, checkpoint, beside), _source(checkpoint, beside)
    # A tensor with two names stays one tensor.
    convert = cache(lambda tensor, dtype: tensor.to(dtype))
    state = {}
    for name, tensor in weights.items():
        stored = tensor.quantized if quantized_linear and isinstance(tensor, StoredTensor) else None
        owner, _, layer_name = name.removesuffix(".weight").rpartition(".")
        layer = stored and getattr(module.get_submodule(owner), layer_name)
        if quantized_linear is None or stored is None or not isinstance(layer, nn.Linear):
            state[name] = convert(tensor, wanted[name].dtype)
            _check_values(state[name], name, source)
            continue
        bias = wanted.get(name.removesuffix("weight") + "bias")
        setattr(module.get_submodule(owner), layer_name, quantized_linear(stored, bias))
        state[name] = stored.values
        _check_values(stored.values, name, source)
        if stored.scale is not None:
            state[name + SCALE_SUFFIX] = stored.scale
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()


def _check_values(tensor: Tensor, name: str, source: str) -> None:
    """Raise CheckpointError for a matrix of zeros: an interrupted download leaves them in the space that it reserved."""
    if tensor.ndim < 2 or not tensor.numel():
        return
    values = tensor.contiguous().view(torch.uint8).flatten()
    if not values[:4096].any() and not values.any():
        raise CheckpointError(
            f"{source}: all values of {plain(name)} are zero, expected weights: the file is not complete; fetch it again."
        )


def check_weights(
    module: nn.Module,
    weights: Mapping[str, StoredTensor | Tensor],
    checkpoint: Checkpoint,
    beside: Checkpoint | None = None,
) -> Mapping[str, Tensor]:
    """The tensors of a module on the meta device, by name.

    Raises CheckpointError where ``weights`` lacks some of them, or has others, or others in shape.
    """
    wanted = (module.twin() if isinstance(module, OfAnyLayers) else module).state_dict()
    problems = [f"missing {plain(name)}" for name in wanted if name not in weights]
    problems += [f"unexpected {plain(name)}" for name in weights if name not in wanted]
    problems += [
        f"{plain(name)} has shape {list(tensor.shape)}, expected {list(wanted[name].shape)}"
        for name, tensor in weights.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise CheckpointError(f"{_source(checkpoint, beside)} does not hold this model's tensors: {listed}.")
    return wanted


def _source(checkpoint: Checkpoint, beside: Checkpoint | None) -> str:
    return " with ".join(plain(file.path, PATH) for file in (checkpoint, beside) if file)
