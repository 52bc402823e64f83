"""MODEL, CONDITIONING and LATENT -> a curve over time for each part of the prompt: where it is heard."""

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image, ImageDraw
from torch import Tensor

from ..dasheng_core.control.listening import LISTENING_SIGMA, Part, listen, part_masks
from ..dasheng_core.duration import FRAME_RATE
from ..dasheng_core.quoting import plain
from ..dasheng_core.sampling import draw_noise
from .comfy.model import check_dasheng
from .comfy.scene import PARTS, PROMPT_SPANS
from .comfy.vae import as_sampled
from .common import HIDDEN
from .inputs import check_conditioning, latent_samples
from .lanes import BACK, INK
from .node_text import said
from .spectrogram import LEFT_MARGIN, WAVE_COLOUR, check_picture, picture_of_takes
from .takes import list_takes
from .versions import schema

WIDTH, SPECTRUM, ROW = 1024, 320, 56


class DashengListen(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengListen",
            display_name="Dasheng Listen",
            search_aliases=["attention", "where", "analyze", "explain"],
            description="Where is each part of the prompt heard? The network is asked how much worse it explains each moment of the "
            f"clip without that part, at sigma {LISTENING_SIGMA:g}: one evaluation, and one more for each part.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From Dasheng Text Encode: a curve for each aspect. From Dasheng Timeline: one for each span, as if every "
                    "moment could read every prompt.",
                ),
                io.Latent.Input("latent", tooltip="The finished clip, from a sampler or Dasheng Encode."),
                io.Boolean.Input(
                    "words", default=False, tooltip="Each word of the transcript apart, one evaluation each."
                ),
                io.Audio.Input(
                    "audio", optional=True, tooltip="The decoded clip, whose spectrogram is drawn above the curves."
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The curves of each take, each to its own highest point."),
                io.String.Output(
                    display_name="heard", tooltip="From when to when most of each part is heard, take by take."
                ),
            ],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, model, conditioning, latent, words, audio=None) -> io.NodeOutput:
        config = check_dasheng(model)
        check_conditioning(conditioning, config.context_dim, "conditioning")
        samples = as_sampled(latent_samples(latent), config.latent_dim, cls.hidden)
        takes = [None] * len(samples) if audio is None else list_takes([audio])
        if len(takes) != len(samples):
            raise ValueError(
                f"audio has {len(takes)} takes, expected {len(samples)}, as many as latent: connect the decoded clip of that latent."
            )
        (context, options), *more = conditioning
        if more:
            raise ValueError(
                "conditioning has several entries, expected one: connect Dasheng Text Encode, or join scenes by Dasheng Timeline."
            )
        parts = parts_of(options, words)
        check_picture(WIDTH, (ROW * len(parts) + SPECTRUM) * len(takes))
        curves = curves_of(model, context, samples, parts)
        pictures = [draw(curve, parts, take) for curve, take in zip(curves, takes, strict=True)]
        lines = [f"take {i}, {line}" for i, curve in enumerate(curves, 1) for line in map(described, parts, curve)]
        return io.NodeOutput(torch.stack(pictures), "\n".join(lines), ui=said(*lines))


def parts_of(options: dict, words: bool) -> list[Part]:
    """What a CONDITIONING is made of: the spans of a timeline, or the aspects of a prompt."""
    prompt_spans = options.get(PROMPT_SPANS, ())
    if len(prompt_spans) > 1:
        ends = np.cumsum([0] + [each.tokens for each in prompt_spans]).tolist()
        names = [f"{s.span.start:g} to {s.span.end:g} s".replace("inf s", "the end") for s in prompt_spans]
        return [Part(name, *tokens) for name, *tokens in zip(names, ends, ends[1:], strict=False)]
    if PARTS not in options:
        raise ValueError(
            "conditioning does not say what its tokens are: connect Dasheng Text Encode or Dasheng Timeline."
        )
    return options[PARTS][words]


def curves_of(model, context: Tensor, latent: Tensor, parts: list[Part]) -> Tensor:
    """``[B, A, T]`` on the CPU, see :func:`listen`."""
    mm.load_models_gpu([model], memory_required=model.memory_required(latent.shape))
    network, device = model.model.diffusion_model, model.load_device
    condition = network.condition(
        context.to(device, network.dtype), network.dummy_ta_embed.to(device, network.dtype)[None, None]
    )
    noise = torch.stack([draw_noise(0, *latent.shape[1:])] * len(latent))
    masks = part_masks(parts, context.shape[1])
    return listen(network, latent.to(device), noise.to(device), condition, masks.to(device)).cpu()


def described(part: Part, curve: Tensor) -> str:
    """From when to when the middle four fifths of a curve ``[T]`` lie."""
    name = plain(part.name)
    if not curve.any():
        return f"{name}: nowhere"
    share = curve.cumsum(0) / curve.sum()
    start, end = ((share < bound).sum().item() / FRAME_RATE for bound in (0.1, 0.9))
    return f"{name}: {start:.1f} to {end:.1f} s"


def draw(curves: Tensor, parts: list[Part], take) -> Tensor:
    """Curves ``[A, T]`` below a take's spectrogram -> picture ``[H, W, 3]`` from 0 to 1."""
    picture = Image.new("RGB", (WIDTH, ROW * len(parts)), BACK)
    pen, plot = ImageDraw.Draw(picture), WIDTH - LEFT_MARGIN - 8
    places = np.linspace(LEFT_MARGIN, LEFT_MARGIN + plot, curves.shape[1])
    for row, (part, curve) in enumerate(
        zip(parts, curves / curves.amax(dim=1, keepdim=True).clamp(min=1e-12), strict=True)
    ):
        floor = ROW * (row + 1) - 4
        tops = floor - curve.numpy() * (ROW - 22)
        pen.polygon(
            [(LEFT_MARGIN, floor), *zip(places.tolist(), tops.tolist(), strict=True), (LEFT_MARGIN + plot, floor)],
            fill=WAVE_COLOUR,
        )
        pen.text((4, ROW * row + 2), part.name, INK)
    drawn = torch.from_numpy(np.array(picture)).float() / 255
    return drawn if take is None else torch.cat([picture_of_takes([take], WIDTH, SPECTRUM), drawn])
