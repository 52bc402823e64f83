"""The pictures of a video: IMAGE with its frames per second, or VIDEO, of which one frame is held at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import av
import torch
from comfy_api.latest import Input, InputImpl, io
from torch import Tensor

from ..dasheng_core.delivery.hits import grid_of
from ..dasheng_core.duration import FRAME_RATE
from ..dasheng_core.inputs import as_float
from ..dasheng_core.quoting import plain
from ..dasheng_core.tensors import MAX_ENCODED_SECONDS, as_tensor
from .inputs import check_kind

log = logging.getLogger(__name__)
# Pixels along each side of a cell at which a file's frame is compared.
PIXELS = 4


def picture_inputs(tooltip: str, prefix: str = "like_") -> list:
    """Either form of a video; workflows saved before these inputs were there run as they did."""
    fps = "Frames per second of that video, from Get Video Components."
    return [
        io.Image.Input(f"{prefix}images", optional=True, tooltip=f"The frames of a video, with fps: {tooltip}"),
        io.Float.Input("fps", default=24.0, min=0.01, max=1000.0, step=0.01, optional=True, tooltip=fps),
        io.Video.Input(f"{prefix}video", optional=True, tooltip=f"A VIDEO: {tooltip}"),
    ]


def only_one(**likes: object) -> None:
    """Raise ValueError where several inputs are connected that each say the length."""
    connected = [name for name, like in likes.items() if like is not None]
    if len(connected) > 1:
        raise ValueError(f"{' and '.join(connected)} are connected, expected one of them: each says the length.")


def picture_seconds(images, fps, video) -> float | None:
    """How long the pictures of a video last; None where neither is connected."""
    only_one(like_images=images, like_video=video)
    if video is None:
        return None if images is None else len(_frames_of(images)) / _rate_of(fps)
    with _readable(video):
        cut = any(_trim(video))
        return video.get_duration() if cut else video.get_frame_count() / float(video.get_frame_rate())


def samples_under(seconds: float, rate: int, sound: int) -> tuple[int, str]:
    """How many samples pictures of so many seconds last, and what has to be done to a sound for that."""
    seconds = as_float(seconds, "The length of the video in seconds", 0, MAX_ENCODED_SECONDS, "cut it into parts")
    wanted = max(1, round(seconds * rate))
    done = f"{abs(sound - wanted)} samples {'cut' if sound > wanted else 'of silence added'} for the video"
    # A frame of a latent may be rounding.
    if abs(sound - wanted) > rate / FRAME_RATE:
        log.warning("The sound lasts %.2f s, the video %.2f s: %s.", sound / rate, seconds, done)
    return wanted, done


def read_frames(images, fps, video) -> tuple[int, float, Iterator[tuple[float, Tensor]]]:
    """About how many frames, how many per second, and each with its second; of a file its own, from its first frame on."""
    if video is not None:
        with _readable(video):
            if isinstance(video, InputImpl.VideoFromFile):
                return video.get_frame_count(), float(video.get_frame_rate()), _frames_in_file(video)
            parts = video.get_components()
            images, fps = parts.images, float(parts.frame_rate)
    frames, rate = _frames_of(images), _rate_of(fps)
    return len(frames), rate, ((number / rate, frame.cpu()) for number, frame in enumerate(frames))


def _frames_in_file(video) -> Iterator[tuple[float, Tensor]]:
    start, length = _trim(video)
    with _readable(video), av.open(video.get_stream_source()) as container:
        stream = container.streams.video[0]
        if start:
            container.seek(int(start / stream.time_base), stream=stream)
        first = size = None
        for frame in container.decode(stream):
            if frame.time is None or frame.time < start or (length and frame.time >= start + length):
                continue
            first = frame.time if first is None else first
            size = size or [PIXELS * side for side in grid_of(frame.height, frame.width)]
            small = frame.reformat(height=size[0], width=size[1], format="rgb24", interpolation="AREA")
            yield frame.time - first, torch.from_numpy(small.to_ndarray()) / 255


def _trim(video) -> tuple[float, float]:
    """From which second on a VIDEO is cut, and to how many; 0: it is not. Versions before 0.33 cut none."""
    return getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()


def _frames_of(images) -> Tensor:
    frames = as_tensor(images, "images")
    if frames.ndim != 4 or 0 in frames.shape:
        shape = list(frames.shape)
        raise ValueError(f"images has shape {shape}, expected [frames, height, width, 3]: connect an IMAGE.")
    return frames


def _rate_of(fps) -> float:
    return as_float(fps, "fps", 0.01, 1000, "it is the video's frames per second")


@contextmanager
def _readable(video) -> Iterator[None]:
    check_kind(video, Input.Video, "video", "a VIDEO, as Load Video gives it")
    try:
        yield
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(
            f"The video cannot be read ({plain(error, 120)}): convert it to MP4, or load another."
        ) from error
