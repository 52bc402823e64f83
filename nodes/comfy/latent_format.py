"""LATENT as ComfyUI sees it, and as its previews show it."""

import comfy.latent_formats

from .preview import make_strip

# ComfyUI multiplies three channels by them; make_strip has made the colours already.
RGB_FACTORS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class DashengLatent(comfy.latent_formats.LatentFormat):
    """``[B, 1280, T]``, 25 frames per second. ComfyUI counts the ratio at 44.1 kHz, whatever the model's rate."""

    latent_channels = 1280
    latent_dimensions = 1
    temporal_downscale_ratio = 1764
    latent_rgb_factors = RGB_FACTORS
    latent_rgb_factors_reshape = staticmethod(make_strip)
