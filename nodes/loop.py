"""MODEL -> MODEL: the end of the clip joins its beginning."""

from comfy_api.latest import io

from .comfy.model import check_dasheng
from .comfy.turned import loop_model
from .versions import schema


class DashengLoop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengLoop",
            display_name="Dasheng Loop",
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
        return io.NodeOutput(loop_model(model.clone()))
