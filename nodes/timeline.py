"""CONDITIONING of one prompt each -> one CONDITIONING with a prompt for each span of the clip."""

import math

from comfy_api.latest import io

from ..dasheng_core.control.timeline import as_span
from ..dasheng_core.inputs import as_choice
from ..dasheng_core.options import FADE
from ..dasheng_core.quoting import plain
from .comfy.scene import joined
from .common import HIDDEN, seconds_input
from .inputs import check_conditioning
from .muted import muted_before
from .versions import schema

OVERLAPS = ("replace", "both")


class DashengTimeline(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengTimeline",
            display_name="Dasheng Timeline",
            search_aliases=["schedule", "prompt travel", "script", "timed prompts"],
            description="Another prompt for each span of one clip, in one pass: connect one after the other. A span without a "
            "prompt has no text to follow.",
            inputs=[
                # A bypassed node hands on its first input of the output's type: the others' spans.
                io.Conditioning.Input(
                    "timeline",
                    optional=True,
                    tooltip="What was so far: another Dasheng Timeline, or a conditioning that speaks for the whole clip.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    # Required inputs come first in the app, whatever stands here.
                    optional=True,
                    tooltip="What this span sounds like: a whole scene, such as knocks with rain for knocks that are added to rain.",
                ),
                seconds_input("start", "Where the span begins, in seconds."),
                seconds_input("end", "Where the span ends, in seconds. 0: at the end of the clip."),
                seconds_input(
                    "fade",
                    "Seconds around each end, inside of the clip, in which one prompt gives way to the other.",
                    default=FADE,
                ),
                io.Combo.Input(
                    "overlap",
                    options=list(OVERLAPS),
                    default="replace",
                    tooltip="replace: in this span the prompts before it are not heard. both: they are heard together.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    tooltip="For positive or negative of any sampler, or for the next Dasheng Timeline."
                )
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, start, end, fade, overlap, timeline=None, conditioning=None) -> io.NodeOutput:
        if conditioning is None:
            raise ValueError(
                "conditioning has nothing connected that is switched on, expected a prompt for this span: connect Dasheng Text "
                "Encode, or bypass this node to leave its span out."
            )
        check_conditioning(conditioning, None, "conditioning")
        if timeline is not None:
            check_conditioning(timeline, None, "timeline")
        elif muted := muted_before(cls.hidden):
            raise ValueError(
                f"timeline comes from {plain(muted)}, which is muted, and with it the spans before it: bypass it to leave out "
                "its own alone, or switch it on."
            )
        replace = as_choice(overlap, "overlap", OVERLAPS) == "replace"
        span = as_span(start, math.inf if end == 0 else end, fade, replace)
        return io.NodeOutput(joined(timeline, conditioning, span))
