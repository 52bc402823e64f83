"""Dasheng-AudioGen in plain PyTorch: text prompts to 16 kHz scenes of speech, music, effects and ambience.

The files follow the data: prompt, text_encoder, adapter, backbone with schedule and sampling, audio_tokenizer;
``pipeline`` strings them together, ``weights`` fills them, and ``control`` holds what directs a clip.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .control.script import Script as Script
    from .control.timeline import Timeline as Timeline
    from .pipeline import DashengAudioGen as DashengAudioGen
    from .prompt import PromptError as PromptError
    from .prompt import compose_prompt as compose_prompt
    from .prompt import lint_prompt as lint_prompt
    from .prompt import parse_prompt as parse_prompt
    from .weights.reading import CheckpointError as CheckpointError

# As in pyproject.toml.
__version__ = "1.0.0"

_PUBLIC = {
    "CheckpointError": "weights.reading",
    "DashengAudioGen": "pipeline",
    "PromptError": "prompt",
    "Script": "control.script",
    "Timeline": "control.timeline",
    "compose_prompt": "prompt",
    "lint_prompt": "prompt",
    "parse_prompt": "prompt",
}
__all__ = [
    "CheckpointError",
    "DashengAudioGen",
    "PromptError",
    "Script",
    "Timeline",
    "compose_prompt",
    "lint_prompt",
    "parse_prompt",
]


def __getattr__(name: str) -> object:
    # Imported on first use: the command line starts, and stops, before torch is there.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__path__"]
