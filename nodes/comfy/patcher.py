"""Between files and ComfyUI's memory: checkpoints read until it is interrupted, and the patchers that hold our parts."""

import comfy.lora
import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...dasheng_core.weights import checkpoint
from ...dasheng_core.weights.quantized import QuantizedLinear
from ..versions import core_patcher_class


def open_interruptible(path: str, model_types: tuple[str, ...]) -> checkpoint.Checkpoint:
    """A checkpoint whose reading ends when ComfyUI is interrupted."""
    return checkpoint.open_checkpoint(path, model_types, mm.throw_exception_if_processing_interrupted)


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


class WholePatcher(comfy.model_patcher.ModelPatcher):
    """Loads everything or nothing: of transformers' layers, those left off the GPU could not fetch their weights."""

    @classmethod
    def in_place_of(cls, patcher: comfy.model_patcher.ModelPatcher) -> "WholePatcher":
        """One with all that was set on ``patcher``, which nothing has loaded yet."""
        whole = cls(patcher.model, patcher.load_device, patcher.offload_device)
        vars(whole).update(vars(patcher))
        return whole

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False, **kwargs):
        super().load(device_to, lowvram_model_memory, force_patch_weights, full_load=True, **kwargs)


def make_patcher(module: nn.Module, load_device, offload_device, disable_dynamic: bool):
    """The patcher that core's loaders make, the dynamic one where a version has it enabled; for quantised layers, ours."""
    patcher_class = QuantizedPatcher if quantized_layers(module) else core_patcher_class(disable_dynamic)
    return patcher_class(module, load_device=load_device, offload_device=offload_device)
