"""The recording and the video that templates load, made for tests and pictures."""

from pathlib import Path

import av
import numpy as np
import soundfile


def write_inputs(folder: Path) -> None:
    """``recording.wav``: 1 s of stereo noise at 44.1 kHz; ``video.mp4``: 2 s without sound, 10 frames per second."""
    soundfile.write(folder / "recording.wav", np.random.default_rng(0).normal(0, 0.1, (44100, 2)), 44100)
    with av.open(str(folder / "video.mp4"), "w") as video:
        stream = video.add_stream("h264", rate=10, width=64, height=64, pix_fmt="yuv420p")
        for shade in range(0, 200, 10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8))
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
