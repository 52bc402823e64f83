"""MODEL: the backbone as ComfyUI's diffusion model, and the file it is loaded from."""

import logging

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models_base
import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, get_all_wrappers
from comfy.utils import repeat_to_batch_size

from ...dasheng_core.backbone import Backbone, backbone_weights, check_audiogen
from ...dasheng_core.control.timeline import spoken_frames, timeline_context, timeline_mask
from ...dasheng_core.duration import FRAME_RATE
from ...dasheng_core.prompt import lint_pace
from ...dasheng_core.tensors import as_context, has_fast_bfloat16
from ...dasheng_core.weights.config import AUDIOGEN_TYPES, BackboneConfig
from ...dasheng_core.weights.loading import load_weights
from ...dasheng_core.weights.quantized import SCALE_SUFFIX
from ..inputs import check_kind
from .faders import sample_with_faders
from .foreign import sample_naming_nodes, sample_without_places
from .latent_format import DashengLatent
from .layers import chosen_attention, with_quick_norms
from .patcher import QuantizedLayer, make_patcher, open_interruptible, quantized_layers
from .prompts import Prompt, Prompts
from .sampling_call import held_arguments, sample_checked, sample_with_state
from .scene import PROMPT_SPANS, prompt_spans_of
from .step_graphs import drop_graphs

log = logging.getLogger(__name__)
# What ComfyUI's ModelSave puts where the published checkpoint has "backbone.".
SAVED_PREFIX = "model.diffusion_model."


class DashengConfig(comfy.supported_models_base.BASE):
    unet_extra_config = {}
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    latent_format = DashengLatent
    memory_usage_factor = 5.0
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, backbone: BackboneConfig):
        super().__init__({"config": backbone})
        self.latent_format.latent_channels = backbone.latent_dim


class DashengDiT(Backbone):
    """The backbone, called the way ComfyUI calls a diffusion model."""

    def __init__(self, config: BackboneConfig, operations=torch.nn, device=None, dtype=torch.float32, **kwargs):
        super().__init__(config, with_quick_norms(operations), device, dtype)

    def forward(self, x, timesteps, context, time_aligned_context, control=None, transformer_options={}, **kwargs):
        # Wrappers are how EasyCache and its like sit between sampler and model.
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        # EasyCache adds to its input in place, which in float32 is the sampler's own latent.
        x = x.clone() if wrappers else x
        executor = WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timesteps, context, time_aligned_context, control, transformer_options, **kwargs)

    def _forward(
        self,
        x,
        timesteps,
        context,
        time_aligned_context,
        control=None,
        transformer_options={},
        modulation=None,
        conditions=None,
        rotary=None,
        graphed=None,
        **kwargs,
    ):
        if conditions is None:
            return super().forward(x, timesteps, context, time_aligned_context)
        step = self.step if graphed is None else graphed
        return step(x, modulation, conditions, None, rotary, chosen_attention(transformer_options))


