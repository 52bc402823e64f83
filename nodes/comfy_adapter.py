"""Where Dasheng meets ComfyUI's internals: the one file that subclasses ``comfy.*``.

Three loaders, each turning files into the native object its node returns: MODEL, CLIP and VAE.
"""

import logging
from contextlib import contextmanager
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.lora
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models_base
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..dasheng_core.adapter import ContentAdapter, frames_from_duration, load_adapter
from ..dasheng_core.audio_tokenizer.decoder import Decoder, load_decoder
from ..dasheng_core.audio_tokenizer.encoder import load_encoder
from ..dasheng_core.backbone import Backbone, backbone_weights, check_audiogen
from ..dasheng_core.checkpoint import Checkpoint, load_weights, open_checkpoint
from ..dasheng_core.config import (
    AUDIO_TOKENIZER_TYPES,
    AUDIOGEN_TYPES,
    FRAME_RATE,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    TEXT_ENCODER_TYPES,
    AdapterConfig,
    BackboneConfig,
)
from ..dasheng_core.cpu import has_fast_bfloat16
from ..dasheng_core.inputs import as_context, as_latent, as_waveform
from ..dasheng_core.prompt import lint_pace, spoken_words
from ..dasheng_core.quantized import SCALE_SUFFIX, QuantizedLinear
from ..dasheng_core.text_encoder import TextEncoder, load_text_encoder
from ..dasheng_core.tokenizer import SceneTokenizer
from .checked_sampling import sample_checked
from .sampling_call import held_arguments, sample_with_state
from .versions import core_patcher_class

log = logging.getLogger(__name__)
T5_TOKENIZER = Path(comfy.sd.__file__).parent / "text_encoders" / "t5_tokenizer" / "tokenizer.json"


# MODEL


class DashengLatent(comfy.latent_formats.LatentFormat):
    """``[B, 1280, T]``, 25 frames a second. ComfyUI counts the ratio at 44.1 kHz, whatever the model's rate."""

    latent_channels = 1280
    latent_dimensions = 1
    temporal_downscale_ratio = 1764


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

    def __init__(self, config: BackboneConfig, operations, device=None, dtype=None, **kwargs):
        super().__init__(config, operations, device, dtype)

    def forward(self, x, timesteps, context, time_aligned_context, control=None, transformer_options={}, **kwargs):
        # Wrappers are how EasyCache and its like sit between sampler and model.
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, transformer_options
        )
        # EasyCache adds to its input in place, which in float32 is the sampler's own latent.
        x = x.clone() if wrappers else x
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
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
        inner=None,
        **kwargs,
    ):
        if conditions is None:
            return super().forward(x, timesteps, context, time_aligned_context)
        return self.step(x, modulation, conditions, inner=inner)


class DashengModel(comfy.model_base.BaseModel):
    def __init__(self, config: DashengConfig, device=None):
        super().__init__(config, comfy.model_base.ModelType.FLOW, device=device, unet_model=DashengDiT)

    def apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        # Here and not in the network, which may be compiled: there a look-up would answer for every later call.
        kwargs |= held_arguments(self, x, t, c_crossattn, kwargs["time_aligned_context"], transformer_options)
        return super().apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def extra_conds(self, **kwargs):
        as_context(kwargs.get("cross_attn"), self.diffusion_model.config.context_dim)
        conds = super().extra_conds(**kwargs)
        time_aligned = self.diffusion_model.dummy_ta_embed[None, None]
        # Zeros are the trained null: ConditioningZeroOut is the unconditional branch.
        if torch.count_nonzero(kwargs["cross_attn"]) == 0:
            time_aligned = torch.zeros_like(time_aligned)
        else:
            for doubt in lint_pace(kwargs.get("spoken_words", 0), kwargs["noise"].shape[-1] / FRAME_RATE):
                log.warning(doubt)
        conds["time_aligned_context"] = comfy.conds.CONDRegular(time_aligned.to(kwargs["device"]))
        return conds

    def state_dict_for_saving(self, *args, **kwargs):
        weights = super().state_dict_for_saving(*args, **kwargs)
        for name, layer in quantized_layers(self.diffusion_model):
            name = f"{SAVED_PREFIX}{name}.weight"
            weights.pop(name + SCALE_SUFFIX, None)
            weights[name] = layer.expanded_weight(self.get_dtype())
        return weights


