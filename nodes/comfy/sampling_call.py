"""What one sampling call under ComfyUI holds between its evaluations, beside :class:`Prompt`; dropped at its end."""

import logging
from collections.abc import Hashable, Sequence

import comfy.k_diffusion.sampling
import torch
from torch import Tensor

from ...dasheng_core.backbone import Backbone, Rotary
from ...dasheng_core.condition import Condition
from ...dasheng_core.sampling import item_seeds
from ...dasheng_core.schedule import truncate_timesteps
from ...dasheng_core.tensors import UNSTABLE, as_latent, check_finite
from ..node_text import step_progress
from .foreign import has_foreign
from .prompts import Prompt
from .step_graphs import InterruptibleStep, is_usual, may_be_graphs

log = logging.getLogger(__name__)
# Where transformer_options have the call's state.
KEY = "dasheng_sampling_call"
# And the seed of each take; whether the clip loops; and which frames of it an evaluation sees then, [B, T].
SEEDS, LOOP, PLACES = "dasheng_seeds", "dasheng_loop", "dasheng_places"


class SamplingCall:
    """The state of one sampling call.

    Attributes:
        sigmas, timesteps: of the schedule's steps; a solver's others are computed when they come.
        step: the step at hand, under a sampler that evaluates the model once a step; None: the sigma of an evaluation is
            read from the device, which waits for it.
        graphs: whether its steps may be CUDA graphs.
        elsewhere: by device, whether an evaluation had another timestep than such a step: a bool that is read at the end.
    """

    def __init__(self, sigmas: Sequence[float], timesteps: Sequence[float], once_a_step: bool, graphs: bool = False):
        self.sigmas, self.timesteps = list(sigmas), [int(t) for t in timesteps]
        self.step = 0 if once_a_step else None
        self.elsewhere: dict[torch.device, Tensor] = {}
        self.modulations: dict[Hashable, dict[int, Tensor]] = {}
        self.rotaries: dict[Hashable, Rotary] = {}
        self.graphs, self.steps = graphs, {}

    def next_step(self, step: int) -> None:
        if self.step is not None:
            self.step = min(step + 1, len(self.timesteps) - 1)

    def levels(self, timesteps: Tensor) -> list[int]:
        """The timesteps ``[G B]`` of an evaluation as numbers; one where all are known to be alike."""
        if self.step is None:
            levels = [int(t) for t in timesteps.tolist()]
            return levels if len(set(levels)) > 1 else levels[:1]
        other = (timesteps != self.timesteps[self.step]).any()
        self.elsewhere[other.device] = self.elsewhere.get(other.device, False) | other
        return [self.timesteps[self.step]]

    def modulation(self, backbone: Backbone, device, dtype, weights: Hashable, levels: list[int]) -> Tensor:
        """One row for each level; a schedule's are computed at once."""
        table = self.modulations.setdefault((backbone, device, dtype, weights), {})
        missing = set(levels) - set(table)
        if missing:
            missing = sorted(missing | set(self.timesteps) - set(table))
            rows = backbone.modulation(torch.tensor(missing, device=device), dtype)
            table.update(zip(missing, rows.split(1), strict=True))
        return torch.cat([table[t] for t in levels])

    def graphed_step(self, backbone: Backbone) -> InterruptibleStep:
        if backbone not in self.steps:
            self.steps[backbone] = InterruptibleStep(backbone)
        return self.steps[backbone]

    def rotary(self, backbone: Backbone, device, frames: int) -> Rotary:
        key = backbone, device, frames
        if key not in self.rotaries:
            self.rotaries[key] = backbone.rotary(frames, device)
        return self.rotaries[key]


def sigma_of(options: dict, sigma: Tensor) -> float:
    """An evaluation's sigma ``[B]`` as a number, read from the device only where the sampling call does not know it."""
    state: SamplingCall | None = options.get(KEY)
    return sigma[0].item() if state is None or state.step is None else state.sigmas[state.step]


def _as_seen(condition: Condition, frames: int, options: dict) -> Condition:
    """A clip's condition at the frames that an evaluation sees: turned by DashengLoop, cut by ComfyUI's context windows."""
    places, window = options.get(PLACES), options.get("context_window")
    if window is not None:
        places = torch.arange(frames, device="cpu")[None] if places is None else places
        places = window.get_tensor(places, dim=1)
    return condition if places is None else condition.at_frames(places.to(condition.constant.device))


def _frames_of(prompt: Prompt) -> int:
    """Those of the whole clip, of a prompt that has a mask or spoken words of its own."""
    return len(prompt.mask) if prompt.spoken is None else prompt.spoken.shape[1]


