"""MODEL and CONDITIONING -> GUIDER, with forms of guidance that keep their head at high scales."""

from comfy_api.latest import io

from ..dasheng_core.options import SamplingOptions
from .comfy.scene_guider import SceneGuider
from .scene_inputs import check_scenes, guidance_input, scene_inputs
from .versions import advanced, schema


class DashengGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def number(name, bounds, tooltip):
            default, least, most = bounds
            widget = io.Float.Input(name, default=default, min=least, max=most, step=0.05, round=0.001, tooltip=tooltip)
            return advanced(widget)

        return schema(
            node_id="DashengGuider",
            display_name="Dasheng Guider",
            search_aliases=["cfg", "apg", "rescale cfg", "cfg zero star"],
            description="How a scene is followed, for SamplerCustomAdvanced: guidance, kinder forms of it, and the sigmas at which it "
            "acts. Faders of Dasheng Emphasis are evaluated.",
            inputs=[
                *scene_inputs(),
                guidance_input(),
                number(
                    "rescale",
                    (0.0, 0.0, 1.0),
                    "How far the spread that guidance adds is taken back. 0 is off; its paper uses 0.7.",
                ),
                number(
                    "sigma_low",
                    (0.0, 0.0, 1.0),
                    "Below this sigma, near the finished sound, only positive is evaluated: no guidance, no faders.",
                ),
                number(
                    "sigma_high",
                    (1.0, 0.0, 1.0),
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
                    (0.0, 0.0, 1.0),
                    "How much of the guidance along the sound itself is kept. 1 is plain guidance.",
                ),
                number(
                    "apg_limit",
                    (0.0, 0.0, 1000.0),
                    "The most that guidance may change, as root mean square. 0 is no limit.",
                ),
                number(
                    "apg_momentum",
                    (-0.5, -1.0, 1.0),
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
