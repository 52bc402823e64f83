"""The prepared backbone under ComfyUI's own samplers: one state for each sampling call, dropped at its end.

The state never answers for what it was not made from. Prompts and timesteps are compared, value by value, with those
that each evaluation brings; others are prepared when they come. Weights do not change within a call, but by hooks, and
calls with hooks run the plain network.
"""

import logging

import comfy.model_management as mm
import torch
from torch import Tensor

from ..dasheng_core.backbone import Backbone
from ..dasheng_core.fp8 import layers_for
from ..dasheng_core.layers import Layers
from ..dasheng_core.optimize import Optimizer
from ..dasheng_core.prepared import Branch, Conditioning, PreparedBackbone
from ..dasheng_core.schedule import truncate_timesteps
from ..dasheng_core.skip_cache import SkipCache

KEY, OPTIMIZER, FP8 = "dasheng_prepared", "dasheng_optimizer", "dasheng_fp8"
# Batches of prompts that a call can meet; more, and the oldest are prepared anew.
MAX_CONDITIONINGS = 8


class PerBackbone:
    """One state of a sampling call for each backbone: ComfyUI's multi-GPU nodes give each GPU one, in a thread of its own."""

    def __init__(self, make):
        self._make, self.made = make, {}

    # As SkipCache's methods: a compiler leaves it to Python.
    @torch.compiler.disable
    def of(self, backbone: Backbone):
        if backbone not in self.made:
            self.made[backbone] = self._make()
        return self.made[backbone]


class PreparedSampling:
    """The state of one sampling call, made at its first evaluation."""

    def __init__(self, timesteps: list[int], optimizer: Optimizer, fp8: bool):
        self.timesteps, self.optimizer, self.fp8 = timesteps, optimizer, fp8
        self.prepared: PreparedBackbone | None = None
        self.conditionings: dict[tuple, tuple[Tensor, Tensor, Conditioning]] = {}
        self.evaluations = self.plain = 0

    def velocity(
        self,
        backbone: Backbone,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        time_aligned: Tensor,
        branches: int,
        cache: SkipCache | None = None,
    ) -> Tensor | None:
        """What ``Backbone.forward`` would answer, or None where only that can; see :meth:`_velocity`."""
        velocity = self._velocity(backbone, x, timesteps, context, time_aligned, branches, cache)
        self.evaluations += 1
        self.plain += velocity is None
        return velocity

    def _velocity(self, backbone, x, timesteps, context, time_aligned, branches, cache) -> Tensor | None:
        """
        Args:
            x: ``[G B, C, T]``, G branches of B items each.
            timesteps: ``[G B]``.
            context: ``[G B, S, X]``.
            time_aligned: ``[G B, 1, X]``.
            cache: an approximation, see :mod:`dasheng_core.skip_cache`.
        """
        key = (branches, context.shape, time_aligned.shape)
        found = self.conditionings.get(key)
        # The one look at the device in an evaluation: everything it has to tell, at once.
        report = [timesteps[0], timesteps.min(), timesteps.max()]
        if found is not None:
            report += [(context == found[0]).all(), (time_aligned == found[1]).all()]
        timestep, lowest, highest, *same = torch.stack([number.float() for number in report]).tolist()
        if lowest != highest or time_aligned.shape[1] != 1 or len(x) % branches:
            return None
        if self.prepared is None:
            self.prepared = self._prepare(backbone, x)
        if found is None or not all(same):
            conditioning = self._condition(context, time_aligned, branches)
            if conditioning is None:
                return None
            found = context, time_aligned, conditioning
            if len(self.conditionings) >= MAX_CONDITIONINGS:
                self.conditionings.pop(next(iter(self.conditionings)))
            self.conditionings[key] = found
        latent = x.unflatten(0, (branches, -1)).mT
        self.prepared.cache = cache
        velocity = self.prepared.velocity(latent, int(timestep), found[2])
        return velocity.mT.flatten(0, 1)

    def _prepare(self, backbone: Backbone, x: Tensor) -> PreparedBackbone:
        # Copies must not take what ComfyUI has promised to others.
        free = mm.get_free_memory(x.device)
        weights = sum(parameter.nbytes for parameter in backbone.parameters())
        joins, packs = free > weights, free > 2 * weights and not self.optimizer.compiles
        inner_layers = layers_for(x.device) if self.fp8 else Layers
        prepared = PreparedBackbone(backbone, self.timesteps, x.device, x.dtype, joins, packs, inner_layers)
        return self.optimizer.attach(prepared)

    def _condition(self, context: Tensor, time_aligned: Tensor, branches: int) -> Conditioning | None:
        contexts, vectors = context.unflatten(0, (branches, -1)), time_aligned.unflatten(0, (branches, -1))
        # ComfyUI repeats a prompt for every item of a batch: it is read once.
        questions = [contexts.any(dim=(1, 2, 3)), (contexts == contexts[:, :1]).all(dim=(1, 2, 3))]
        answers = torch.stack([*questions, (vectors == vectors[:, :1]).all(dim=(1, 2, 3))]).tolist()
        if not all(answers[2]):
            return None
        made = []
        for some, alike, items, vector in zip(*answers[:2], contexts, vectors, strict=True):
            made.append(Branch([items[:1] if alike else items] if some else [], vector[0, 0]))
        return self.prepared.condition(made, contexts.shape[1])


def sample_prepared(executor, guider, sigmas, extra_args, *args, **kwargs):
    """Wrapper around a sampler: gives it a state of its own."""
    transformer_options = extra_args["model_options"]["transformer_options"]
    if reason := why_plain(guider):
        logging.debug("Dasheng: %s, so that nothing can be computed beforehand; the plain network samples.", reason)
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    timesteps = truncate_timesteps(guider.inner_model.model_sampling.timestep(sigmas[:-1]).float()).tolist()
    optimizer = transformer_options.get(OPTIMIZER) or Optimizer()
    fp8 = transformer_options.get(FP8, False)
    states = transformer_options[KEY] = PerBackbone(lambda: PreparedSampling(timesteps, optimizer, fp8))
    try:
        return executor(guider, sigmas, extra_args, *args, **kwargs)
    finally:
        del transformer_options[KEY]
        made = states.made.values()
        counts = sum(state.evaluations for state in made), sum(state.plain for state in made)
        logging.debug("Dasheng: %d evaluations, %d of them plain.", *counts)


def why_plain(guider) -> str | None:
    """Why a sampling call cannot be prepared, or None."""
    conds = [cond for conds in guider.conds.values() for cond in conds or ()]
    if any(cond.get("hooks") is not None for cond in conds):
        return "hooks on a conditioning change weights while it samples"
    return None
