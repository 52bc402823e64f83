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

ROUTES = PromptServer.instance.routes
ANYTHING = io.Custom("AUDIO,CLIP,COMBO,CONDITIONING,FLOAT,INT,LATENT,MODEL,STRING,VAE")
NODES: list[type[io.ComfyNode]] = []
EVALUATIONS: list[int] = []


def probe(*outputs, **inputs):
    """Makes a node of a function, which gives one value for each output, or a text to show where there are none."""

    def make(function):
        class Probe(io.ComfyNode):
            @classmethod
            def define_schema(cls):
                named = [kind.Input(name) for name, kind in inputs.items()]
                return io.Schema(
                    node_id=function.__name__, inputs=named, outputs=[*outputs], is_output_node=not outputs
                )

            @classmethod
            def execute(cls, **values):
                made = function(**values)
                return io.NodeOutput(*made) if outputs else io.NodeOutput(ui=ui.PreviewText(made))

        NODES.append(Probe)
        return function

    return make


# Questions to the server


@ROUTES.get("/probe/loaded_models")
async def loaded_models(request):
    """How many models ComfyUI holds in memory."""
    return web.json_response(len(mm.current_loaded_models))


@ROUTES.get("/probe/loaded_weights")
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


@ROUTES.get("/probe/evaluations")
async def evaluations(request):
    """Rows of each evaluation of the network behind ProbeEvaluations since the last look."""
    rows = EVALUATIONS.copy()
    EVALUATIONS.clear()
    return web.json_response(rows)


@ROUTES.post("/probe/default_dtype")
async def default_dtype(request):
    """Changes torch's default dtype, as other packs do."""
    torch.set_default_dtype(getattr(torch, await request.json()))
    return web.json_response(None)


# Models


@probe(io.Model.Output(), model=io.Model, fraction=io.Float)
def ProbeSmallMemory(model, fraction):
    """The same model on a smaller machine: ComfyUI may load no more than a fraction of its weights."""
    room = fraction * model.model_size()

    class Small(type(model)):
        def partially_load(self, device_to, extra_memory=0, *args, **kwargs):
            # Negative where too much is loaded: ComfyUI then unloads a part.
            extra_memory = min(extra_memory, room - self.loaded_size())
            return super().partially_load(device_to, extra_memory, *args, **kwargs)

    small = model.clone()
    small.__class__ = Small
    return [small]


@probe(io.Model.Output(), model=io.Model)
def ProbeEvaluations(model):
    """A MODEL whose evaluations are counted."""

    def count(executor, x, *args, **kwargs):
        EVALUATIONS.append(len(x))
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", count)
    return [model]


@probe(io.Model.Output(), model=io.Model, place=io.String)
def ProbeChangingContext(model, place):
    """A MODEL whose text changes while it samples: half as loud below sigma 0.5, as no schedule announces."""

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
    return [model]


@probe(io.Model.Output(), model=io.Model, other=io.Model)
def ProbeTwoBackbones(model, other):
    """A MODEL whose velocity is the mean of its own and another's, asked in one sampling call, as GPUs side by side are."""

    def mean(apply_model, given):
        answers = [
            ask(given["input"], given["timestep"], **given["c"]) for ask in (apply_model, other.model.apply_model)
        ]
        return sum(answers) / 2

    # As ComfyUI's own multi-GPU nodes, which change nothing of what they ask.
    mean.__module__ = "comfy.multigpu"
    model = model.clone()
    model.set_model_unet_function_wrapper(mean)
    return [model]


@probe(io.Model.Output(), io.Clip.Output(), io.Vae.Output(), model=io.Model, clip=io.Clip, vae=io.Vae)
def ProbeLoadedAgain(model, clip, vae):
    """MODEL, CLIP and VAE loaded again, as newer versions do for another device or without dynamic memory."""

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
    return [again(model), reader, moved]


@probe(io.Model.Output(), model=io.Model)
def ProbeOverflow(model):
    """A MODEL with a LoRA that overflows."""
    weights = model.model.state_dict()
    (name,) = [name for name in weights if name.endswith("final_layer.weight")]
    model = model.clone()
    model.add_patches({name: (torch.full(weights[name].shape, 1e38),)})
    return [model]


# Values


@probe(ANYTHING.Output(), name=io.String)
def ProbeValue(name):
    """Any value of values.py, as anything: what nodes of other packs hand over. It depends on no default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        return [VALUES[name]()]
    finally:
        torch.set_default_dtype(before)


@probe(ANYTHING.Output(is_output_list=True), values=io.String)
def ProbeList(values):
    """A list of values, given as JSON, as anything: what follows runs once for each."""
    return [json.loads(values)]


# Texts


@probe(latent=io.Latent)
def ProbeLatent(latent):
    """What a latent says of itself, its shape, and the noise mask of its first take, number by number."""
    told = {key: value for key, value in latent.items() if not torch.is_tensor(value)}
    mask = latent["noise_mask"][0, 0].tolist() if "noise_mask" in latent else None
    return json.dumps([told, list(latent["samples"].shape), mask])


@probe(latent=io.Latent, conditioning=io.Conditioning)
def ProbeDevices(latent, conditioning):
    """Where latent and conditioning lie, and where ComfyUI's manager says that results belong."""
    devices = [latent["samples"].device, conditioning[0][0].device, mm.intermediate_device()]
    return " ".join(map(str, devices))


@probe(model=io.Model, vae=io.Vae)
def ProbeDtype(model, vae):
    """Of what dtype the weights are."""
    return f"{model.model_dtype()} {vae.weight_dtype}"


@probe(audio=io.Audio)
def ProbeAudio(audio):
    """Length, rate and dtype of a sound, and every 64th sample of its first take in full precision."""
    waveform = audio["waveform"]
    return json.dumps(
        [waveform.shape[-1], audio["sample_rate"], str(waveform.dtype), waveform[0, 0, ::64].float().tolist()]
    )


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint():
    return ProbeExtension()
