"""Waveforms -> sound files, whole or not at all."""

import io
import logging
import os
from pathlib import Path

import soundfile
from torch import Tensor

from .inputs import check_finite
from .whole_file import write_whole

log = logging.getLogger(__name__)

# Name -> the file's suffix and libsndfile's subtype. Float keeps peaks beyond full scale as they are; FLAC has no float form.
FORMATS = {
    "wav16": (".wav", "PCM_16"),
    "wav24": (".wav", "PCM_24"),
    "wav32": (".wav", "FLOAT"),
    "flac": (".flac", "PCM_24"),
}
# What a suffix alone asks for.
FORMAT_OF_SUFFIX = {".wav": "wav32", ".flac": "flac"}


def choose_format(path: Path, name: str | None = None) -> str:
    """The entry of :data:`FORMATS` of a file, which ``name`` None leaves to the file's suffix.

    Raises:
        ValueError: a suffix of no format, or of another than ``name``.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMAT_OF_SUFFIX:
        raise ValueError(f"{path}: expected a name that ends in {' or '.join(FORMAT_OF_SUFFIX)}.")
    name = name or FORMAT_OF_SUFFIX[suffix]
    if FORMATS[name][0] != suffix:
        raise ValueError(f"{path}: the format {name} needs a name that ends in {FORMATS[name][0]}.")
    return name


def write_audio(path: Path, waveform: Tensor, sample_rate: int, file_format: str | None = None) -> None:
    """Write ``[samples]``. The same waveform gives the same bytes.

    The file appears under its name only when it is complete, and never in place of another.

    Args:
        file_format: a name in :data:`FORMATS`; None: 32-bit float WAV or 24-bit FLAC, as the suffix says.

    Raises:
        ValueError: a suffix of another format, or samples that are not numbers; no file is made.
        FileExistsError: there is a file of that name.
        OSError: the folder cannot be written to, or the disk is full.
    """
    suffix, subtype = FORMATS[choose_format(path, file_format)]
    check_finite(waveform, f"The sound for {path}", "nothing is written; make it again")
    peak = waveform.abs().max().item()
    if subtype != "FLOAT" and peak > 1:
        log.warning("%s: the peak is %.2f times full scale and is clipped; the format wav32 would keep it.", path, peak)
    encoded = _encode(waveform, sample_rate, suffix, subtype)

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def _encode(waveform: Tensor, sample_rate: int, suffix: str, subtype: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.numpy(), sample_rate, format=suffix[1:], subtype=subtype)
    encoded = bytearray(buffer.getbuffer())
    # libsndfile stamps the time of writing into the PEAK chunk of float WAVs, behind its size and version.
    peak = encoded.find(b"PEAK", 0, 128) if subtype == "FLOAT" else -1
    if peak >= 0:
        encoded[peak + 12 : peak + 16] = bytes(4)
    return bytes(encoded)