class QuantizedLayer(QuantizedLinear, comfy.ops.CastWeightBiasOp):
    """A quantised layer that ComfyUI can leave off the GPU, and whose LoRAs are added to the expanded weight at use.

    The stored weight is never patched, so that it stays small, and the result is the same however much is loaded.
    """

    lora = None

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        bias = self.bias
        if bias is not None:
            bias = self._patched("bias", bias.to(x))
        return F.linear(x, self.expanded_weight(x.dtype, x.device), bias)

    def expanded_weight(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        return self._patched("weight", super().expanded_weight(dtype, device), self.lora)

    def _patched(self, name: str, tensor: Tensor, lora=None) -> Tensor:
        """``lora`` is what QuantizedPatcher gave a layer on the GPU; ComfyUI itself patches those left off it."""
        functions = getattr(self, f"{name}_function")
        # Newer versions keep the patch of a layer left off the GPU apart.
        apart = getattr(self, f"{name}_lowvram_function", None) or (None if functions else lora)
        for function in [apart, *functions] if apart else functions:
            tensor = function(tensor)
        return tensor


def quantized_layers(module: nn.Module) -> list[tuple[str, QuantizedLayer]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)]


class QuantizedPatcher(comfy.model_patcher.ModelPatcher):
    """Where ComfyUI would write a patched weight into a layer, hands a quantised one the patch."""

    def patch_weight_to_device(self, key, *args, **kwargs):
        layer_name, _, parameter = key.rpartition(".")
        layer = self.model.get_submodule(layer_name)
        if not isinstance(layer, QuantizedLayer) or parameter != "weight":
            return super().patch_weight_to_device(key, *args, **kwargs)
        patches = self.patches.get(key)
        layer.lora = patches and (lambda weight: comfy.lora.calculate_weight(patches, weight, key, weight.dtype))

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        super().unpatch_model(device_to, unpatch_weights)
        if unpatch_weights:
            for _, layer in quantized_layers(self.model):
                layer.lora = None

    def add_hook_patches(self, *args, **kwargs):
        raise ValueError(
            "LoRA hooks change weights while sampling, which a quantised model's cannot be: use a LoRA loader node, or "
            "a model file that is not quantised."
        )


# What ComfyUI's ModelSave puts where the published checkpoint has "backbone.".
SAVED_PREFIX = "model.diffusion_model."


def check_dasheng(model) -> BackboneConfig:
    """The sizes of a MODEL's network. Raises ValueError for a MODEL of another kind."""
    inner = getattr(model, "model", None)
    if not isinstance(inner, DashengModel):
        raise ValueError(
            f"The model is a {type(inner or model).__name__}, expected that of Dasheng-AudioGen: connect Load Dasheng AudioGen."
        )
    return inner.diffusion_model.config


def published_name(name: str) -> str:
    """Names in files that ComfyUI's ModelSave wrote -> names in the published checkpoint."""
    return "backbone." + name.removeprefix(SAVED_PREFIX) if name.startswith(SAVED_PREFIX) else name


def load_model(path: str, dtype: torch.dtype | None = None, disable_dynamic: bool = False):
    """MODEL from an audio generator's checkpoint; ``dtype`` None leaves the choice to ComfyUI.

    ``dtype`` is that of the plain weights; quantised ones stay as they are stored.
    """
    checkpoint = open_checkpoint(path, AUDIOGEN_TYPES).renamed(published_name)
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
    load_weights(model.diffusion_model, Backbone(backbone, device="meta", dtype=dtype), weights, path, QuantizedLayer)
    model.device = offload_device

    patcher = make_patcher(model, load_device, offload_device, disable_dynamic)
    # Newer versions load again what they clone without dynamic memory or for another device: TorchCompileModel, Select...Device.
    patcher.cached_patcher_init = (load_model, (path, chosen))
    return patcher


