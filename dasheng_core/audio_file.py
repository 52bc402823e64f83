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

# Float keeps peaks beyond full scale as they are; FLAC has no float form.
FORMATS = {".wav": "FLOAT", ".flac": "PCM_24"}


def write_audio(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Write ``[samples]`` as 32-bit float WAV or 24-bit FLAC. The same waveform gives the same bytes.

    The file appears under its name only when it is complete, and never in place of another.

    Raises:
        ValueError: samples that are not numbers; no file is made.
        FileExistsError: there is a file of that name.
        OSError: the folder cannot be written to, or the disk is full.
    """
    subtype = FORMATS[path.suffix]
    check_finite(waveform, f"The sound for {path}", "nothing is written; make it again")
    peak = waveform.abs().max().item()
    if subtype != "FLOAT" and peak > 1:
        log.warning("%s: the peak is %.2f times full scale and is clipped; a .wav file would keep it.", path, peak)
    encoded = _encode(waveform, sample_rate, path.suffix)

    def write(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())

    write_whole(path, write)


def _encode(waveform: Tensor, sample_rate: int, suffix: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.numpy(), sample_rate, format=suffix[1:], subtype=FORMATS[suffix])
    encoded = bytearray(buffer.getbuffer())
    # libsndfile stamps the time of writing into the PEAK chunk of float WAVs, behind its size and version.
    peak = encoded.find(b"PEAK", 0, 128) if suffix == ".wav" else -1
    if peak >= 0:
        encoded[peak + 12 : peak + 16] = bytes(4)
    return bytes(encoded)
