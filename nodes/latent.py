"""Seconds -> an empty LATENT."""

import comfy.model_management as mm
import torch
from comfy_api.latest import io

from ..dasheng_core.config import MAX_SECONDS
from ..dasheng_core.inputs import as_int
from ..dasheng_core.pipeline import frames_from_seconds
from .comfy_adapter import DashengLatent
from .loaders import CATEGORY

# What a LATENT says beside its samples.
LATENT_KIND = {"type": "audio", "downscale_ratio_temporal": DashengLatent.temporal_downscale_ratio}


class EmptyDashengLatentAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EmptyDashengLatentAudio",
            display_name="Empty Dasheng Latent Audio",
            category=CATEGORY,
            description="An empty latent to sample into: its length is the clip's length.",
            inputs=[
                io.Float.Input(
                    "seconds",
                    default=10.0,
                    min=0.04,
                    max=MAX_SECONDS,
                    step=0.04,
                    tooltip="Length of the clip, rounded to frames of 40 ms. The model was trained on 10 s clips; "
                    "connect the seconds of Dasheng Text Encode for its own estimate.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many takes to make at once."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, seconds, batch_size) -> io.NodeOutput:
        (frames,) = frames_from_seconds(seconds, 1)
        # As many as ComfyUI's own empty latents can have.
        batch_size = as_int(batch_size, "batch_size", 1, 4096, "each take needs memory")
        samples = torch.zeros(batch_size, DashengLatent.latent_channels, frames, device=mm.intermediate_device())
        return io.NodeOutput({"samples": samples, **LATENT_KIND})
