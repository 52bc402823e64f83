"""Where ComfyUI's versions differ, and a node needs another way in one than in the other."""

import inspect

import comfy.model_patcher
import comfy.sample
from comfy_api.latest import io
from torch import Tensor

from .common import CATEGORY

# Entries of empty latents; core's samplers leave it out of what they return.
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")


def schema(**fields) -> io.Schema:
    """A node's schema, in our category, without what the running version has no place for: search_aliases came with 0.11.

    What a node says at its foot is an intermediate output: newer versions send it again where they remember the node.
    """
    known, fields = io.Schema.__dataclass_fields__, {"category": CATEGORY, "has_intermediate_output": True, **fields}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def advanced(widget: io.Input) -> io.Input:
    """The input, which newer frontends fold away. Of 0.3.75's inputs only some take it as an argument."""
    widget.extra_dict = {**widget.extra_dict, "advanced": True}
    return widget


def core_patcher_class(disable_dynamic: bool) -> type:
    """The patcher that core's loaders make: the dynamic one where a version has it, and has it enabled."""
    plain = comfy.model_patcher.ModelPatcher
    # Looked up at call time: ComfyUI rebinds it while it starts.
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def fix_empty_latent(model, samples: Tensor, latent: dict) -> Tensor:
    """An empty latent of another model in this one's channels.

    From 0.22 on, also in its frames: the ratio of an empty latent is the length of its own.
    """
    fix = comfy.sample.fix_empty_latent_channels
    ratios = [latent.get(key) for key in RATIOS]
    return fix(model, samples, *ratios[: len(inspect.signature(fix).parameters) - 2])


def clone_without_dynamic_memory(model):
    """A clone of a MODEL that is loaded whole. Newer versions have dynamic memory, and compile only what is not in it."""
    known = inspect.signature(model.clone).parameters
    return model.clone(disable_dynamic=True) if "disable_dynamic" in known else model.clone()
