"""MODEL and CONDITIONING -> GUIDER, with forms of guidance that keep their head at high scales."""

import math

import comfy.samplers
from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.guidance import Guidance, is_guided, rescaled
from ..dasheng_core.sampling import SamplingOptions
from .common import CATEGORY
from .sampling import check_scenes, guidance_input, scene_inputs
from .turned import evaluate_conds
from .versions import advanced, schema


class DashengGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def number(name, default, least, most, tooltip):
            widget = io.Float.Input(name, default=default, min=least, max=most, step=0.05, round=0.001, tooltip=tooltip)
            return advanced(widget)

        return schema(
            node_id="DashengGuider",
            display_name="Dasheng Guider",
            category=CATEGORY,
            search_aliases=["cfg", "apg", "rescale cfg", "cfg zero star"],
            description="How a scene is followed, for SamplerCustomAdvanced: guidance, kinder forms of it, and the sigmas at which it "
            "acts. Faders of Dasheng Emphasis are evaluated.",
            inputs=[
                *scene_inputs(),
                guidance_input(),
                number(
                    "rescale",
                    0.0,
                    0.0,
                    1.0,
                    "How far the spread that guidance adds is taken back. 0 is off; its paper uses 0.7.",
                ),
                number(
                    "sigma_low",
                    0.0,
                    0.0,
                    1.0,
                    "Below this sigma, near the finished sound, only positive is evaluated: no guidance, no faders.",
                ),
                number(
                    "sigma_high",
                    1.0,
                    0.0,
                    1.0,
                    "Above this sigma, near the noise, only positive is evaluated: no guidance, no faders.",
                ),
                io.Boolean.Input(
                    "zero_star",
                    default=False,
                    tooltip="CFG-Zero*: the negative branch is scaled to come nearest to the positive one.",
                ),
                io.Boolean.Input(
                    "apg",
                    default=False,
                    tooltip="Adaptive projected guidance: high scales without the overdriven sound. The three below are its own.",
                ),
                number(
                    "apg_parallel",
                    0.0,
                    0.0,
                    1.0,
                    "How much of the guidance along the sound itself is kept. 1 is plain guidance.",
                ),
                number(
                    "apg_limit",
                    0.0,
                    0.0,
                    1000.0,
                    "The most that guidance may change, as root mean square. 0 is no limit.",
                ),
                number(
                    "apg_momentum",
                    -0.5,
                    -1.0,
                    1.0,
                    "How much of the guidance before is added. Below 0 it is taken away; 0 is off.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, guidance, rescale, sigma_low, sigma_high, zero_star, apg, apg_parallel, apg_limit, apg_momentum, negative=None
    ) -> io.NodeOutput:  # fmt: skip
        _, positive, negative = check_scenes(model, positive, negative)
        options = SamplingOptions(
            guidance_scale=guidance,
            guidance_rescale=rescale,
            guidance_interval=(sigma_low, sigma_high),
            zero_star=zero_star,
            apg=(apg_parallel, apg_limit, apg_momentum) if apg else None,
        )
        guider = SceneGuider(model.clone(), options)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


class SceneGuidance:
    """The library's forms of guidance in the places that ComfyUI has for them.

    Not the guider itself: ComfyUI takes a MODEL that refers to itself for a memory leak.
    """

    def __init__(self, options: SamplingOptions):
        self.options = options

    def start(self) -> None:
        """A new call begins: what guidance remembers is its own."""
        self.guidance = Guidance(self.options.guidance_scale, apg=self.options.apg, zero_star=self.options.zero_star)

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
        if is_guided(timestep[0], self.interval):
            return super().predict_noise(x, timestep, model_options, seed)
        (denoised,) = evaluate_conds(self.inner_model, [self.conds["positive"]], x, timestep, model_options)
        return denoised
