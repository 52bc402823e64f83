"""Which steps of a sampling call under ComfyUI may be CUDA graphs: those of Dasheng Optimize's mode graph, if nothing is special."""

import comfy.model_management as mm
import comfy.ops
from comfy.patcher_extension import CallbacksMP, WrappersMP, get_all_wrappers
from torch import nn

from ...dasheng_core import step_graph
from . import layers, patcher

# Where transformer_options have that a step may be a graph.
ASKED = "dasheng_step_graphs"
# ComfyUI's layers of which it is known what they do; there are others in the same file.
CORE = {
    getattr(operations, name)
    for operations in (comfy.ops.disable_weight_init, comfy.ops.manual_cast)
    for name in ("Linear", "LayerNorm", "Conv1d")
}


class GraphedStep(step_graph.GraphedStep):
    """Looks for an interrupt before each step: a graph has no layers that do."""

    def __init__(self, network):
        super().__init__(network, lambda layer: is_known(layer, type(network).__module__))

    def __call__(self, *arguments):
        mm.throw_exception_if_processing_interrupted()
        return super().__call__(*arguments)


def is_known(layer: nn.Module, network: str) -> bool:
    """Whether a layer is of a known kind, or of the file ``network``, and its weights are used as they are."""
    patched = any(getattr(layer, name, None) for name in (*layers.FUNCTIONS, "lora"))
    ours = (network, layers.__name__, patcher.__name__, *(["comfy.ops"] if type(layer) in CORE else []))
    return not patched and step_graph.is_known(layer, ours)


def may_be_graphs(model_options: dict) -> bool:
    """Whether a sampling call on one GPU asks for it."""
    return ASKED in model_options["transformer_options"] and "multigpu_clones" not in model_options


def is_usual(options: dict, hooks: object) -> bool:
    """Whether an evaluation is that of whole clips by the model's own weights, which no compiler takes."""
    return hooks is None and "context_window" not in options and not get_all_wrappers(WrappersMP.APPLY_MODEL, options)


def ask_for_graphs(model) -> None:
    """Of a MODEL: its steps may be graphs, which go with its weights."""
    model.model_options.setdefault("transformer_options", {})[ASKED] = True
    model.add_callback_with_key(CallbacksMP.ON_DETACH, ASKED, _forget)


def _forget(*_) -> None:
    with step_graph.GRAPHS.lock:
        step_graph.GRAPHS.drop()
