"""Faders under any guider: w (v_c - v_without) is added to what classifier-free guidance gives (arXiv 2206.01714)."""

import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...dasheng_core.guidance import add_faders
from .scene import FADERS, entry_without, weight_of
from .turned import evaluate_conds

NOT_EVALUATED = (
    "The guider {} evaluates no faders of Dasheng Emphasis: use Dasheng Guider or CFGGuider, and sigmas that it guides."
)
# What guiders read that add faders to their whole prediction: the last one is that of PerpNegGuider.
READ = {"positive", "negative", "empty_negative_prompt"}


def sample_with_faders(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Wrapper around a sampler: evaluates the faders of the positive conditioning, a branch for each."""
    moved = {name for name, conds in guider.conds.items() for cond in conds if _faders(cond)}
    if not moved:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    if moved != {"positive"} or len(guider.conds["positive"]) > 1:
        raise ValueError(
            "Faders of Dasheng Emphasis are on a conditioning that is not the only positive one, expected them there alone: connect "
            "Dasheng Emphasis to positive, and join scenes by Dasheng Timeline."
        )
    if not guider.conds.keys() <= READ:
        raise ValueError(NOT_EVALUATED.format(type(guider).__name__))
    (positive,) = guider.conds["positive"]
    if any(not torch.equal(fader.scene, positive["cross_attn"].to(fader.scene)) for fader in positive[FADERS]):
        raise ValueError(
            "Faders of Dasheng Emphasis are on another scene than they were made for: a node such as Conditioning Average or Concat "
            "has changed it; connect Dasheng Emphasis without it, or join scenes by Dasheng Timeline."
        )
    faders = Faders(guider.inner_model, positive, noise)
    options = extra_args["model_options"]
    # Before what else changes a guided prediction, such as a rescaling.
    options["sampler_post_cfg_function"] = [faders.add, *options.get("sampler_post_cfg_function", [])]
    sampled = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    if len(sigmas) > 1 and not faders.evaluations:
        raise ValueError(NOT_EVALUATED.format(type(guider).__name__))
    return sampled


def _faders(cond: dict) -> tuple:
    """The faders of a conditioning; zeros, as ConditioningZeroOut makes them, have none."""
    return cond.get(FADERS, ()) if torch.count_nonzero(cond["cross_attn"]) else ()


class Faders:
    """The branches of one sampling call, by ComfyUI's name conditionings, and their weights."""

    def __init__(self, model, positive: dict, noise: Tensor):
        self.weights = [weight_of(positive, fader, noise) for fader in positive[FADERS]]
        entries = comfy.sampler_helpers.convert_cond([entry_without(positive, fader) for fader in positive[FADERS]])
        self.conds = [
            comfy.samplers.encode_model_conds(model.extra_conds, [entry], noise, noise.device, "positive")
            for entry in entries
        ]
        self.evaluations = 0

    def add(self, given: dict) -> Tensor:
        """What ComfyUI calls after guidance: denoised ``[B, C, T]`` -> the same with the faders."""
        self.evaluations += 1
        model, x, sigma, options = (given[key] for key in ("model", "input", "sigma", "model_options"))
        others = evaluate_conds(model, self.conds, x, sigma, options)
        return add_faders(given["denoised"], given["cond_denoised"], others, self.weights)
