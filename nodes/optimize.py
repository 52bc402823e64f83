"""MODEL -> MODEL: the same sound, sooner: with all weights on the GPU, also as CUDA graphs, or by ComfyUI's own torch.compile."""

from comfy_api.latest import io
from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..dasheng_core.inputs import as_choice
from .comfy.model import check_dasheng
from .comfy.step_graphs import ask_for_graphs
from .common import CATEGORY
from .versions import clone_without_dynamic_memory, schema

MODES = ("off", "resident", "graph", "compile")


class DashengOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengOptimize",
            display_name="Dasheng Optimize",
            category=CATEGORY,
            search_aliases=["torch compile", "speed up", "cuda graphs"],
            description="The same sound up to rounding, sooner: the network stays on the GPU as a whole, or is compiled.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen."),
                io.Combo.Input(
                    "mode",
                    options=[*MODES],
                    default="off",
                    tooltip="off: the network runs as it is. resident: all its weights stay on the GPU while it samples, where ComfyUI "
                    "would bring them by dynamic VRAM. graph: that, and a step is repeated as a CUDA graph, on an NVIDIA GPU; not yet "
                    "run on one. compile: by torch.compile, which takes minutes at the first clip of each length.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, as the mode says.")],
        )

    @classmethod
    def execute(cls, model, mode) -> io.NodeOutput:
        check_dasheng(model)
        as_choice(mode, "mode", MODES)
        model = model.clone() if mode == "off" else clone_without_dynamic_memory(model)
        if mode == "graph":
            ask_for_graphs(model)
        elif mode == "compile":
            set_torch_compile_wrapper(model=model, backend="inductor", mode="default")
        return io.NodeOutput(model)
