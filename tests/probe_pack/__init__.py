"""Nodes for the tests alone: they look at what flows through a graph, and make what no node of ComfyUI makes."""

import comfy.model_management as mm
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from .values import VALUES


@PromptServer.instance.routes.get("/probe/loaded_models")
async def loaded_models(request):
    """How many models ComfyUI holds in memory."""
    return web.json_response(len(mm.current_loaded_models))


@PromptServer.instance.routes.get("/probe/loaded_weights")
async def loaded_weights(request):
    """Of the audio generator that ComfyUI holds: bytes in all and loaded, layers left off, patches added at use."""
    (model,) = [
        loaded.model for loaded in mm.current_loaded_models if type(loaded.model.model).__name__ == "DashengModel"
    ]
    layers = [layer for layer in model.model.modules() if hasattr(layer, "comfy_cast_weights")]
    counts = {
        "size": model.model_size(),
        "loaded": model.loaded_size(),
        "layers": len(layers),
        "left_off": sum(hasattr(layer, "prev_comfy_cast_weights") for layer in layers),
        "patches_at_use": sum(len(layer.weight_function) for layer in layers),
    }
    return web.json_response(counts)


class ProbeSmallMemory(io.ComfyNode):
    """The same model on a smaller machine: ComfyUI may load no more than a fraction of its weights."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ProbeSmallMemory",
            inputs=[io.Model.Input("model"), io.Float.Input("fraction")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, fraction) -> io.NodeOutput:
        room = fraction * model.model_size()

        class Small(type(model)):
            def partially_load(self, device_to, extra_memory=0, *args, **kwargs):
                # Negative where too much is loaded: ComfyUI then unloads a part.
                extra_memory = min(extra_memory, room - self.loaded_size())
                return super().partially_load(device_to, extra_memory, *args, **kwargs)

        small = model.clone()
        small.__class__ = Small
        return io.NodeOutput(small)


ANYTHING = "AUDIO,CLIP,COMBO,CONDITIONING,FLOAT,INT,LATENT,MODEL,STRING,VAE"
EVALUATIONS: list[int] = []


@PromptServer.instance.routes.get("/probe/evaluations")
async def evaluations(request):
    """Rows of each evaluation of the network behind ProbeEvaluations since the last look."""
    rows = EVALUATIONS.copy()
    EVALUATIONS.clear()
    return web.json_response(rows)


class ProbeEvaluations(io.ComfyNode):
    """A MODEL whose evaluations are counted."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeEvaluations", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        def count(executor, x, *args, **kwargs):
            EVALUATIONS.append(len(x))
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", count)
        return io.NodeOutput(model)


class ProbeChangingContext(io.ComfyNode):
    """A MODEL whose text changes while it samples: half as loud below sigma 0.5, as no schedule announces."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeChangingContext", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        def quieter(apply_model, given):
            conditioning = given["c"]
            if given["timestep"][0] < 0.5:
                conditioning = {**conditioning, "c_crossattn": conditioning["c_crossattn"] / 2}
            return apply_model(given["input"], given["timestep"], **conditioning)

        model = model.clone()
        model.set_model_unet_function_wrapper(quieter)
        return io.NodeOutput(model)


class ProbeDevices(io.ComfyNode):
    """Where latent and conditioning lie, and where ComfyUI's manager says that results belong."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ProbeDevices",
            inputs=[io.Latent.Input("latent"), io.Conditioning.Input("conditioning")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, conditioning) -> io.NodeOutput:
        devices = [latent["samples"].device, conditioning[0][0].device, mm.intermediate_device()]
        return io.NodeOutput(ui=ui.PreviewText(" ".join(map(str, devices))))


class ProbeNoiseMask(io.ComfyNode):
    """A noise mask ``[B, 1, T]`` that lets only the frames from ``first`` on be sampled."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ProbeNoiseMask",
            inputs=[io.Latent.Input("latent"), io.Int.Input("first")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, latent, first) -> io.NodeOutput:
        mask = torch.zeros_like(latent["samples"][:, :1])
        mask[..., first:] = 1
        return io.NodeOutput({**latent, "noise_mask": mask})


class ProbeAudio(io.ComfyNode):
    """How long a sound is, and of what dtype, told without any audio node of ComfyUI."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeAudio", inputs=[io.Audio.Input("audio")], is_output_node=True)

    @classmethod
    def execute(cls, audio) -> io.NodeOutput:
        return io.NodeOutput(
            ui=ui.PreviewText(f"{audio['waveform'].shape[-1]} at {audio['sample_rate']} Hz, {audio['waveform'].dtype}")
        )


class ProbeOverflow(io.ComfyNode):
    """A MODEL with a LoRA that overflows."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeOverflow", inputs=[io.Model.Input("model")], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        weights = model.model.state_dict()
        (name,) = [name for name in weights if name.endswith("final_layer.weight")]
        model = model.clone()
        model.add_patches({name: (torch.full(weights[name].shape, 1e38),)})
        return io.NodeOutput(model)


class ProbeValue(io.ComfyNode):
    """Any value of values.py, as anything: what nodes of other packs hand over."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeValue", inputs=[io.String.Input("name")], outputs=[io.Custom(ANYTHING).Output()])

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        return io.NodeOutput(VALUES[name]())


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ProbeAudio,
            ProbeChangingContext,
            ProbeDevices,
            ProbeEvaluations,
            ProbeNoiseMask,
            ProbeOverflow,
            ProbeSmallMemory,
            ProbeValue,
        ]


async def comfy_entrypoint():
    return ProbeExtension()
