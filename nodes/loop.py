"""MODEL -> MODEL: the end of the clip joins its beginning."""

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..dasheng_core.direction import loop_shift
from .loaders import CATEGORY
from .model import check_dasheng
from .sampling_call import PLACES, SEEDS, SKIP_CACHE
from .versions import schema

LOOP = "dasheng_loop"
# Where transformer_options have a cache of one step for the next: ours, and that of EasyCache and LazyCache.
CACHES = {SKIP_CACHE: "Dasheng Skip Cache", "easycache": "EasyCache or LazyCache"}


class DashengLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengLoop",
            display_name="Dasheng Loop",
            category=CATEGORY,
            search_aliases=["seamless", "circular", "ambience loop"],
            description="The end of the clip joins its beginning, at no cost: before each evaluation the clip is turned by a "
            "number of frames that the seed gives, and after it back.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From Load Dasheng AudioGen, or any node that changes a MODEL. Switch on loop at Dasheng Decode too.",
                )
            ],
            outputs=[io.Model.Output(tooltip="The same model, whose clips end where they begin.")],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        check_dasheng(model)
        model = model.clone()
        # A second node of this kind would turn the clip twice, which is once.
        model.remove_wrappers_with_key(WrappersMP.PREDICT_NOISE, LOOP)
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, LOOP, predict_turned)
        return io.NodeOutput(model)


def predict_turned(executor, x, timestep, model_options={}, seed=None):
    """Wrapper around a guider's evaluation: all branches and windows of it see the turned clip, and masks turn with it."""
    options = model_options["transformer_options"]
    for key, cache in CACHES.items():
        if key in options:
            raise ValueError(
                f"Dasheng Loop turns the clip between steps, and {cache} uses a step again as it stood: take one of the two out."
            )
    frames, sigma = x.shape[-1], timestep[0].item()
    seeds = options.get(SEEDS) or [(seed or 0) + i for i in range(len(x))]
    shifts = torch.tensor([loop_shift(seed, sigma, frames) for seed in seeds], device=x.device)
    places = (torch.arange(frames, device=x.device) + shifts[:, None]) % frames
    options = {**model_options, "transformer_options": {**options, PLACES: places}}
    predicted = executor(torch.take_along_dim(x, places[:, None], dim=2), timestep, options, seed)
    return torch.empty_like(predicted).scatter_(2, places[:, None].expand_as(predicted), predicted)
