"""MODEL -> MODEL: the same sound, sooner; with fp8, nearly the same."""

from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from ..dasheng_core.optimize import MODES, Optimizer
from .comfy_adapter import check_dasheng
from .loaders import CATEGORY
from .prepared_sampling import FP8, OPTIMIZER


class DashengOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DashengOptimize",
            display_name="Dasheng Optimize",
            category=CATEGORY,
            description="How the model's evaluations are run. The sound is the same up to rounding, except with fp8.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="graph: all launches of an evaluation at once, on CUDA; takes up to 1 GB more. compile: the "
                    "network's block compiled, which takes a minute the first time. auto: graph where it pays. Where a graph "
                    "cannot be used, as with offloaded weights, the log says so and sampling goes on without.",
                ),
                io.Boolean.Input(
                    "fp8",
                    default=False,
                    tooltip="Most matrix products in 8-bit floating point, on NVIDIA GPUs that have it (RTX 40, H100 and later): "
                    "faster, and not quite the same sound. Elsewhere nothing changes, and the log says so.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, mode, fp8=False) -> io.NodeOutput:
        check_dasheng(model)
        optimizer = Optimizer(mode)
        model = model.clone()
        model.model_options["transformer_options"].update({OPTIMIZER: optimizer, FP8: fp8})
        # When ComfyUI takes the model's memory back, the graphs' goes with it. It also detaches a model, all weights in
        # place, before each sampling call.
        model.add_callback(CallbacksMP.ON_DETACH, lambda _, unpatch_all: optimizer.free() if unpatch_all else None)
        return io.NodeOutput(model)
