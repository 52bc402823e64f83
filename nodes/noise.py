"""The noise that sampling starts from: seed -> NOISE, for SamplerCustomAdvanced."""

from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.sampling import MAX_SEED, as_seed, draw_noises
from .inputs import latent_samples
from .latent import batch_indices
from .versions import schema

# The widget's names, and the library's.
NOISE_KINDS = {"steady": "steady", "as KSampler": "plain"}


def take_seeds(seed: int, latent: dict) -> list[int]:
    """The seed of each take of a LATENT: take i has seed + i, i as its batch_index says."""
    return [(seed + i) % MAX_SEED for i in batch_indices(latent)]


class SteadyNoise:
    """What ComfyUI calls NOISE."""

    def __init__(self, seed: int):
        self.seed = seed

    def generate_noise(self, latent: dict) -> Tensor:
        takes, channels, frames = latent_samples(latent).shape
        return draw_noises(take_seeds(self.seed, latent), channels, [frames] * takes)


class DashengNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengNoise",
            display_name="Dasheng Noise",
            search_aliases=["random noise", "seed"],
            description="The noise of Dasheng Sampler for SamplerCustomAdvanced: the same takes, and with another length the "
            "same sound, longer or shorter.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED - 1,
                    control_after_generate=True,
                    tooltip="Take i of a batch uses seed + i, as in Dasheng Sampler with steady noise.",
                ),
            ],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, seed) -> io.NodeOutput:
        return io.NodeOutput(SteadyNoise(as_seed(seed)))
