"""Which steps of a sampling call under ComfyUI may be CUDA graphs: those of Dasheng Optimize's mode graph, if nothing is special."""

import comfy.model_management as mm
import comfy.ops
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import nn

from ...dasheng_core import step_graph
from .layers import AT_USE

# Where transformer_options have that a step may be a graph.
WANTED = "dasheng_step_graphs"
# ComfyUI's layers of which it is known what they do; there are others in the same file.
CORE = {
    getattr(operations, name)
    for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    for name in ("Linear", "LayerNorm", "Conv1d")
}


class InterruptibleStep(step_graph.GraphedStep):
    """Looks for an interrupt before each step: a graph has no layers that do."""

    def __init__(self, network):
        super().__init__(network, is_plain_layer)

    def __call__(self, *arguments):
        mm.throw_exception_if_processing_interrupted()
        return super().__call__(*arguments)


def is_plain_layer(layer: nn.Module) -> bool:
    """Whether a layer is PyTorch's, ComfyUI's or ours, and its weights are used as they are."""
    patched = any(getattr(layer, name, None) for name in (*AT_USE, "lora"))
    return not patched and step_graph.is_known(
        layer, (f"{__package__}.", *(["comfy.ops"] if type(layer) in CORE else []))
    )


def may_be_graphs(model_options: dict) -> bool:
    """Whether a sampling call on one GPU asks for it."""
    return WANTED in model_options["transformer_options"] and "multigpu_clones" not in model_options


def is_usual(options: dict, hooks: object) -> bool:
    """Whether an evaluation is that of whole clips by the model's own weights, which no compiler takes."""
    return hooks is None and "context_window" not in options and not get_all_wrappers(WrappersMP.APPLY_MODEL, options)


def ask_for_graphs(model) -> None:
    """Of a MODEL: its steps may be graphs."""
    model.model_options.setdefault("transformer_options", {})[WANTED] = True


def drop_graphs(patcher, unpatches: bool) -> None:
    """Callback for when a MODEL is unloaded."""
    # Else a clone takes over with the weights where they are.
    if unpatches:
        with step_graph.GRAPHS.lock:
            step_graph.GRAPHS.drop()
