"""The check of user input, in one place: converted where that is harmless, refused by name where it is not.

Every error is a ValueError of one sentence: the value, what was expected, what to do. Nothing is computed before it.

Dimensions: B batch, L samples, C latent channels, T latent frames, S text tokens, X context width.
"""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .duration import MAX_SECONDS, SAMPLE_RATE
from .quoting import plain

# As options name them.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Names of a dtype beside those of options.
DTYPE_NAMES = {**DTYPES, **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}}
# The highest rate of any sound hardware.
MAX_RATE = 768_000
# Half of the encoder's acoustic FFT: reflect padding needs one sample more.
MIN_SAMPLES = 513
# The full-size encoder takes about 3 GB for an hour.
MAX_ENCODED_SECONDS = 3600.0
# What to do about a result that is not finite.
UNSTABLE = "lower the guidance scale, load the model in bf16 or fp32, or leave out a LoRA"
# Integer samples -> the value of full scale. 8-bit sound is unsigned in WAV files; it is handled apart.
FULL_SCALE = {torch.int8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31}


def shown(value: object) -> str:
    """A value as an error can show it: short, and a tensor by its shape."""
    if isinstance(value, (Tensor, np.ndarray)) and value.shape:
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, (Tensor, np.generic, np.ndarray)):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > 256:
        # Python refuses to write thousands of digits.
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (str, Real)):
        return f"'{plain(value, 40)}'" if isinstance(value, str) else plain(repr(value), 40)
    return f"an object of type {type(value).__name__}" if value != [] else "an empty list"


def as_float(value: object, name: str, least: float, most: float, remedy: str) -> float:
    """A number from ``least`` to ``most``: Python's, numpy's, or torch's of one element."""
    number = _number(value)
    # Not a number is in no range.
    if number is None or not least <= number <= most:
        raise ValueError(f"{name} is {shown(value)}, expected a number from {least:g} to {most:g}: {remedy}.")
    return float(number)


def as_int(value: object, name: str, least: int, most: int, remedy: str) -> int:
    """A whole number from ``least`` to ``most``, of any numeric type."""
    number = _number(value)
    if number is None or not least <= number <= most or number != math.floor(number):
        raise ValueError(f"{name} is {shown(value)}, expected a whole number from {least} to {most}: {remedy}.")
    return int(number)


def as_seconds(value: object, count: int) -> list[float]:
    """Lengths of so many clips in seconds, above 0: one for all, or one for each."""
    given = as_list(value)
    lengths = given * count if given == [value] else given
    if len(lengths) != count:
        raise ValueError(f"{len(lengths)} durations for {count} prompts: give one number, or one a prompt.")
    remedy = "training clips were 10 s long, and more than ten minutes need too much memory"
    seconds = [as_float(length, "A duration in seconds", 0, MAX_SECONDS, remedy) for length in lengths]
    if 0 in seconds:
        raise ValueError(f"A duration of 0 seconds, expected more than 0: {remedy}.")
    return seconds


def as_choice(value: object, name: str, options: Iterable[str]) -> str:
    """One of some names."""
    if value not in list(options):
        raise ValueError(f"{name} is {shown(value)}, expected {', '.join(options)}.")
    return value


def as_dtype(value: object) -> torch.dtype:
    """A dtype, or its name. Raises ValueError for another."""
    if isinstance(value, torch.dtype) and value in DTYPES.values():
        return value
    name = str(value).removeprefix("torch.")
    return DTYPE_NAMES[as_choice(name, "dtype", DTYPE_NAMES)]


def as_device(value: str | torch.device) -> torch.device:
    """A device, its name, or "auto". Raises ValueError for one that cannot compute here."""
    if value == "auto":
        value = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(value)
        # To be read, a number must be there: "meta" has shapes alone.
        torch.zeros((), dtype=torch.float32, device=device).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = plain(next(iter(str(error).splitlines()), type(error).__name__))
        raise ValueError(
            f"The device {shown(str(value))} cannot be used ({reason}): expected cpu, cuda, mps or auto."
        ) from error
    return device


def check_kind(value: object, kind: type, wire: str, expected: str) -> None:
    """Raise ValueError for the object of another model; ``expected``: which one, and the node to connect."""
    if not isinstance(value, kind):
        raise ValueError(f"{wire} is a {type(value).__name__}, expected {expected}.")


def as_list(value: object) -> list[Any]:
    """The items of a list, tuple, array or tensor; anything else is one item."""
    if isinstance(value, (Tensor, np.ndarray)):
        return list(value.tolist()) if value.ndim else [value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)) else [value]


def as_prompts(value: object) -> list[str]:
    """One prompt or several, at least one."""
    prompts = as_list(value)
    if not prompts:
        raise ValueError("prompts is an empty list, expected at least one prompt.")
    for prompt in prompts:
        as_text(prompt, "A prompt")
    return prompts


def as_text(value: object, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, expected a text: write it there, or connect a text.")
    return value


def as_tensor(value: object, name: str) -> Tensor:
    """A plain tensor from a tensor, a numpy array or nested lists of numbers."""
    try:
        if isinstance(value, (list, tuple)):
            # torch would round the numbers to its default dtype.
            value = np.array(value)
        if isinstance(value, np.ndarray):
            # torch reads neither foreign byte orders nor negative strides.
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {shown(value)} of something else than numbers, expected a tensor.") from error
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_complex():
        raise ValueError(f"{name} is {shown(value)}, expected a plain tensor of real numbers.")
    return value.detach()


def check_finite(tensor: Tensor, name: str, remedy: str) -> Tensor:
    """The tensor itself. Raises ValueError for NaN or infinite values."""
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} has values that are not numbers (NaN or infinite): {remedy}.")
    return tensor


