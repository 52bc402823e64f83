"""CLIP and a tagged prompt -> CONDITIONING with a fader for each aspect."""

import logging

from comfy_api.latest import io

from ..dasheng_core.control.emphasis import as_emphasis, lint_emphasis, without_aspect
from ..dasheng_core.inputs import as_text
from ..dasheng_core.prompt import ASPECTS, compose_prompt
from .comfy.clip import check_written
from .comfy.scene import FADERS, AspectFader
from .common import ASPECT_LABELS, CATEGORY, HIDDEN
from .node_text import said
from .text import conditioning_outputs, encode, prompt_inputs
from .versions import schema

log = logging.getLogger(__name__)
FADED = ASPECTS[1:]
# Of a fader; a wire brings as much as the library takes.
MOST_FADER = 5.0


class DashengEmphasis(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengEmphasis",
            display_name="Dasheng Emphasis",
            category=CATEGORY,
            search_aliases=["weight", "fader", "mixer", "prompt influence"],
            description="Louder or softer, aspect by aspect: a fader for each part of the prompt. Each fader that is "
            "not at 0 costs one more evaluation of the network a step.",
            inputs=[
                *prompt_inputs(
                    "A fader moves what its aspect alone says: let the caption name the scene, and leave its details to the aspects."
                ),
                *(
                    io.Float.Input(
                        aspect,
                        display_name=ASPECT_LABELS[aspect],
                        default=0.0,
                        min=-MOST_FADER,
                        max=MOST_FADER,
                        step=0.1,
                        display_mode=io.NumberDisplay.slider,
                        tooltip=f"How much more of <|{aspect}|>. 0: as written. 3: much more. Below 0: less; at -3 it is gone.",
                    )
                    for aspect in FADED
                ),
            ],
            outputs=conditioning_outputs("For positive of any sampler or guider."),
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, clip, prompt, **faders) -> io.NodeOutput:
        check_written(as_text(prompt, "prompt"), cls.hidden)
        prompt, faders = compose_prompt(prompt=prompt), as_emphasis(faders)
        others = {aspect: without_aspect(prompt, aspect) for aspect in faders}
        for doubt in lint_emphasis(prompt, faders):
            log.warning(doubt)
        ((context, options),) = encode(clip, prompt)
        moved = []
        for aspect, weight in faders.items():
            ((other, _),) = encode(clip, others[aspect])
            moved.append(AspectFader(aspect, (weight,), context, other, (other.shape[1],)))
        conditioning = [[context, {**options, FADERS: tuple(moved)} if moved else options]]
        text = f"{options['seconds']:g} s estimated, {len(moved)} faders moved"
        return io.NodeOutput(conditioning, options["seconds"], ui=said(text))
