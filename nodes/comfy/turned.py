"""Where ComfyUI evaluates conditionings: inside guidance and outside of context windows. A loop turns the clip here.

It is the order of the library's nest (:mod:`dasheng_core.control.nest`): what guidance remembers is of one clip, as it stands.
Guiders that evaluate the model elsewhere, DualCFGGuider among them, have no such place: they see the turned clip as a whole.
"""

from functools import partial

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...dasheng_core.control.loop import loop_shifts, turn, turn_back
from .sampling_call import LOOP, PLACES, SEEDS, sigma_of

# ComfyUI's name for this place in model_options.
PLACE = "sampler_calc_cond_batch_function"
# Where transformer_options have what EasyCache and LazyCache keep of one step for the next.
CACHE = "easycache"


def loop_model(model):
    """A MODEL whose clips are turned, around what another node has put at this place."""
    inner = model.model_options.get(PLACE, _evaluate)
    # A second node of this kind would turn the clip twice, which is once.
    if not (isinstance(inner, partial) and inner.func is _evaluate_turned):
        model.set_model_sampler_calc_cond_batch_function(partial(_evaluate_turned, inner))
    model.model_options["transformer_options"][LOOP] = True
    model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, LOOP)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, LOOP, _predict_turned)
    return model


def _predict_turned(executor, x, timestep, model_options={}, seed=None):
    """Wrapper around a guider's evaluation, for guiders that do not go through the place."""
    guider = type(executor.class_obj)
    if getattr(guider, "evaluates_at_place", guider.predict_noise is comfy.samplers.CFGGuider.predict_noise):
        return executor(x, timestep, model_options, seed)
    given = {"input": x, "sigma": timestep, "model_options": model_options}
    (made,) = _evaluate_turned(lambda given: [executor(*given.values(), seed)], given)
    return made


def evaluate_conds(model, conds: list, x: Tensor, sigma: Tensor, model_options: dict) -> list[Tensor]:
    """``calc_cond_batch`` for what guidance evaluates beside its own branches: denoised ``[B, C, T]`` for each of ``conds``."""
    given = {"model": model, "conds": conds, "input": x, "sigma": sigma, "model_options": model_options}
    return _evaluate_turned(_evaluate, given) if LOOP in model_options["transformer_options"] else _evaluate(given)


def _evaluate(given: dict) -> list[Tensor]:
    return comfy.samplers.calc_cond_batch(
        *(given[key] for key in ("model", "conds", "input", "sigma", "model_options"))
    )


def _evaluate_turned(inner, given: dict) -> list[Tensor]:
    """``inner`` of the turned clip, whose masks turn with it, and its results turned back."""
    x, options = given["input"], given["model_options"]["transformer_options"]
    if PLACES in options:
        return inner(given)
    if CACHE in options:
        raise ValueError(
            "Dasheng Loop turns the clip between steps, and EasyCache or LazyCache uses a step again as it stood: take one of the "
            "two out."
        )
    (shifts,) = loop_shifts(options[SEEDS], [sigma_of(options, given["sigma"])], x.shape[-1])
    seen, places = turn(x, torch.tensor(shifts, device=x.device))
    options = {**given["model_options"], "transformer_options": {**options, PLACES: places}}
    return [turn_back(made, places) for made in inner({**given, "input": seen, "model_options": options})]