def as_waveform(value: object, sample_rate: object = SAMPLE_RATE, least: int = MIN_SAMPLES) -> Tensor:
    """Sound ``[B, channels, L]``, float32 within about -1 to 1; integers are scaled by their full scale.

    Args:
        value: ``[B, channels, L]``, or ``[L]``.
        sample_rate: Hz, by which the length at 16 kHz is checked; nothing is resampled.
        least: samples at 16 kHz, by default what the encoder needs.
    """
    rate = as_rate(sample_rate)
    waveform = as_tensor(value, "The audio")
    if waveform.dtype == torch.uint8:
        waveform = (waveform.float() - 128) / 128
    elif waveform.dtype in FULL_SCALE:
        waveform = waveform.float() / FULL_SCALE[waveform.dtype]
    elif not waveform.is_floating_point():
        raise ValueError(
            f"The audio has samples of {waveform.dtype}, expected floating point within -1 to 1, or int8, uint8, int16 or "
            "int32: convert it, since the scale of the others is not known."
        )
    waveform = waveform.float()
    shape = list(waveform.shape)
    if waveform.ndim == 1:
        waveform = waveform[None, None]
    if waveform.ndim != 3:
        raise ValueError(f"The audio has shape {shape}, expected [(batch,) channels, samples] or [samples].")
    clips, channels, samples = waveform.shape
    resampled = -(-samples * SAMPLE_RATE // rate)
    if 0 in (clips, channels) or resampled < least:
        raise ValueError(
            f"The audio has {clips} clips of {resampled} samples at 16 kHz, expected at least one of {least} "
            f"({least / SAMPLE_RATE * 1000:.0f} ms): use a longer clip (its shape is {shape}, at {rate} Hz)."
        )
    if samples > MAX_ENCODED_SECONDS * rate:
        raise ValueError(
            f"The audio is {samples / rate:.0f} seconds long ({samples} samples at {rate} Hz), expected at most "
            f"{MAX_ENCODED_SECONDS:g}, which take gigabytes of memory: cut it, or correct its sample rate."
        )
    return check_finite(waveform, "The audio", "make it again, or repair it in an editor")


def as_rate(value: object) -> int:
    """A sample rate in Hz."""
    return as_int(value, "The sample rate of the audio", 1, MAX_RATE, "16000 and 44100 are usual")


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


def as_latent(value: object, channels: int, name: str = "latent") -> Tensor:
    """A latent ``[B, C, T]``, float32 on the device it came on, neither B nor T zero."""
    latent = as_tensor(value, name).float()
    if latent.ndim != 3 or latent.shape[1] != channels or 0 in latent.shape:
        raise ValueError(
            f"{name} has shape {list(latent.shape)}, expected [batch, {channels}, frames]: it belongs to another model, or "
            "is empty; use one that this model's encoder or sampler made, or an empty latent of its own."
        )
    return check_finite(latent, name, "make it again; a broken weight or LoRA, or float16, can be the cause")


def latent_samples(latent: object) -> Tensor:
    """The tensor in ComfyUI's LATENT, of any shape."""
    return as_tensor(_entry(latent, "latent", "samples"), "latent")


def as_context(value: object, width: int | None, name: str = "conditioning") -> Tensor:
    """What conditions the backbone, ``[B, S, X]``, on the device and in the dtype it came in; ``width`` None: of any width."""
    context = as_tensor(value, name)
    if context.ndim != 3 or width not in (None, context.shape[-1]) or 0 in context.shape:
        raise ValueError(
            f"{name} has shape {list(context.shape)}, expected [batch, tokens, {width or 'width'}]: it was made for another model; use "
            "this model's own text encoder."
        )
    return check_finite(context, name, "encode the text again; a broken weight or float16 can be the cause")


def check_conditioning(value: object, width: int | None, name: str) -> None:
    """Raise ValueError for what is not a CONDITIONING of ComfyUI for a backbone of that context width, None: of any."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is {shown(value)}, expected a conditioning: connect Dasheng Text Encode.")
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise ValueError(f"{name} holds {shown(pair)}, expected tensors with options: connect Dasheng Text Encode.")
        as_context(pair[0], width, name)


def as_token_mask(value: object, context: Tensor) -> Tensor:
    """The mask ``[B, S]`` bool that belongs to a context, at least one token of each item True."""
    mask, remedy = as_tensor(value, "mask").bool(), "use the mask that came with the content"
    if mask.shape != context.shape[:2]:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, expected {list(context.shape[:2])}, that of content: {remedy}."
        )
    if not bool(mask.any(dim=1).all()):
        empty = [item for item, any_token in enumerate(mask.any(dim=1).tolist()) if not any_token]
        raise ValueError(
            f"mask is False for every token of item {empty[0]}, expected True for at least one of each item: {remedy}."
        )
    return mask


def _number(value: object) -> int | float | None:
    if isinstance(value, (Tensor, np.ndarray)) and math.prod(value.shape) == 1:
        value = value.item()
    # To Python, True is a number.
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _entry(value: object, name: str, key: str) -> object:
    """An entry of one of ComfyUI's dicts."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}, expected a dict with {key}: connect an {name.upper()} output.")
    if value.get(key) is None and key != "sample_rate":
        raise ValueError(f"{name} has no {key}, expected a dict with one: connect another {name.upper()}.")
    return value.get(key)
