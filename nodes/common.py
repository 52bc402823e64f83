"""What every file of nodes may use: the category, the words that find a node, and widgets that several nodes have."""

from comfy_api.latest import io

from ..dasheng_core.duration import MAX_SECONDS

CATEGORY = "audio/dasheng"
# What a sound designer searches for.
SOUND = [
    *("text to audio", "text to sound", "audio generation", "sound effect", "sfx", "foley", "ambience", "rain"),
    *("soundscape", "tts", "text to speech", "speech", "voice", "voice over", "dialogue", "narration", "music"),
    *("game audio", "whoosh", "explosion", "footsteps", "impact", "riser", "drone", "UI click", "creature"),
    *("engine", "crowd"),
]
# What people read at the input of an aspect.
ASPECT_LABELS = {
    "caption": "whole scene",
    "speech": "speaker",
    "asr": "spoken words",
    "sfx": "sound effects",
    "music": "music",
    "env": "ambience & recording",
}
# The graph as the app has it, and which node of it runs.
HIDDEN = [io.Hidden.extra_pnginfo, io.Hidden.unique_id]


def number_input(name: str, default: float, least: float, most: float, step: float, tooltip: str):
    return io.Float.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip)


def seconds_input(name: str, tooltip: str, default: float = 0.0):
    return io.Float.Input(name, default=default, min=0.0, max=MAX_SECONDS, step=0.04, round=0.001, tooltip=tooltip)
