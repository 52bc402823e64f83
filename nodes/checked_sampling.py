"""What any sampler of ComfyUI is given and gives back for our MODEL, looked at once: before its first step and after its last."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ..dasheng_core.inputs import UNSTABLE, as_int, as_latent, as_tensor, check_finite, latent_samples


def sample_checked(executor, guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs):
    """Wrapper around a sampler. Conditionings are looked at one by one by ``DashengModel.extra_conds``."""
    channels = guider.inner_model.latent_format.latent_channels
    as_latent(noise, channels, "The noise")
    if latent_image is not None:
        as_latent(latent_image, channels)
    for name, conds in guider.conds.items():
        # Without guidance only the positive one is used.
        if not conds and (name == "positive" or getattr(guider, "cfg", None) != 1):
            raise ValueError(f"{name} is an empty list, expected a conditioning: connect Dasheng Text Encode.")
    sampled = executor(guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)
    return check_finite(sampled, "The sampled latent", UNSTABLE)


def batch_indices(latent: dict) -> list[int]:
    """The number of each take of a LATENT, as LatentFromBatch and LatentBatch write it; counted where nobody did."""
    count = len(latent_samples(latent))
    given = latent.get("batch_index")
    if given is None:
        return list(range(count))
    remedy = "a node has changed the batch; put LatentBatchSeedBehavior with random behind it"
    if not isinstance(given, Sequence) or len(given) != count:
        raise ValueError(f"latent has the batch_index {given}, expected {count} numbers, one for each take: {remedy}.")
    return [as_int(index, "A batch_index of latent", 0, 2**63, remedy) for index in given]


def warn_of_repeats(indices: list[int], samples: Tensor | None) -> None:
    """Say in the log which takes come out the same: those of one number and, where it is kept in part, one latent."""
    first: dict[int, int] = {}
    again = []
    for take, index in enumerate(indices):
        earlier = first.setdefault(index, take)
        if earlier != take and (samples is None or torch.equal(samples[take], samples[earlier])):
            again.append(f"{take + 1} is {earlier + 1}")
    if again:
        logging.warning(
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
        raise ValueError(
            f"The noise mask has shape {shape}, expected [batch, 1, frames]: make it of one line of frames."
        )
    return check_finite(mask, "The noise mask", "make it again, 1 where to sample and 0 where to keep")
