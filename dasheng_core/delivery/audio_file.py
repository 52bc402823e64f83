"""Waveforms -> sound files, by atomic writes."""

import io
import logging
import os
import zlib
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from ..quoting import plain
from ..tensors import check_finite
from .atomic import atomic_write
from .formats import FORMATS, choose_format
from .wav_chunks import append_chunks

log = logging.getLogger(__name__)

BITS = {"PCM_16": 16, "PCM_24": 24}
# Sizes in a WAV file have 32 bits; some are left for its headers.
MOST_WAV_BYTES = 2**32 - 2**16


def write_audio(
    path: Path, waveform: Tensor, sample_rate: int, file_format: str | None = None, chunks: bytes = b""
) -> None:
    """Write ``[samples]`` or ``[channels, samples]``. The same waveform gives the same bytes; 16 bits are dithered.

    The file appears under its name only when it is complete, and never in place of another.

    Args:
        file_format: a name in :data:`FORMATS`; None: 32-bit float WAV or 24-bit FLAC, as the suffix says.
        chunks: what a WAV holds behind its sound, see :mod:`dasheng_core.delivery.wav_chunks`.

    Raises:
        ValueError: a suffix of another format, samples that are not numbers, or more of them, of channels or of Hz than
            the format can hold; no file is made.
        FileExistsError: there is a file of that name.
        OSError: the folder cannot be written to, or the disk is full.
    """
    write_bytes(path, encode_audio(path, waveform, sample_rate, file_format, chunks))


def encode_audio(
    path: Path, waveform: Tensor, sample_rate: int, file_format: str | None = None, chunks: bytes = b""
) -> bytes:
    """What :func:`write_audio` would write under that name. Raises ValueError as it does."""
    suffix, subtype = FORMATS[choose_format(path, file_format)]
    size = waveform.numel() * BITS.get(subtype, 32) // 8 + len(chunks)
    if suffix == ".wav" and size > MOST_WAV_BYTES:
        raise ValueError(
            f"The sound for {plain(path)} takes {size / 1e9:.1f} GB, expected at most {MOST_WAV_BYTES / 1e9:.1f}, which a WAV "
            "file can hold: save it in parts, or with fewer bits or channels."
        )
    check_finite(waveform, f"The sound for {path}", "nothing is written; make it again")
    peak = waveform.abs().max().item()
    if subtype != "FLOAT" and peak > 1:
        log.warning(
            "The peak is %.2f times full scale and is clipped: turn it down, or save 32 bit float, which keeps it (%s).",
            peak,
            plain(path),
        )
    try:
        encoded = _encode(waveform, sample_rate, suffix, subtype)
    except soundfile.LibsndfileError as error:
        channels = 1 if waveform.ndim == 1 else len(waveform)
        raise ValueError(
            f"{plain(path)} cannot hold {channels} channels at {sample_rate} Hz ({plain(error)}): a WAV file holds 1024 channels, a FLAC "
            "file 8, at up to 655350 Hz; mix the channels down, or change the rate."
        ) from error
    return append_chunks(encoded, chunks if suffix == ".wav" else b"")


def write_bytes(path: Path, data: bytes, replace: bool = False) -> None:
    """Write a file atomically, and onto the disk before it has its name. Raises OSError.

    Args:
        replace: replace a file of that name; without it that file stays, and FileExistsError is raised.
    """

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    atomic_write(path, write, replace)


def _encode(waveform: Tensor, sample_rate: int, suffix: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    samples = waveform if subtype == "FLOAT" else quantize(waveform, BITS[subtype])
    soundfile.write(buffer, samples.movedim(0, -1).numpy(), sample_rate, format=suffix[1:], subtype=subtype)
    encoded = bytearray(buffer.getbuffer())
    # libsndfile stamps the time of writing into the PEAK chunk of float WAVs, behind its size and version.
    peak = encoded.find(b"PEAK", 0, 128) if subtype == "FLOAT" else -1
    if peak >= 0:
        encoded[peak + 12 : peak + 16] = bytes(4)
    return bytes(encoded)


def quantize(waveform: Tensor, bits: int) -> Tensor:
    """float -> int32 whose upper ``bits`` hold the sample; beyond full scale is clipped.

    16 bits get TPDF dither (two uniform numbers, one step each), drawn from the waveform's own checksum; samples that
    are whole steps already, as those of a 16-bit file, stay as they are.
    """
    steps = waveform.double() * 2 ** (bits - 1)
    if bits == 16 and not torch.equal(steps, steps.round()):
        generator = torch.Generator().manual_seed(zlib.crc32(waveform.numpy().tobytes()))
        first, second = torch.rand(2, *steps.shape, generator=generator, dtype=torch.float64, device="cpu")
        steps = steps + first - second
    return steps.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).int() * 2 ** (32 - bits)
