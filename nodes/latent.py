"""Seconds -> an empty LATENT; and what Dasheng Sampler reads of a LATENT."""

import hashlib
import logging
from collections.abc import Sequence

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.duration import FRAME_RATE, MAX_SECONDS, frames_from_seconds
from ..dasheng_core.inputs import as_float, as_int, as_seconds
from ..dasheng_core.quoting import plain
from ..dasheng_core.tensors import as_latent, as_tensor, check_finite
from .comfy.latent_format import DashengLatent
from .inputs import as_audio, latent_samples
from .node_text import said
from .pictures import only_one, picture_inputs, picture_seconds
from .versions import fix_empty_latent, schema

log = logging.getLogger(__name__)
# The entries of a LATENT beside its samples.
LATENT_KIND = {"type": "audio", "downscale_ratio_temporal": DashengLatent.temporal_downscale_ratio}


class EmptyDashengLatentAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="EmptyDashengLatentAudio",
            display_name="Empty Dasheng Latent Audio",
            search_aliases=["empty latent audio", "duration", "length", "seconds"],
            description="How long the clip is, and how many takes are made: an empty latent to sample into.",
            inputs=[
                io.Float.Input(
                    "seconds",
                    default=10.0,
                    min=0.04,
                    max=MAX_SECONDS,
                    step=0.04,
                    tooltip="Length of the clip, rounded to frames of 40 ms. The model was trained on 10 s clips; "
                    "connect the seconds of Dasheng Text Encode for its own estimate.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many takes to make at once."),
                io.Float.Input(
                    "extend",
                    default=0.0,
                    min=0.0,
                    max=MAX_SECONDS,
                    step=0.04,
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="Seconds to add, for a connected estimate that is too short. The node shows the sum when it runs.",
                ),
                io.Audio.Input("like_audio", optional=True, tooltip="As long as this sound, instead of seconds."),
                io.Latent.Input("like_latent", optional=True, tooltip="As long as this latent, instead of seconds."),
                *picture_inputs("as long as this, instead of seconds."),
            ],
            outputs=[io.Latent.Output(tooltip="Nothing yet: for Dasheng Sampler or any sampler of ComfyUI.")],
        )

    @classmethod
    def execute(cls, seconds, batch_size, extend=0.0, like_audio=None, like_latent=None, **pictures) -> io.NodeOutput:
        images, fps, video = (pictures.get(name) for name in ("like_images", "fps", "like_video"))
        only_one(like_audio=like_audio, like_latent=like_latent, like_images=images, like_video=video)
        shown = picture_seconds(images, fps, video)
        if shown is not None:
            seconds = shown
        elif like_audio is not None:
            waveform, rate = as_audio(like_audio)
            seconds = waveform.shape[-1] / rate
        elif like_latent is not None:
            seconds = clip_of(like_latent).shape[-1] / FRAME_RATE
        (seconds,) = as_seconds(seconds, 1)
        extend = as_float(extend, "extend", 0, MAX_SECONDS - seconds, "it is added to seconds, and 0 adds nothing")
        frames = frames_from_seconds(seconds + extend)
        # As many as ComfyUI's own empty latents can have.
        batch_size = as_int(batch_size, "batch_size", 1, 4096, "each take needs memory")
        shape = batch_size, DashengLatent.latent_channels, frames
        samples = torch.zeros(shape, dtype=torch.float32, device=mm.intermediate_device())
        text = f"{frames / FRAME_RATE:g} s"
        over = 0.0 if shown is None else frames / FRAME_RATE - shown
        if abs(over) > 1 / FRAME_RATE:
            log.warning("The sound lasts %s, the video %.2f s: set extend to 0 for the same length.", text, shown)
        elif abs(over) >= 0.0005:
            text += f", the video {shown:.3f} s: Dasheng Finish makes the sound as long"
        return io.NodeOutput({"samples": samples, **LATENT_KIND}, ui=said(text))


def clip_of(latent: dict) -> Tensor:
    """The samples ``[B, C, T]`` of a LATENT of any model's channels."""
    samples = latent_samples(latent)
    return as_latent(samples, samples.shape[1] if samples.ndim > 1 else DashengLatent.latent_channels)


def prepare_latent(model, latent: dict, channels: int) -> Tensor:
    """The samples of a LATENT as core's samplers take them: an empty one of another model in ``channels``."""
    samples = latent_samples(latent)
    if samples.ndim > 1:
        samples = fix_empty_latent(model, samples, latent)
    return as_latent(samples, channels)


def batch_indices(latent: dict) -> list[int]:
    """The number of each take of a LATENT, as LatentFromBatch and LatentBatch write it; counted where nobody did."""
    count = len(latent_samples(latent))
    given = latent.get("batch_index")
    if given is None:
        return list(range(count))
    remedy = "a node has changed the batch; put LatentBatchSeedBehavior with random behind it"
    if not isinstance(given, Sequence) or len(given) != count:
        raise ValueError(
            f"latent has the batch_index {plain(given)}, expected {count} numbers, one for each take: {remedy}."
        )
    return [as_int(index, "A batch_index of latent", 0, 2**63, remedy) for index in given]


def note_seeds(samples: Tensor, seeds: Sequence[int]) -> dict[str, int]:
    """The seed of each take by a digest of its samples: whatever other nodes do to a batch, none gets another's."""
    return dict(zip(map(_digest, samples), seeds, strict=True))


def known_seeds(latent: dict, samples: Tensor) -> list[int | None]:
    """The seed of each take that is as the sampler of this LATENT made it; None of the others."""
    seeds = latent.get("seeds")
    return [seeds.get(_digest(take)) for take in samples] if isinstance(seeds, dict) else [None] * len(samples)


def _digest(take: Tensor) -> str:
    return hashlib.sha256(take.float().cpu().numpy().tobytes()).hexdigest()


def warn_of_repeats(indices: list[int], samples: Tensor | None) -> None:
    """Say in the log which takes come out the same: those of one number and, where it is kept in part, one latent."""
    first: dict[int, int] = {}
    again = []
    for take, index in enumerate(indices):
        earlier = first.setdefault(index, take)
        if earlier != take and (samples is None or torch.equal(samples[take], samples[earlier])):
            again.append(f"{take + 1} is {earlier + 1}")
    if again:
        log.warning(
            "Dasheng Sampler: takes repeat earlier ones (%s): they have the same batch_index, as LatentBatch leaves it. Put "
            "LatentBatchSeedBehavior with random before the sampler for takes of their own.",
            ", ".join(again),
        )


def noise_mask(latent: dict) -> Tensor | None:
    """The LATENT's noise mask as ComfyUI stretches it over ``[B, C, T]``, or None."""
    if latent.get("noise_mask") is None:
        return None
    mask = as_tensor(latent["noise_mask"], "The noise mask").float()
    shape = list(mask.shape)
    # Set Latent Noise Mask makes a picture's mask of it, here of one line.
    if mask.ndim == 4 and 1 in mask.shape[1:3]:
        mask = mask.flatten(1, 2)
    mask = mask[(None,) * (3 - mask.ndim)] if 0 < mask.ndim < 3 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(f"The noise mask has shape {shape}, expected [batch, 1, frames]: make it one line of frames.")
    return check_finite(mask, "The noise mask", "make it again, 1 where to sample and 0 where to keep")
