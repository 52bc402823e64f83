"""The library's forms of guidance as a guider of ComfyUI."""

import math
from dataclasses import replace

import comfy.samplers
from torch import Tensor

from ...dasheng_core.guidance import Guidance, is_guided, rescaled
from ...dasheng_core.options import SamplingOptions
from .sampling_call import sigma_of
from .turned import evaluate_conds


class SceneGuidance:
    """The library's forms of guidance in the places that ComfyUI has for them.

    Not the guider itself: ComfyUI takes a MODEL that refers to itself for a memory leak.
    """

    def __init__(self, options: SamplingOptions):
        self.options = options

    def start(self) -> None:
        """A new call begins: what guidance remembers is its own."""
        self.guidance = Guidance(replace(self.options, guidance_rescale=0.0))

    def guided(self, given: dict) -> Tensor:
        """ComfyUI's cond and uncond are x - denoised, that is sigma v; so is what it expects."""
        if math.isclose(given["cond_scale"], 1.0):
            return given["cond"]
        sigma = given["sigma"][:, None, None]
        return sigma * self.guidance(given["input"], sigma, given["cond"] / sigma, given["uncond"] / sigma)

    def rescaled(self, given: dict) -> Tensor:
        x = given["input"]
        return x - rescaled(x - given["denoised"], x - given["cond_denoised"], self.options.guidance_rescale)


class SceneGuider(comfy.samplers.CFGGuider):
    """ComfyUI's guider with another guidance, in an interval of sigmas. ``model`` is its own clone."""

    evaluates_at_place = True

    def __init__(self, model, options: SamplingOptions):
        self.scene, self.interval = SceneGuidance(options), options.guidance_interval
        if options.apg or options.zero_star:
            if "sampler_cfg_function" in model.model_options:
                raise ValueError(
                    "model carries a guidance of its own, of a node such as RescaleCFG, beside apg or zero_star: take one of "
                    "them out."
                )
            model.set_model_sampler_cfg_function(self.scene.guided)
        if options.guidance_rescale:
            model.set_model_sampler_post_cfg_function(self.scene.rescaled)
        super().__init__(model)
        self.set_cfg(max(1.0, options.guidance_scale))

    def sample(self, *args, **kwargs):
        self.scene.start()
        return super().sample(*args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        if is_guided(sigma_of(model_options["transformer_options"], timestep), self.interval):
            return super().predict_noise(x, timestep, model_options, seed)
        (denoised,) = evaluate_conds(self.inner_model, [self.conds["positive"]], x, timestep, model_options)
        return denoised
