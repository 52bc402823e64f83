"""Waveforms -> sound files, whole or not at all."""

import logging
import os
import tempfile
from pathlib import Path

import soundfile
from torch import Tensor

log = logging.getLogger(__name__)

# Float keeps peaks beyond full scale as they are; FLAC has no float form.
FORMATS = {".wav": "FLOAT", ".flac": "PCM_24"}


def write_audio(path: Path, waveform: Tensor, sample_rate: int) -> None:
    """Write ``[samples]`` as 32-bit float WAV or 24-bit FLAC.

    The file appears under its name only when it is complete.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    subtype = FORMATS[path.suffix]
    peak = waveform.abs().max().item()
    if subtype != "FLOAT" and peak > 1:
        log.warning("%s: the peak is %.2f times full scale and is clipped; a .wav file would keep it.", path, peak)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        soundfile.write(temporary, waveform.numpy(), sample_rate, subtype=subtype)
        # mkstemp makes files private; a sound file is as readable as the user's other files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, soundfile.LibsndfileError):
            raise OSError(f"{path} could not be written ({error}): is the disk full?") from error
        raise
