"""Where ComfyUI's versions differ, and a node needs another way in one than in the other."""

import inspect

import comfy.model_patcher
import comfy.sample
from torch import Tensor


def core_patcher_class(disable_dynamic: bool = False) -> type:
    """The patcher that core's loaders make: the dynamic one where a version has it, and has it enabled."""
    plain = comfy.model_patcher.ModelPatcher
    # Looked up at call time: ComfyUI rebinds it while it starts.
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def prepare_latent(model, samples: Tensor, latent: dict) -> Tensor:
    """The samples of a LATENT as core's samplers take them: an empty one in the model's channels.

    From 0.22 on, also in the model's frames: an empty latent tells by its ratio what its own last.
    """
    fix = comfy.sample.fix_empty_latent_channels
    ratios = [latent.get(key) for key in RATIOS]
    return fix(model, samples, *ratios[: len(inspect.signature(fix).parameters) - 2])


# What empty latents tell of themselves; core's samplers leave it out of what they return.
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
