"""MODEL -> MODEL: the same sound, sooner."""

from comfy.patcher_extension import CallbacksMP
from comfy_api.latest import io

from ..dasheng_core.optimize import MODES, Optimizer
from .loaders import CATEGORY
from .prepared_sampling import OPTIMIZER


class DashengOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DashengOptimize",
            display_name="Dasheng Optimize",
            category=CATEGORY,
            description="How the model's evaluations are run. The sound is the same up to rounding.",
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
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, mode) -> io.NodeOutput:
        optimizer = Optimizer(mode)
        model = model.clone()
        model.model_options["transformer_options"][OPTIMIZER] = optimizer
        # When ComfyUI takes the model's memory back, the graphs' goes with it.
        model.add_callback(CallbacksMP.ON_DETACH, lambda *_: optimizer.free())
        return io.NodeOutput(model)
