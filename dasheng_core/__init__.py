"""Dasheng-AudioGen in plain PyTorch: text prompts to 16 kHz scenes of speech, music, effects and ambience.

The files follow the data: prompt, text_encoder, adapter, backbone with schedule and sampling, audio_tokenizer;
``pipeline`` strings them together and ``checkpoint`` fills them with weights.
"""

from importlib import import_module

# As in pyproject.toml, which ComfyUI's registry reads.
__version__ = "0.1.0"

_PUBLIC = {
    "CheckpointError": "weights.reading",
    "DashengAudioGen": "pipeline",
    "PromptError": "prompt",
    "Timeline": "direction",
    "compose_prompt": "prompt",
    "lint_prompt": "prompt",
    "parse_prompt": "prompt",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    # Imported on first use: the command line starts, and stops, before torch is there.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