def make_patcher(model: DashengModel, load_device, offload_device, disable_dynamic: bool):
    patcher_class = QuantizedPatcher if quantized_layers(model) else core_patcher_class(disable_dynamic)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    for wrapper in (sample_checked, sample_with_state):
        patcher.add_wrapper(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, wrapper)
    return patcher


# CLIP


class DashengTokens:
    """Tokenizer of a CLIP object: no weights, no embeddings, a bracket is spoken text."""

    def __init__(self, tokenizer: SceneTokenizer):
        self.tokenizer = tokenizer

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs):
        ids, _ = self.tokenizer([text])
        return {"dasheng": [[(token, 1.0) for token in ids[0].tolist()]], "spoken_words": spoken_words(text)}

    def state_dict(self):
        return {}


class DashengTextModel(nn.Module):
    """Text encoder, projection and content adapter as one text model: tokens -> context ``[1, S, X]`` and seconds."""

    def __init__(self, text_encoder: TextEncoder, adapter: ContentAdapter):
        super().__init__()
        self.text_encoder = text_encoder
        self.adapter = adapter
        self.dtypes = {text_encoder.proj.weight.dtype, adapter.dtype}

    def encode_token_weights(self, tokens):
        device = self.text_encoder.proj.weight.device
        ids = torch.tensor([[token for token, _ in tokens["dasheng"][0]]], device=device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        _, features = self.text_encoder(ids, mask)
        content, duration = self.adapter(features, mask)
        frames = frames_from_duration(duration, self.adapter.config.duration_offset, FRAME_RATE)
        extra = {"seconds": frames.item() / FRAME_RATE, "spoken_words": tokens.get("spoken_words", 0)}
        return content.float().to(mm.intermediate_device()), None, extra

    def set_clip_options(self, options):
        if options.get("layer") is not None:
            raise ValueError("CLIP Set Last Layer has no meaning for Dasheng's text encoder: remove that node.")

    def reset_clip_options(self):
        pass


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads everything or nothing: of transformers' layers, those left off the GPU could not fetch their weights."""

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False, **kwargs):
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load=True, **kwargs)


def load_clip(text_encoder_path: str, audiogen_path: str, disable_dynamic: bool = False):
    """CLIP from a T5 or mT5 checkpoint and the projection and adapter of an audio generator."""
    audiogen = open_checkpoint(audiogen_path, AUDIOGEN_TYPES)
    check_audiogen(audiogen)
    config = AdapterConfig.from_checkpoint(audiogen.shapes, audiogen.config, audiogen_path)
    encoder = open_checkpoint(text_encoder_path, TEXT_ENCODER_TYPES)
    tokenizer, text_encoder = load_text_encoder(encoder, audiogen, config, fallback_tokenizer=T5_TOKENIZER)
    model = DashengTextModel(text_encoder, load_adapter(audiogen, config))
    # What newer versions ask before they make the patcher.
    model.disable_offload = disable_dynamic
    target = comfy.supported_models_base.ClipTarget(lambda **_: DashengTokens(tokenizer), lambda **_: model)
    clip = comfy.sd.CLIP(target)
    # Newer versions may make a dynamic patcher, which knows how to treat such layers.
    if type(clip.patcher) is comfy.model_patcher.ModelPatcher:
        clip.patcher.__class__ = WholePatcher
    paths = text_encoder_path, audiogen_path
    clip.patcher.cached_patcher_init = (lambda disable_dynamic=False: load_clip(*paths, disable_dynamic).patcher, ())
    return clip


# VAE


