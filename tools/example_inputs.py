"""The recording and the video that templates load, made for tests and pictures."""

from pathlib import Path

import av
import numpy as np
import soundfile

FPS, FRAMES = 10, 20
# Frames at which a box appears, starts to move, and stops, and at which the picture is cut.
HITS = APPEARS, STARTS, STOPS, CUT = 4, 8, 12, 16


def write_inputs(folder: Path) -> None:
    """``recording.wav``: 1 s of stereo noise at 44.1 kHz; ``video.mp4``: 2 s without sound, 10 frames per second, four hits."""
    soundfile.write(folder / "recording.wav", np.random.default_rng(0).normal(0, 0.1, (44100, 2)), 44100)
    with av.open(str(folder / "video.mp4"), "w") as video:
        stream = video.add_stream("h264", rate=FPS, width=64, height=64, pix_fmt="yuv420p")
        for number in range(FRAMES):
            picture = np.full((64, 64, 3), 200 if number >= CUT else 40, np.uint8)
            if APPEARS <= number < CUT:
                left = 8 + 3 * min(max(number - STARTS + 1, 0), STOPS - STARTS + 1)
                picture[20:40, left : left + 16] = (80, 60, 50)
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        video.mux(stream.encode())
