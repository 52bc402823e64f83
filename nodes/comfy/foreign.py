"""What other nodes hang into a MODEL or a CONDITIONING for pictures: its node is named where a latent of sound is none."""

import functools
from collections.abc import Callable

import comfy.model_management as mm

from ...dasheng_core.quoting import plain

# Where model_options have them: a function, or a list of such.
PLACES = ("model_function_wrapper", "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
# They end a run, and say so themselves.
ENDS = (mm.InterruptProcessingException, mm.OOM_EXCEPTION)
PACK = __package__.rpartition(".")[0]


def sample_naming_nodes(executor, guider, sigmas, extra_args, *args, **kwargs):
    """Wrapper around a sampler: the errors of other nodes' functions become a sentence."""
    options = extra_args["model_options"]
    for place in PLACES:
        found = options.get(place)
        if isinstance(found, list):
            options[place] = [_naming(function) for function in found]
        elif found is not None:
            options[place] = _naming(found)
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def sample_without_places(executor, *args, **kwargs):
    """Wrapper around all of a sampling call: ComfyUI cuts latents by the places of pictures, or fails on them."""
    for name, conds in executor.class_obj.conds.items():
        for place in ("area", "mask"):
            if any(place in cond for cond in conds):
                raise ValueError(
                    f"{name} has the {place} of a picture, from a node such as Conditioning (Set {place.title()}): take that node out; "
                    "for a stretch of the clip there is Dasheng Timeline."
                )
    return executor(*args, **kwargs)


def _naming(function: Callable) -> Callable:
    if getattr(function, "__module__", "").startswith(PACK):
        return function

    @functools.wraps(function, updated=())
    def named(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except ENDS:
            raise
        except Exception as error:
            # What it calls can be the network, whose own errors speak for themselves.
            if _is_ours(error):
                raise
            node = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
            raise ValueError(
                f"{plain(node)}, which changes the MODEL, fails on this model's latents [batch, channels, frames] ({plain(error)}): it is "
                "made for pictures; take it out."
            ) from error

    return named


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised within the pack."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(PACK)
