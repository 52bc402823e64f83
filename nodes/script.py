"""STRING -> CONDITIONING: lines with times as one timeline, the clip's seconds, and a picture of the lines."""

import math

import comfy.utils
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..dasheng_core.control.script import SPEECH_SPAN, Script
from ..dasheng_core.inputs import as_float, as_text
from ..dasheng_core.options import FADE
from ..dasheng_core.quoting import plain
from .comfy.scene import LINES, scene_of
from .common import number_input, seconds_input
from .lanes import draw_lanes, in_lanes
from .node_text import said
from .text import encode
from .versions import schema

WIDTH, LANE_HEIGHT, MOST_DRAWN = 1024, 28, 500
EXAMPLE = "0:00-0:06 env: rain on a tin roof\n0:02-0:04 sfx: a door slams\n0:03 speech: an old man, tired\n0:03-0:05 asr: We should go."


class DashengScript(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengScript",
            display_name="Dasheng Script",
            search_aliases=[
                "script",
                "storyboard",
                "screenplay",
                "timed prompts",
                "srt",
                "subtitles",
                "cue sheet",
                "schedule",
            ],
            description="A scene in time, written as one text: a line for each sound, with its time. SRT cues and Audacity's labels "
            "are read too.",
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Dasheng Text Encoder."),
                io.String.Input(
                    "script",
                    multiline=True,
                    default=EXAMPLE,
                    # Words are left as they are written.
                    dynamic_prompts=False,
                    tooltip="A line for each sound: a time or two, what it is (scene, speech, asr, sfx, music or env), a colon and a "
                    "text. asr is what is said.",
                ),
                seconds_input("seconds", "Length of the clip, in seconds. 0: until the last end in the script."),
                seconds_input(
                    "fade", "Seconds around each change in which one scene gives way to the other.", default=FADE
                ),
                number_input(
                    "speech_span",
                    SPEECH_SPAN,
                    0.5,
                    600.0,
                    0.5,
                    "Words that take more seconds than this are split where sentences end, and each part is said once, in its own time.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="For positive of any sampler."),
                io.Float.Output(display_name="seconds", tooltip="For Empty Dasheng Latent Audio."),
                io.Image.Output(tooltip="The lines as bars over the time of the clip."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, script, seconds, fade, speech_span) -> io.NodeOutput:
        seconds = as_float(seconds, "seconds", 0, 600, "0 is until the last end in the script")
        scene = Script.parse(as_text(script, "script"), fade, seconds or None, speech_span)
        bar, encoded = comfy.utils.ProgressBar(len(scene.prompts)), {}
        for prompt in scene.prompts:
            if prompt not in encoded:
                encoded[prompt] = encode(clip, prompt)
            bar.update(1)
        ((context, options),) = scene_of([encoded[prompt] for prompt in scene.prompts], scene.spans)
        seconds = scene.seconds or max(conditioning[0][1]["seconds"] for conditioning in encoded.values())
        lines = tuple((line.start, line.end, plain(f"{line.aspect}: {line.text}")) for line in scene.lines[:MOST_DRAWN])
        shown = [(start, min(end, seconds), name) for start, end, name in lines]
        height = LANE_HEIGHT * (max(in_lanes(shown)) + 1)
        pixels = np.array(draw_lanes(shown, seconds, WIDTH, height), dtype=np.float32)
        picture = torch.from_numpy(pixels)[None] / 255
        count = len(scene.prompts)
        text = said(f"{math.floor(seconds * 100 + 0.5) / 100:g} s, {count} scene{'s' * (count > 1)}")
        preview = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput([[context, {**options, LINES: lines}]], seconds, picture, ui={**preview, **text})
