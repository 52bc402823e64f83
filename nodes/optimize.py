"""MODEL -> MODEL: the same sound, sooner: with all weights on the GPU, or by ComfyUI's own torch.compile."""

import logging

import torch
from comfy_api.latest import io
from comfy_api.torch_helpers import set_torch_compile_wrapper

from ..dasheng_core.inputs import as_choice
from .comfy.model import check_dasheng
from .common import CATEGORY
from .versions import clone_without_dynamic_memory, schema

# How each mode compiles, by torch.compile's own name for it; None: not at all.
MODES = {"off": None, "resident": None, "graph": "reduce-overhead", "compile": "default"}


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
                    options=list(MODES),
                    default="off",
                    tooltip="off: the network runs as it is. resident: all its weights stay on the GPU while it samples, where ComfyUI "
                    "would bring them by dynamic VRAM. graph: by torch.compile with CUDA graphs, on an NVIDIA GPU where ComfyUI was "
                    "started with --disable-cuda-malloc. compile: by torch.compile alone. Both take minutes at the first clip of each "
                    "length.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, as the mode says.")],
        )

    @classmethod
    def execute(cls, model, mode) -> io.NodeOutput:
        check_dasheng(model)
        as_choice(mode, "mode", MODES)
        compiled = compile_mode(mode)
        model = model.clone() if mode == "off" else clone_without_dynamic_memory(model)
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