class FirstStage(nn.Module):
    """The decoder under the name that ComfyUI's VAE calls."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def decode(self, latent: Tensor) -> Tensor:
        """``[B, C, T]`` -> ``[B, 1, 640 T]``."""
        return self.decoder(latent)[:, None]


class DashengVAE(comfy.sd.VAE):
    """The audio tokenizer as a VAE. The encoder, four times the decoder's size, is read when something is encoded."""

    def __init__(self, path: str, disable_dynamic: bool = False):
        with _without_warning("No VAE weights detected"):
            super().__init__(sd={})
        self.checkpoint: Checkpoint = open_checkpoint(path, AUDIO_TOKENIZER_TYPES)
        self.device = mm.vae_device()
        # What ComfyUI casts waveforms and latents to; weights have a dtype of their own.
        self.vae_dtype = torch.float32
        self.weight_dtype = mm.vae_dtype(self.device, [torch.bfloat16, torch.float32])
        self.output_device = mm.intermediate_device()
        self._patcher_class = core_patcher_class(disable_dynamic)

        decoder = load_decoder(self.checkpoint, comfy.ops.disable_weight_init, self.weight_dtype)
        self.first_stage_model = FirstStage(decoder)
        self.patcher = self._patcher(self.first_stage_model)
        self.patcher.cached_patcher_init = (lambda disable_dynamic=False: DashengVAE(path, disable_dynamic).patcher, ())
        self._encoder_patcher = None

        self.latent_channels = decoder.config.latent_dim
        self.latent_dim = 1
        self.output_channels = 1
        self.upscale_ratio = self.downscale_ratio = SAMPLES_PER_FRAME
        self.audio_sample_rate = SAMPLE_RATE
        self.process_input = self.process_output = lambda audio: audio
        self.working_dtypes = [torch.float32]
        # Bytes that a latent frame and an audio sample take at their peak, from the layers' widths.
        self.memory_used_decode = lambda shape, dtype: shape[0] * shape[-1] * 400_000
        self.memory_used_encode = lambda shape, dtype: shape[0] * shape[-1] * 4_000
        self.model_size()

    def vae_output_dtype(self) -> torch.dtype:
        """Newer versions ask; with --fp16-intermediates theirs is float16, which no consumer of AUDIO expects."""
        return torch.float32

    def decode(self, samples_in: Tensor, vae_options={}) -> Tensor:
        """Latent ``[B, C, T]`` -> waveform ``[B, 640 T, 1]``, float32."""
        return super().decode(as_latent(samples_in, self.latent_channels), vae_options)

    def decode_tiled(self, samples: Tensor, *args, **kwargs) -> Tensor:
        return super().decode_tiled(as_latent(samples, self.latent_channels), *args, **kwargs)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Waveform ``[B, L, channels]`` at 16 kHz -> latent ``[B, C, T]``; channels are averaged."""
        waveform = as_waveform(pixel_samples.movedim(-1, 1)).mean(dim=1)
        # SelectVAEDevice makes a copy of this object and moves that to another device.
        if self._encoder_patcher is None or self._encoder_patcher.load_device != self.device:
            encoder = load_encoder(self.checkpoint, comfy.ops.disable_weight_init, self.weight_dtype)
            self._encoder_patcher = self._patcher(encoder)
        mm.load_models_gpu(
            [self._encoder_patcher], memory_required=self.memory_used_encode(waveform.shape, torch.float32)
        )
        return self._encoder_patcher.model(waveform.to(self.device)).to(self.output_device)

    def _patcher(self, module: nn.Module):
        return self._patcher_class(module, load_device=self.device, offload_device=mm.vae_offload_device())


@contextmanager
def _without_warning(text: str):
    """Keep one untrue warning of ComfyUI's VAE constructor out of the user's log."""
    root, quiet = logging.getLogger(), logging.Filter()
    quiet.filter = lambda record: text not in record.getMessage()
    root.addFilter(quiet)
    try:
        yield
    finally:
        root.removeFilter(quiet)
