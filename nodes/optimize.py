"""MODEL -> MODEL: the same sound, sooner, by ComfyUI's own torch.compile."""

import logging

import torch
from comfy_api.latest import io
from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..dasheng_core.inputs import as_choice
from .comfy.model import check_dasheng
from .common import CATEGORY
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
                    "first clip of each length. graph, compile and graph: the same, with CUDA graphs on an NVIDIA GPU, where "
                    "ComfyUI was started with --disable-cuda-malloc.",
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
        compiled = compile_mode(mode)
        if fp8:
            logging.info("Dasheng Optimize: fp8 does nothing now; ComfyUI's own switches are %s.", FP8_SWITCHES)
        model = clone_to_compile(model) if compiled else model.clone()
        if compiled:
            set_torch_compile_wrapper(model=model, backend="inductor", mode=compiled)
        return io.NodeOutput(model)


def compile_mode(mode: str) -> str | None:
    """torch.compile's mode, without CUDA graphs where they cannot be."""
    if MODES[mode] != "reduce-overhead":
        return MODES[mode]
    if not torch.cuda.is_available():
        missing = "an NVIDIA GPU"
    # torch's graphs ask the allocator what it holds, and this one, ComfyUI's default on NVIDIA, cannot tell.
    elif torch.cuda.get_allocator_backend() == "cudaMallocAsync":
        missing = "ComfyUI to be started with --disable-cuda-malloc"
    else:
        return MODES[mode]
    logging.info("Dasheng Optimize: CUDA graphs need %s; %s compiles only.", missing, mode)
    return MODES["compile"]
