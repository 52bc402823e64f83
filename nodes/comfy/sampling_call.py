"""What one sampling call under ComfyUI holds: modulation and conditions, found by what identifies them, dropped at its end."""

import logging
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ...dasheng_core.backbone import Backbone
from ...dasheng_core.condition import Condition
from ...dasheng_core.control.timeline import timeline_aligned, timeline_entries
from ...dasheng_core.sampling import item_seeds
from ...dasheng_core.schedule import truncate_timesteps
from ...dasheng_core.skip_cache import SkipCache
from ...dasheng_core.tensors import UNSTABLE, as_latent, check_finite
from ..shown import show

log = logging.getLogger(__name__)
# Where transformer_options have the call's state, and the SkipCache that DashengSkipCache gave it.
KEY, SKIP_CACHE = "dasheng_sampling_call", "dasheng_skip_cache"
# And the seed of each take; whether the clip loops; and which frames of it an evaluation sees then, [B, T].
SEEDS, LOOP, PLACES = "dasheng_seeds", "dasheng_loop", "dasheng_places"


class SamplingCall:
    """The state of one sampling call.

    Attributes:
        timesteps: of the schedule; a solver's others are computed when they come.
        conditions: by branch and all that it was computed with; each with the context and time-aligned context that it
            was computed from, as whoever wraps the model may change them under the same name.
    """

    def __init__(self, timesteps: list[int]):
        self.timesteps = timesteps
        self.modulations: dict[Hashable, dict[int, Tensor]] = {}
        self.conditions: dict[Hashable, tuple[Tensor, Tensor, Condition]] = {}
        self.evaluations = 0

    def arguments(
        self,
        backbone: Backbone,
        weights: Hashable,
        dtype: torch.dtype,
        timesteps: Tensor,
        context: Tensor,
        time_aligned: Tensor,
        options: dict,
        masks: Sequence[Tensor | None],
    ) -> dict:
        """Keyword arguments of the network for one evaluation of G branches.

        Args:
            weights: key of the weights in force, which hooks can change within the call.
            dtype: of the evaluation.
            timesteps: ``[G B]``.
            context: ``[G B, S, X]``.
            time_aligned: ``[G B, 1, X]``.
            options: the evaluation's transformer_options.
            masks: of each branch, which frames of the clip read which tokens, ``[T, S]``; None: all read all.
        """
        branches, device = len(options["uuids"]), context.device
        shared = (backbone, device, dtype, weights)
        parts = list(zip(context.chunk(branches), time_aligned.chunk(branches), strict=True))
        keys = [(uuid, *shared) for uuid in options["uuids"]]
        kept = [self.conditions.get(key) for key in keys]
        # The one synchronisation with the device in an evaluation: all its answers at once.
        same = [_same(old[:2], part) for old, part in zip(kept, parts, strict=True) if old is not None]
        values = torch.cat([timesteps.float(), *same]).tolist()
        numbers, same = [int(number) for number in values[: len(timesteps)]], iter(values[len(timesteps) :])
        conditions = []
        levels = numbers[:: len(numbers) // branches]
        for key, old, (text, aligned), mask, t in zip(keys, kept, parts, masks, levels, strict=True):
            if old is None or not next(same):
                old = text, aligned, _condition(backbone, text.to(dtype), aligned.to(dtype), mask)
            self.conditions[key] = old
            conditions.append(old[2] if mask is None else _as_seen(old[2].at_timestep(t), len(mask), options))
        self.evaluations += 1
        modulation = self._modulation(backbone, device, dtype, weights, numbers)
        return {"modulation": modulation, "conditions": tuple(conditions)}

    def _modulation(self, backbone: Backbone, device, dtype, weights: Hashable, timesteps: list[int]) -> Tensor:
        """One row for all where they are all alike, else a row for each."""
        table = self.modulations.setdefault((backbone, device, dtype, weights), {})
        missing = set(timesteps) - set(table)
        if missing:
            missing = sorted(missing | set(self.timesteps) - set(table))
            rows = backbone.modulation(torch.tensor(missing, device=device), dtype)
            table.update(zip(missing, rows.split(1), strict=True))
        return torch.cat([table[t] for t in (timesteps if len(set(timesteps)) > 1 else timesteps[:1])])


def _same(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """``[1]``, 1 where both contexts are what they were."""
    if any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        return new[0].new_zeros(1, dtype=torch.float32)
    return torch.stack([(a == b).all() for a, b in zip(old, new, strict=True)]).all().float()[None]


def _condition(backbone: Backbone, context: Tensor, time_aligned: Tensor, mask: Tensor | None) -> Condition:
    """ComfyUI repeats a prompt for every item of a batch: it is read once, and zeros not at all.

    It also repeats the tokens of one branch up to the number of another's, and so its mask.
    """
    alike = [(tensor == tensor[:1]).all() for tensor in (context, time_aligned)]
    audible, *alike = torch.stack([context.any(), *alike]).tolist()
    if all(alike):
        context, time_aligned = context[:1], time_aligned[:1]
    if mask is None:
        return backbone.condition(context if audible else None, time_aligned)
    entries, mask = timeline_entries(mask[None]), mask.to(context).repeat(1, context.shape[1] // mask.shape[1])[None]
    condition = backbone.condition(context, timeline_aligned(time_aligned[0, 0], mask), mask[:, None])
    return condition._replace(entries=entries)


def _as_seen(condition: Condition, frames: int, options: dict) -> Condition:
    """A clip's condition at the frames that an evaluation sees: turned by DashengLoop, cut by ComfyUI's context windows."""
    places, window = options.get(PLACES), options.get("context_window")
    if window is not None:
        places = torch.arange(frames, device="cpu")[None] if places is None else places
        places = window.get_tensor(places, dim=1)
    return condition if places is None else condition.at_frames(places.to(condition.constant.device))


def sample_with_state(executor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """Wrapper around a sampler: gives it a state of its own, and each take a seed where it has none yet."""
    options = extra_args["model_options"]["transformer_options"]
    options.setdefault(SEEDS, item_seeds(extra_args.get("seed") or 0, len(noise)))
    timesteps = truncate_timesteps(guider.inner_model.model_sampling.timestep(sigmas[:-1]).float()).tolist()
    state = options[KEY] = SamplingCall(timesteps)
    try:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    finally:
        del options[KEY]
        log.debug("Dasheng: %d evaluations, %d conditions computed.", state.evaluations, len(state.conditions))


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
        masks = [mask for cond in conds for mask in cond["model_conds"]["frame_mask"].cond if mask is not None]
        if len(conds) > 1 and any(bool((mask[:, 0] > -torch.inf).any()) for mask in masks):
            raise ValueError(
                f"{name} joins {len(conds)} conditionings, one of which speaks for a stretch of the clip alone: Conditioning Combine "
                "would mix it with silence; join them by Dasheng Timeline."
            )

    def report(step, denoised, x, steps):
        show(f"{step + 1} of {steps} steps")
        if callback is not None:
            callback(step, denoised, x, steps)

    sampled = executor(guider, sigmas, extra_args, report, noise, latent_image, *args, **kwargs)
    return check_finite(sampled, "The sampled latent", UNSTABLE)


def held_arguments(
    model, x: Tensor, sigma: Tensor, context: Tensor, time_aligned: Tensor, options: dict, masks
) -> dict:
    """What ``model`` hands its network beside ComfyUI's own arguments; nothing outside a sampling call without a timeline.

    The network's layers are called here as they are, whatever was done to them, and outside of what is compiled.
    """
    if LOOP in options and PLACES not in options:
        raise ValueError(
            "Dasheng Loop turns the clip where guidance evaluates the model, and another node evaluates it beside guidance: take out "
            "nodes such as Perturbed-Attention Guidance or Skip Layer Guidance."
        )
    state: SamplingCall | None = options.get(KEY)
    if state is None or "uuids" not in options:
        if not any(mask is not None for mask in masks or ()):
            return {}
        state, options = SamplingCall([]), {**options, "uuids": range(len(masks))}
    masks = masks or [None] * len(options["uuids"])
    dtype = model.manual_cast_dtype or model.get_dtype()
    # None for a model that another one's sampling call evaluates.
    hooks = model.current_patcher and model.current_patcher.current_hooks
    weights = None if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)
    timesteps = truncate_timesteps(model.model_sampling.timestep(sigma).float())
    network = model.diffusion_model
    arguments = state.arguments(network, weights, dtype, timesteps, context, time_aligned, options, masks)
    cache: SkipCache | None = options.get(SKIP_CACHE)
    if cache is not None:
        owner, shape = (*options["uuids"], network), (len(x), x.shape[-1], network.config.embed_dim)
        arguments["inner"] = cache.at(sigma[0].item(), owner, shape, torch.empty(0, dtype=dtype, device=x.device))
    return arguments
