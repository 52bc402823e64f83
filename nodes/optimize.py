"""MODEL -> MODEL: the same sound, sooner, by ComfyUI's own torch.compile."""

import logging

import torch
from comfy_api.latest import io
from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..dasheng_core.inputs import as_choice
from .loaders import CATEGORY
from .model import check_dasheng
from .versions import advanced, clone_to_compile, schema

# The modes of workflows shared before, and torch.compile's; None leaves the network as it is.
MODES = {
    "auto": None,
    "off": None,
    "compile": "default",
    "graph": "reduce-overhead",
    "compile and graph": "reduce-overhead",
}
FP8_SWITCHES = "--fp8_e4m3fn-unet and --fast fp8_matrix_mult"


class DashengOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengOptimize",
            display_name="Dasheng Optimize",
            category=CATEGORY,
            search_aliases=["torch compile", "speed up", "cuda graphs"],
            description="Compiles the network: the same sound up to rounding, sooner from the second clip on.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto and off: the network runs as it is. compile: by torch.compile, which takes minutes at the "
                    "first clip of each length. graph, compile and graph: the same, with CUDA graphs on an NVIDIA GPU.",
                ),
                advanced(
                    io.Boolean.Input(
                        "fp8",
                        default=False,
                        tooltip="Does nothing now; it is here so that shared workflows open. ComfyUI's own switches for "
                        f"8-bit floating point are {FP8_SWITCHES}.",
                    )
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, compiled where the mode says so.")],
        )

    @classmethod
    def execute(cls, model, mode, fp8=False) -> io.NodeOutput:
        check_dasheng(model)
        as_choice(mode, "mode", MODES)
        if fp8:
            logging.info("Dasheng Optimize: fp8 does nothing now; ComfyUI's own switches are %s.", FP8_SWITCHES)
        if MODES[mode] == "reduce-overhead" and not torch.cuda.is_available():
            logging.info("Dasheng Optimize: CUDA graphs need an NVIDIA GPU; %s compiles only.", mode)
        model = clone_to_compile(model) if MODES[mode] else model.clone()
        if MODES[mode]:
            set_torch_compile_wrapper(model=model, backend="inductor", mode=MODES[mode])
        return io.NodeOutput(model)
