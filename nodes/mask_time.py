"""LATENT -> LATENT with a noise mask in time: which span of a clip is sampled again, and which stays."""

import logging

import torch
import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.control.keep import extend, time_mask
from ..dasheng_core.control.script import with_words
from ..dasheng_core.control.timeline import IN_SECONDS, Span
from ..dasheng_core.duration import FRAME_RATE, MAX_SECONDS
from ..dasheng_core.inputs import as_float, as_text
from ..dasheng_core.prompt import spoken_words
from .comfy.scene import joined, prompts_of_scene
from .common import seconds_input
from .inputs import check_conditioning
from .latent import clip_of, noise_mask
from .text import encode
from .versions import schema

log = logging.getLogger(__name__)


def until(end: object, name: str, seconds: float) -> float:
    """The end of a span; 0 is that of the clip, which lasts ``seconds``."""
    end = as_float(end, name, 0, MAX_SECONDS, f"{IN_SECONDS}, and 0 is the end of the clip")
    return end or seconds


class DashengMaskTime(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengMaskTime",
            display_name="Dasheng Mask Time",
            search_aliases=["inpaint", "replace", "regenerate", "noise mask", "repaint"],
            description="Marks a span of a clip to be sampled again; a sampler keeps all else as it is.",
            inputs=[
                io.Latent.Input("latent", tooltip="From Dasheng Encode, or a sampler."),
                seconds_input("start", "Where the span begins, in seconds."),
                seconds_input("end", "Where the span ends, in seconds. 0: at the end of the clip."),
                seconds_input(
                    "feather",
                    "Seconds outside of the span, at either end, that are sampled again in part: less and less with the "
                    "distance. 0: every frame outside stays.",
                ),
                io.Boolean.Input(
                    "add",
                    default=False,
                    tooltip="On: spans that were marked before stay marked. Off: this one alone is sampled again.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The latent and its mask, for a sampler.")],
        )

    @classmethod
    def execute(cls, latent, start, end, feather, add) -> io.NodeOutput:
        samples = clip_of(latent)
        seconds = samples.shape[-1] / FRAME_RATE
        feather = as_float(feather, "feather", 0, MAX_SECONDS, "it is in seconds, and 0 is none")
        mask = time_mask(start, until(end, "end", seconds), samples.shape[-1], feather)
        return masked(latent, samples, mask, noise_mask(latent) if add else None)


class DashengExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengExtend",
            display_name="Dasheng Extend",
            search_aliases=["continue", "outpaint", "longer", "extend audio"],
            description="Makes room before and after a clip, for a sampler to go on in. The clip itself is kept as it is.",
            inputs=[
                io.Latent.Input("latent", tooltip="From Dasheng Encode, or a sampler."),
                seconds_input("before", "Seconds of room before the clip."),
                seconds_input("after", "Seconds of room after the clip.", default=4.0),
                io.Conditioning.Input(
                    "conditioning",
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="What the clip was made of, where somebody speaks in it; connect clip too.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="From Load Dasheng Text Encoder: it reads words."),
                io.String.Input(
                    "words",
                    multiline=True,
                    default="",
                    optional=True,
                    dynamic_prompts=False,
                    tooltip="What is said in the room after the clip. Empty: nobody speaks there.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The longer latent and its mask, for a sampler."),
                io.Conditioning.Output(
                    tooltip="The same scene, with words in the room after the clip, for positive of that sampler."
                ),
            ],
        )

    @classmethod
    def execute(cls, latent, before, after, conditioning=None, clip=None, words="") -> io.NodeOutput:
        samples = clip_of(latent)
        most = MAX_SECONDS - samples.shape[-1] / FRAME_RATE
        room = [
            as_float(seconds, name, 0, most, f"a clip of more than {MAX_SECONDS:g} s needs too much memory")
            for name, seconds in (("before", before), ("after", after))
        ]
        going = extended_conditioning(conditioning, clip, as_text(words, "words"), room, samples.shape[-1] / FRAME_RATE)
        samples, mask = extend(samples, *room)
        return io.NodeOutput(*masked(latent, samples, mask).args, going)


def extended_conditioning(conditioning, clip, words: str, room: list[float], seconds: float):
    """The scene of a clip of so many seconds with other words from its end on; as it is where nobody speaks."""
    if conditioning is None or clip is None:
        if words.strip() or clip is not conditioning:
            raise ValueError(
                "conditioning and clip belong together, expected both or, without words, neither: connect what the clip was made of, and "
                "Load Dasheng Text Encoder."
            )
        return None
    check_conditioning(conditioning, None, "conditioning")
    prompts, _ = prompts_of_scene(conditioning)
    if not words.strip() and not any(map(spoken_words, prompts)):
        return conditioning
    if room[0]:
        raise ValueError(
            f"before is {room[0]:g} s, expected 0 with a conditioning that has words: those of the clip stand at its start; make room "
            "before it in another Dasheng Extend, without conditioning."
        )
    if not words.strip():
        log.warning("words is empty: nobody speaks in the added %g s. Write there what is said.", room[1])
    return (
        joined(conditioning, encode(clip, with_words(prompts[-1], words)), Span(seconds)) if room[1] else conditioning
    )


def masked(latent: dict, samples: Tensor, mask: Tensor, earlier: Tensor | None = None) -> io.NodeOutput:
    """The LATENT with other samples and a mask ``[T]``, beside an earlier one ``[B, 1, T]`` if there is one."""
    mask = mask.to(samples)[None, None]
    if earlier is not None:
        # To the clip's length, as ComfyUI does.
        mask = torch.maximum(mask, F.interpolate(earlier.to(mask), mask.shape[-1], mode="linear"))
    return io.NodeOutput({**latent, "samples": samples, "noise_mask": mask})