class DashengModel(comfy.model_base.BaseModel):
    def __init__(self, config: DashengConfig, device=None):
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=device, unet_model=DashengDiT)

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        prompts, texts = kwargs.pop("prompts", None), (c_crossattn, kwargs["time_aligned_context"])
        # Here and not in the network, which may be compiled: there a look-up would be traced once, for every later call.
        kwargs |= held_arguments(self, x, t, texts, transformer_options, prompts)
        return super().apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def extra_conds(self, **kwargs):
        context = as_context(kwargs.get("cross_attn"), self.diffusion_model.config.context_dim)
        heard = bool(torch.count_nonzero(context))
        # Conditionings lie where ComfyUI keeps results; nothing moves them before the network is called.
        context = context.to(kwargs["device"])
        frames, prompt_spans, mask = kwargs["noise"].shape[-1], prompt_spans_of(context, kwargs), None
        spoken = spoken_frames(
            [each.span for each in prompt_spans], [each.spoken_words for each in prompt_spans], frames
        )
        spans = [each.span for each in prompt_spans]
        if PROMPT_SPANS in kwargs:
            mask = timeline_mask(spans, [each.tokens for each in prompt_spans], frames).to(kwargs["device"])
            context = timeline_context([context])
        conds = super().extra_conds(**{**kwargs, "cross_attn": context})
        time_aligned = self.diffusion_model.dummy_ta_embed[None, None]
        # Zeros are the trained null: ConditioningZeroOut is the unconditional branch.
        if not heard:
            time_aligned, mask = torch.zeros_like(time_aligned), None
        else:
            # A fader's prompts have no text, and their words were counted.
            for span, _, words, *_ in (each for each in prompt_spans if each.prompt):
                for doubt in lint_pace(words, min(span.end, frames / FRAME_RATE) - span.start):
                    log.warning(doubt)
        time_aligned = time_aligned.to(kwargs["device"])
        conds["time_aligned_context"] = comfy.conds.CONDRegular(time_aligned)
        # One for each take, where a conditioning has several.
        items = 1 if len(context) == 1 else len(kwargs["noise"])
        conds["prompts"] = Prompts(
            [Prompt(repeat_to_batch_size(context, items) if heard else None, time_aligned, mask, spoken)]
        )
        return conds

    def resize_cond_for_context_window(self, cond_key, cond_value, *args, **kwargs):
        """Newer versions ask: nothing that conditions us has frames, also where a width is as large as their number."""
        return cond_value

    def state_dict_for_saving(self, *args, **kwargs):
        weights = super().state_dict_for_saving(*args, **kwargs)
        for name, layer in quantized_layers(self.diffusion_model):
            name = f"{SAVED_PREFIX}{name}.weight"
            weights.pop(name + SCALE_SUFFIX, None)
            weights[name] = layer.expanded_weight(self.get_dtype())
        return weights


def check_dasheng(model) -> BackboneConfig:
    """The sizes of a MODEL's network. Raises ValueError for a MODEL of another kind."""
    inner = getattr(model, "model", model)
    check_kind(inner, DashengModel, "model", "that of Dasheng-AudioGen: connect Load Dasheng AudioGen")
    return inner.diffusion_model.config


def published_name(name: str) -> str:
    """Names in files that ComfyUI's ModelSave wrote -> names in the published checkpoint."""
    return "backbone." + name.removeprefix(SAVED_PREFIX) if name.startswith(SAVED_PREFIX) else name


def load_model_patcher(path: str, dtype: torch.dtype | None = None, disable_dynamic: bool = False):
    """MODEL from an audio generator's checkpoint; ``dtype`` None leaves the choice to ComfyUI.

    ``dtype`` is that of the plain weights; quantised ones stay as they are stored.
    """
    checkpoint = open_interruptible(path, AUDIOGEN_TYPES).renamed(published_name)
    backbone = check_audiogen(checkpoint)
    weights = backbone_weights(checkpoint)
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()

    config = DashengConfig(backbone)
    chosen = dtype
    if dtype is None:
        parameters = sum(tensor.shape.numel() for tensor in weights.values())
        stored = next((tensor.dtype for tensor in weights.values() if not tensor.is_quantized), torch.bfloat16)
        dtype = mm.unet_dtype(
            model_params=parameters, supported_dtypes=config.supported_inference_dtypes, weight_dtype=stored
        )
    cast = mm.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    if chosen == torch.bfloat16 and mm.is_device_cpu(load_device) and has_fast_bfloat16(load_device):
        # ComfyUI computes in float32 on any CPU.
        cast = None
    config.set_inference_dtype(dtype, cast)

    model = DashengModel(config, device=torch.device("meta"))
    load_weights(model.diffusion_model, weights, checkpoint, QuantizedLayer)
    model.device = offload_device

    patcher = make_patcher(model, load_device, offload_device, disable_dynamic)
    patcher.add_callback(CallbacksMP.ON_DETACH, drop_graphs)
    patcher.add_wrapper(WrappersMP.OUTER_SAMPLE, sample_without_places)
    for wrapper in (sample_naming_nodes, sample_checked, sample_with_state, sample_with_faders):
        patcher.add_wrapper(WrappersMP.SAMPLER_SAMPLE, wrapper)
    # Newer versions load again what they clone without dynamic memory or for another device: TorchCompileModel, Select...Device.
    patcher.cached_patcher_init = (load_model_patcher, (path, chosen))
    return patcher
