"""What other nodes hang into a MODEL or a CONDITIONING for pictures: its node is named where a latent of sound is none."""

import functools
from collections.abc import Callable
from pathlib import Path

import comfy.model_management as mm

from ...dasheng_core.quoting import plain

# Where model_options have them: a function, or a list of such.
FUNCTIONS = ("model_function_wrapper", "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
# They end a run, and say so themselves.
ENDS = (mm.InterruptProcessingException, mm.OOM_EXCEPTION)
PACK = __package__.rpartition(".")[0]
# Whose functions ask the model as our own do: at the sampler's sigma, for the conditionings as they are.
# ComfyUI names the modules of its own nodes by their path.
CORE_NODES = str(Path(mm.__file__).resolve().parents[1] / "comfy_extras")
OWN = (f"{PACK}.", "comfy.", "comfy_extras.", "comfy_api.", CORE_NODES)
# Where model_options have functions that hand the model what they like.
ASKING = ("model_function_wrapper", "sampler_calc_cond_batch_function", "sampler_pre_cfg_function")


def sample_naming_nodes(executor, guider, sigmas, extra_args, *args, **kwargs):
    """Wrapper around a sampler: the errors of other nodes' functions become a sentence."""
    options = extra_args["model_options"]
    for place in FUNCTIONS:
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
                    "for a span of the clip there is Dasheng Timeline."
                )
    return executor(*args, **kwargs)


def has_foreign(guider, sampler, model_options: dict) -> bool:
    """Whether a node of another pack stands between sampler and network, where it can change sigma or conditionings."""
    functions = [type(guider), getattr(sampler, "sampler_function", type(sampler))]
    for place in ASKING:
        found = model_options.get(place, [])
        functions += found if isinstance(found, list) else [found]
    for keys in model_options["transformer_options"].get("wrappers", {}).values():
        functions += [function for found in keys.values() for function in found]
    return not all(_is_own(function) for function in functions)


def _is_own(function: Callable) -> bool:
    if isinstance(function, functools.partial):
        # Dasheng Loop's holds the function that it stands around.
        return all(_is_own(part) for part in (function.func, *function.args) if callable(part))
    return f"{getattr(function, '__module__', '')}.".startswith(OWN)


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
