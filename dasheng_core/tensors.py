"""The check of tensors, devices and dtypes that users give, as :mod:`dasheng_core.inputs` for numbers and texts.

Dimensions: B batch, L samples, C latent channels, T latent frames, S text tokens, X context width.
"""

import numpy as np
import torch
from torch import Tensor

from . import options
from .duration import SAMPLE_RATE
from .inputs import as_choice, as_rate, shown
from .quoting import plain

DTYPES = dict(zip(options.BACKBONE_DTYPES, (torch.bfloat16, torch.float16, torch.float32), strict=True))
# Names of a dtype beside those of options.
DTYPE_NAMES = {**DTYPES, **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}}
# Half of the encoder's acoustic FFT: reflect padding needs one sample more.
MIN_SAMPLES = 513
# The full-size encoder takes about 3 GB for an hour.
MAX_ENCODED_SECONDS = 3600.0
# What to do about a result that is not finite.
UNSTABLE = "lower the guidance scale, load the model in bf16 or fp32, or leave out a LoRA"
# Integer samples -> the value of full scale. 8-bit sound is unsigned in WAV files and is converted separately.
FULL_SCALE = {torch.int8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31}


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
        # Reads a number back: the device "meta" has shapes alone.
        torch.zeros((), dtype=torch.float32, device=device).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = plain(next(iter(str(error).splitlines()), type(error).__name__))
        raise ValueError(
            f"The device {shown(str(value))} cannot be used ({reason}): expected cpu, cuda, mps or auto."
        ) from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones: GPUs do, and CPUs with matrix units."""
    if device.type != "cpu":
        return True
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    names = "_is_amx_tile_supported", "_is_avx512_bf16_supported"
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


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


def as_latent(value: object, channels: int, name: str = "latent") -> Tensor:
    """A latent ``[B, C, T]``, float32 on the device it came on, neither B nor T zero."""
    latent = as_tensor(value, name).float()
    if latent.ndim != 3 or latent.shape[1] != channels or 0 in latent.shape:
        raise ValueError(
            f"{name} has shape {list(latent.shape)}, expected [batch, {channels}, frames]: it belongs to another model, or "
            "is empty; use one that this model's encoder or sampler made, or an empty latent of its own."
        )
    return check_finite(latent, name, "make it again; a broken weight or LoRA, or float16, can be the cause")


def as_context(value: object, width: int | None, name: str = "conditioning") -> Tensor:
    """What conditions the backbone, ``[B, S, X]``, on the device and in the dtype it came in; ``width`` None: of any width."""
    context = as_tensor(value, name)
    if context.ndim != 3 or width not in (None, context.shape[-1]) or 0 in context.shape:
        raise ValueError(
            f"{name} has shape {list(context.shape)}, expected [batch, tokens, {width or 'width'}]: it was made for another model; use "
            "this model's own text encoder."
        )
    return check_finite(context, name, "encode the text again; a broken weight or float16 can be the cause")


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
