"""What every node has that follows a scene: model, positive, negative, and the guidance scale."""

from comfy_api.latest import io

from .comfy.model import check_dasheng
from .comfy.scene import silence_of
from .inputs import check_conditioning


def scene_inputs():
    return [
        io.Model.Input("model", tooltip="From Load Dasheng AudioGen, or any node that changes a MODEL."),
        io.Conditioning.Input("positive", tooltip="What to hear, from Dasheng Text Encode."),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="What not to hear, from Dasheng Text Encode. Not connected: the model's own unconditional branch.",
        ),
    ]


def check_scenes(model, positive, negative):
    """The backbone's sizes and both conditionings, the negative one as it is when it is not connected."""
    config = check_dasheng(model)
    check_conditioning(positive, config.context_dim, "positive")
    negative = silence_of(positive) if negative is None else negative
    check_conditioning(negative, config.context_dim, "negative")
    return config, positive, negative


def guidance_input():
    return io.Float.Input(
        "guidance",
        default=5.0,
        min=1.0,
        max=100.0,
        step=0.1,
        tooltip="Classifier-free guidance scale. Published default 5; higher follows the prompt more literally. 1 is no guidance, "
        "and twice as fast.",
    )