def evaluates_once_a_step(sampler) -> bool:
    """Whether a sampler asks for the schedule's sigmas, one after the other, and calls back after each."""
    euler = getattr(sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_euler
    return euler and not sampler.extra_options


def sample_with_state(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Wrapper around a sampler: gives it a state of its own, and each take a seed where it has none yet."""
    options, sampler = extra_args["model_options"]["transformer_options"], executor.class_obj
    options.setdefault(SEEDS, item_seeds(extra_args.get("seed") or 0, len(noise)))
    # What another pack's node asks of the model, we cannot know: each evaluation is computed as it comes.
    if has_foreign(guider, sampler, extra_args["model_options"]):
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    timesteps = truncate_timesteps(guider.inner_model.model_sampling.timestep(sigmas[:-1]).float()).tolist()
    graphs = may_be_graphs(extra_args["model_options"])
    state = options[KEY] = SamplingCall(sigmas.tolist(), timesteps, evaluates_once_a_step(sampler), graphs)

    def count(step, *given):
        state.next_step(step)
        callback(step, *given)

    try:
        sampled = executor(guider, sigmas, extra_args, count, noise, *args, **kwargs)
    finally:
        del options[KEY]
    if any(map(bool, state.elsewhere.values())):
        raise ValueError(
            "The model was evaluated at a sigma that is none of the schedule's, expected one evaluation for each step of euler: take "
            "out the node that changes sigmas while sampling, or choose another sampler such as heun."
        )
    return sampled


def sample_checked(executor, guider, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs):
    """Wrapper around a sampler: checks its inputs and its result; ``DashengModel.extra_conds`` checks conditionings."""
    channels = guider.inner_model.latent_format.latent_channels
    as_latent(noise, channels, "The noise")
    # A part of the schedule alone, and nothing that it could keep.
    if latent_image is not None and not as_latent(latent_image, channels).any() and sigmas[0] < 0.99:
        log.warning(
            "denoise is below 1 and the latent is empty, which gives a poor sound: set denoise to 1, or connect a latent of "
            "Dasheng Encode or another sampler."
        )
    for name, conds in guider.conds.items():
        # Without guidance only the positive one is used.
        if not conds and (name == "positive" or getattr(guider, "cfg", None) != 1):
            raise ValueError(f"{name} is an empty list, expected a conditioning: connect Dasheng Text Encode.")
        masks = [prompt.mask for cond in conds for prompt in cond["model_conds"]["prompts"].cond]
        if len(conds) > 1 and any(bool((mask[:, 0] > -torch.inf).any()) for mask in masks if mask is not None):
            raise ValueError(
                f"{name} joins {len(conds)} conditionings, one of which speaks for a span of the clip alone: Conditioning Combine "
                "would mix it with silence; join them by Dasheng Timeline."
            )

    show_step = step_progress()

    def report(step, denoised, x, steps):
        show_step(step + 1, steps)
        if callback is not None:
            callback(step, denoised, x, steps)

    sampled = executor(guider, sigmas, extra_args, report, noise, latent_image, *args, **kwargs)
    return check_finite(sampled, "The sampled latent", UNSTABLE)


def held_arguments(
    model, x: Tensor, sigma: Tensor, texts: tuple[Tensor, Tensor], options: dict, prompts: list[Prompt] | None
) -> dict:
    """What ``model`` hands its network beside ComfyUI's own arguments; nothing where the network can do without.

    The network's layers are called here as they are, whatever was done to them, and outside of what is compiled.

    Args:
        texts: context ``[G B, S, X]`` and time-aligned context ``[G B, 1, X]`` of this evaluation of G branches.
        options: the evaluation's transformer_options.
        prompts: of each branch.
    """
    if LOOP in options and PLACES not in options:
        raise ValueError(
            "Dasheng Loop turns the clip where guidance evaluates the model, and another node evaluates it beside guidance: take out "
            "nodes such as Perturbed-Attention Guidance or Skip Layer Guidance."
        )
    state: SamplingCall | None = options.get(KEY)
    if prompts is None or state is None and all(prompt.mask is prompt.spoken is None for prompt in prompts):
        return {}
    if state is None:
        # As they come: whoever stands between may have changed them.
        parts = zip(*(tensor.chunk(len(prompts)) for tensor in texts), prompts, strict=True)
        prompts = [Prompt(context, time_aligned, prompt.mask, prompt.spoken) for context, time_aligned, prompt in parts]
        state = SamplingCall([], [], once_a_step=False)
    # None for a model that another one's sampling call evaluates.
    hooks = model.current_patcher and model.current_patcher.current_hooks
    weights = None if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)
    network, dtype = model.diffusion_model, model.manual_cast_dtype or model.get_dtype()
    levels = state.levels(truncate_timesteps(model.model_sampling.timestep(sigma).float()))
    conditions = []
    for branch, prompt in enumerate(prompts):
        condition = prompt.condition(network, x.device, dtype, weights)
        if condition.frames is not None or condition.spoken is not None:
            level = levels[len(levels) * branch // len(prompts)]
            condition = _as_seen(condition.at_timestep(level), _frames_of(prompt), options)
        conditions.append(condition)
    modulation = state.modulation(network, x.device, dtype, weights, levels)
    rotary = state.rotary(network, x.device, x.shape[-1])
    arguments = {"modulation": modulation, "conditions": tuple(conditions), "rotary": rotary}
    if state.graphs and is_usual(options, hooks):
        arguments["graphed"] = state.graphed_step(network)
    return arguments
