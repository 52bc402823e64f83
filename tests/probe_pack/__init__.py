"""Nodes for the tests alone: they look at what flows through a graph, and make what no node of ComfyUI makes."""

import copy
import json
import os

import comfy.model_management as mm
import torch
from aiohttp import web
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from .values import VALUES

if os.environ.get("DYNAMIC_VRAM"):
    # What ComfyUI sets on a GPU: its layers hold no weights before they are loaded, on a CPU too.
    import comfy.memory_management
    import comfy.model_patcher

    comfy.memory_management.aimdo_enabled = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic


@PromptServer.instance.routes.get("/probe/loaded_models")
async def loaded_models(request):
    """How many models ComfyUI holds in memory."""
    return web.json_response(len(mm.current_loaded_models))


@PromptServer.instance.routes.get("/probe/loaded_weights")
async def loaded_weights(request):
    """Of the audio generator that ComfyUI loaded last: bytes in all and loaded, and layers left off."""
    # The last comes first. Newer versions keep earlier prompts' models too, while there is memory for them.
    model = next(
        loaded.model for loaded in mm.current_loaded_models if type(loaded.model.model).__name__ == "DashengModel"
    )
    layers = [layer for layer in model.model.modules() if hasattr(layer, "comfy_cast_weights")]
    counts = {
        "size": model.model_size(),
        "loaded": model.loaded_size(),
        "layers": len(layers),
        "left_off": sum(hasattr(layer, "prev_comfy_cast_weights") for layer in layers),
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
        return io.Schema(
            node_id="ProbeChangingContext",
            inputs=[io.Model.Input("model"), io.String.Input("place")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, place) -> io.NodeOutput:
        def before_model(apply_model, given):
            conditioning = given["c"]
            if given["timestep"][0] < 0.5:
                if place == "in place":
                    conditioning["c_crossattn"] /= 2
                else:
                    conditioning = {**conditioning, "c_crossattn": conditioning["c_crossattn"] / 2}
            return apply_model(given["input"], given["timestep"], **conditioning)

        def before_network(executor, x, timesteps, context, *args, **kwargs):
            return executor(x, timesteps, context / 2 if timesteps[0] < 500 else context, *args, **kwargs)

        model = model.clone()
        if place == "network":
            model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", before_network)
        else:
            model.set_model_unet_function_wrapper(before_model)
        return io.NodeOutput(model)


class ProbeTwoBackbones(io.ComfyNode):
    """A MODEL whose velocity is the mean of its own and another's, asked in one sampling call, as GPUs side by side are."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="ProbeTwoBackbones",
            inputs=[io.Model.Input("model"), io.Model.Input("other")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, other) -> io.NodeOutput:
        def mean(apply_model, given):
            answers = [
                ask(given["input"], given["timestep"], **given["c"]) for ask in (apply_model, other.model.apply_model)
            ]
            return sum(answers) / 2

        # As ComfyUI's own multi-GPU nodes, which change nothing of what they ask.
        mean.__module__ = "comfy.multigpu"
        model = model.clone()
        model.set_model_unet_function_wrapper(mean)
        return io.NodeOutput(model)


class ProbeLoadedAgain(io.ComfyNode):
    """MODEL, CLIP and VAE loaded again, as newer versions do for another device or without dynamic memory."""

    @classmethod
    def define_schema(cls):
        parts = (io.Model, io.Clip, io.Vae)
        return io.Schema(
            node_id="ProbeLoadedAgain",
            inputs=[part.Input(part.__name__.lower()) for part in parts],
            outputs=[part.Output() for part in parts],
        )

    @classmethod
    def execute(cls, model, clip, vae) -> io.NodeOutput:
        def again(patcher):
            load, arguments = patcher.cached_patcher_init
            made = load(*arguments, disable_dynamic=True)
            clones = [made, patcher.deepclone_multigpu()] if hasattr(patcher, "deepclone_multigpu") else [made]
            if any(clone.model is patcher.model for clone in clones):
                raise RuntimeError("This is not a model of its own.")
            return clones[-1]

        reader, moved = clip.clone(), copy.copy(vae)
        reader.patcher, moved.patcher = again(clip.patcher), again(vae.patcher)
        reader.cond_stage_model, moved.first_stage_model = reader.patcher.model, moved.patcher.model
        # By name, another device. The encoder is read when it is asked for, here before the VAE moves and after.
        moved.device = moved.patcher.load_device = torch.device("cpu", 0)
        sound = torch.linspace(-0.5, 0.5, 3200)[None, :, None]
        latents = [vae.encode(sound)]
        moved._encoder_patcher = vae._encoder_patcher
        latents.append(moved.encode(sound))
        if moved._encoder_patcher.load_device != moved.device or not torch.equal(*latents):
            raise RuntimeError("The encoder stayed where it was.")
        return io.NodeOutput(again(model), reader, moved)


class ProbeLatent(io.ComfyNode):
    """What a latent says of itself, and its shape."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeLatent", inputs=[io.Latent.Input("latent")], is_output_node=True)

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        told = {key: value for key, value in latent.items() if key != "samples"}
        return io.NodeOutput(ui=ui.PreviewText(json.dumps([told, list(latent["samples"].shape)])))


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


class ProbeMask(io.ComfyNode):
    """The noise mask of a latent's first take, number by number."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeMask", inputs=[io.Latent.Input("latent")], is_output_node=True)

    @classmethod
    def execute(cls, latent) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(latent["noise_mask"][0, 0].tolist())))


class ProbeSound(io.ComfyNode):
    """Every 64th sample of a sound's first take, in full precision."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="ProbeSound", inputs=[io.Audio.Input("audio")], is_output_node=True)

    @classmethod
    def execute(cls, audio) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(audio["waveform"][0, 0, ::64].tolist())))


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


class ProbeList(io.ComfyNode):
    """A list of values, given as JSON, as anything: what follows runs once for each."""

    @classmethod
    def define_schema(cls):
        output = io.Custom(ANYTHING).Output(is_output_list=True)
        return io.Schema(node_id="ProbeList", inputs=[io.String.Input("values")], outputs=[output])

    @classmethod
    def execute(cls, values) -> io.NodeOutput:
        return io.NodeOutput(json.loads(values))


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ProbeAudio,
            ProbeChangingContext,
            ProbeDevices,
            ProbeEvaluations,
            ProbeLatent,
            ProbeList,
            ProbeLoadedAgain,
            ProbeMask,
            ProbeOverflow,
            ProbeSmallMemory,
            ProbeSound,
            ProbeTwoBackbones,
            ProbeValue,
        ]


async def comfy_entrypoint():
    return ProbeExtension()
