"""Partial loading between two devices, on a machine that has one: run by test_two_devices.py in a process of its own.

Everything is ComfyUI's and ours but the tensors: torch's fake ones, which have shapes, dtypes and a device and no data.
An operation on tensors of two devices fails on them as it does on a GPU. Prints, for each given fraction of the
weights, where the result came out, and how many parameters lay on which device.
"""

import json
import sys
from collections import Counter

PART, FRACTIONS, *FILES = sys.argv[1:]
GPU = "cuda:0"

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from tools.comfyui_here import load_pack, module_of  # noqa: E402


def main() -> None:
    loaders = module_of(load_pack()["DashengModelLoader"])
    torch.nn.Module._apply = apply_by_assignment
    # Newer versions wait for what they copied; there is no driver to ask.
    torch.cuda.synchronize = lambda device=None: None
    for fraction in map(float, FRACTIONS.split(",")):
        parts = {"model": model, "clip": clip, "decoder": decoder}
        patcher, evaluate = parts[PART](loaders)
        # ComfyUI loads a text encoder at once where it runs on the CPU.
        patcher.detach()
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            make_fake(patcher.model)
            patcher.load_device = torch.device(GPU)
            patcher.partially_load(patcher.load_device, fraction * patcher.model_size())
            devices = Counter(str(parameter.device) for parameter in patcher.model.parameters())
            result = evaluate()
            state = {"fraction": fraction, "result": str(result.device), **devices}
            sys.stdout.write(json.dumps(state) + "\n")
            patcher.unpatch_model(torch.device("cpu"))


def model(loaders):
    patcher = loaders.load_model_patcher(FILES[0], torch.bfloat16)
    if len(FILES) > 1:
        import comfy.sd
        import comfy.utils

        patcher, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(FILES[1]), 1.0, 0)
    config = patcher.model.diffusion_model.config

    def evaluate():
        latent, time = torch.randn(2, config.latent_dim, 30, device=GPU), torch.ones(2, device=GPU)
        context = torch.randn(2, 5, config.context_dim, device=GPU)
        time_aligned = torch.randn(2, 1, config.ta_context_dim, device=GPU)
        return patcher.model.apply_model(latent, time, c_crossattn=context, time_aligned_context=time_aligned)

    return patcher, evaluate


def clip(loaders):
    import comfy.hooks
    import comfy.sd
    import comfy.supported_models_base

    loaded = loaders.load_clip(*FILES)
    text = loaded.cond_stage_model
    target = comfy.supported_models_base.ClipTarget(lambda **_: None, lambda **_: text)
    core = comfy.sd.CLIP(target, model_options={"initial_device": "cpu"}).patcher
    # A patcher of our own has all that CLIP's constructor sets on its own, in any version.
    for name, value in vars(core).items():
        if isinstance(value, (bool, str, dict, set, torch.dtype, comfy.hooks.EnumHookMode)):
            assert getattr(loaded.patcher, name) == value, name

    def evaluate():
        # What encode_token_weights does, but for reading the length, which fake tensors have not.
        ids = torch.zeros(1, 7, dtype=torch.int64, device=text.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return text.adapter(text.text_encoder(ids, mask)[1], mask)[0]

    return loaded.patcher, evaluate


def decoder(loaders):
    vae = loaders.DashengVAE(FILES[0])
    # Fake tensors have no values to look at.
    module_of(type(vae.first_stage_model.decoder)).check_finite = lambda waveform, *_: waveform
    return vae.patcher, lambda: vae.first_stage_model.decode(torch.randn(1, vae.latent_channels, 30, device=GPU))


def make_fake(module: torch.nn.Module) -> None:
    apply_by_assignment(module, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def apply_by_assignment(self, fn, recurse=True):
    """``Module._apply`` for fake tensors, whose data cannot be swapped in place."""
    for child in self.children():
        child._apply(fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = torch.nn.Parameter(fn(parameter), requires_grad=False)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


if __name__ == "__main__":
    main()
