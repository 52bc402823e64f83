"""Skip-cache as a MODEL that samples with it: MODEL -> MODEL."""

from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..dasheng_core.skip_cache import SkipCache, check_outer_blocks
from .comfy.model import check_dasheng
from .comfy.sampling_call import SKIP_CACHE
from .common import CATEGORY
from .versions import schema


class DashengSkipCache(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengSkipCache",
            display_name="Dasheng Skip Cache",
            category=CATEGORY,
            search_aliases=["speed up", "cache", "teacache", "easycache"],
            description="Faster, and not quite the same sound: in every second late step only the outer blocks of the network "
            "run, and the inner ones count as in the step before.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen, or any node that changes a MODEL."),
                io.Int.Input(
                    "outer_blocks",
                    default=2,
                    min=1,
                    max=16,
                    tooltip="Blocks at either end of the network that run at every step: more are slower and nearer to the exact "
                    "result. The published model has 16 at either end.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model, sampled sooner and not quite the same.")],
        )

    @classmethod
    def execute(cls, model, outer_blocks) -> io.NodeOutput:
        outer_blocks = check_outer_blocks(outer_blocks, check_dasheng(model).depth)

        def sample(executor, guider, sigmas, extra_args, *args, **kwargs):
            # One for each sampling call: nothing kept can outlive it.
            options = extra_args["model_options"].setdefault("transformer_options", {})
            options[SKIP_CACHE] = SkipCache(outer_blocks, sigmas.tolist())
            return executor(guider, sigmas, extra_args, *args, **kwargs)

        model = model.clone()
        # A second node of this kind takes the place of the first.
        model.remove_wrappers_with_key(WrappersMP.SAMPLER_SAMPLE, SKIP_CACHE)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, SKIP_CACHE, sample)
        return io.NodeOutput(model)
