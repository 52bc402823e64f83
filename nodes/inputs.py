"""The check of what wires bring: ComfyUI's AUDIO, LATENT and CONDITIONING, and whose MODEL, CLIP or VAE it is.

Dimensions: B batch, L samples, S text tokens, X context width.
"""

from collections.abc import Mapping

from torch import Tensor

from ..dasheng_core.inputs import as_rate, shown
from ..dasheng_core.tensors import MIN_SAMPLES, as_context, as_tensor, as_waveform


def check_kind(value: object, kind: type, wire: str, expected: str) -> None:
    """Raise ValueError for the object of another model; ``expected``: which one, and the node to connect."""
    if not isinstance(value, kind):
        raise ValueError(f"{wire} is a {type(value).__name__}, expected {expected}.")


def as_audio(audio: object, least: int = MIN_SAMPLES) -> tuple[Tensor, int]:
    """ComfyUI's AUDIO -> waveform ``[B, channels, L]`` and its rate in Hz; see :func:`as_waveform`."""
    if audio is None:
        raise ValueError(
            "audio is None, expected a sound: the video or file it comes from has no sound; connect another, or Load Audio."
        )
    waveform, rate = (_entry(audio, "audio", key) for key in ("waveform", "sample_rate"))
    waveform = as_tensor(waveform, "The audio")
    # A lone clip as torchaudio reads it.
    return as_waveform(waveform[None] if waveform.ndim == 2 else waveform, rate, least), as_rate(rate)


def latent_samples(latent: object) -> Tensor:
    """The tensor in ComfyUI's LATENT, of any shape."""
    return as_tensor(_entry(latent, "latent", "samples"), "latent")


def check_conditioning(value: object, width: int | None, name: str) -> None:
    """Raise ValueError for what is not a CONDITIONING of ComfyUI for a backbone of that context width, None: of any."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is {shown(value)}, expected a conditioning: connect Dasheng Text Encode.")
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise ValueError(f"{name} holds {shown(pair)}, expected tensors with options: connect Dasheng Text Encode.")
        as_context(pair[0], width, name)


def _entry(value: object, name: str, key: str) -> object:
    """An entry of one of ComfyUI's dicts."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}, expected a dict with {key}: connect an {name.upper()} output.")
    if value.get(key) is None and key != "sample_rate":
        raise ValueError(f"{name} has no {key}, expected a dict with one: connect another {name.upper()}.")
    return value.get(key)
