"""Dasheng-AudioGen in plain PyTorch: text prompts to 16 kHz scenes of speech, music, effects and ambience.

The files follow the data: prompt, text_encoder, adapter, backbone with schedule and sampling, audio_tokenizer;
``pipeline`` strings them together and ``checkpoint`` fills them with weights.
"""

from .checkpoint import CheckpointError
from .pipeline import DashengAudioGen
from .prompt import PromptError, compose_prompt, lint_prompt, parse_prompt

__all__ = ["CheckpointError", "DashengAudioGen", "PromptError", "compose_prompt", "lint_prompt", "parse_prompt"]
