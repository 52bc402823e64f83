"""Every stage of the nodes, whole and then interrupted; run by test_stopping.py in a process of its own, with the folder
of a checkpoint. Prints, for each stage, how often it looked for an interrupt and whether it stopped and then ran again.
"""

import json
import sys
from functools import partial
from pathlib import Path

FILES = {folder.name: str(folder / "model.safetensors") for folder in Path(sys.argv[1]).iterdir() if folder.is_dir()}

import torch  # noqa: E402

from tools.comfyui_here import load_pack, module_of  # noqa: E402

PROMPT = "<|caption|> A cat meowing softly."


class Looks:
    """ComfyUI's own look for an interrupt, counted; at look ``stop_at`` ComfyUI is told to stop."""

    def __init__(self, model_management):
        self.count, self.stop_at, self._management = 0, None, model_management
        self._ask = model_management.throw_exception_if_processing_interrupted
        model_management.throw_exception_if_processing_interrupted = self

    def __call__(self):
        self.count += 1
        if self.count == self.stop_at:
            self._management.interrupt_current_processing()
        self._ask()


def main() -> None:
    from comfy import model_management

    looks, report = Looks(model_management), {}
    pack = load_pack()
    loaders = module_of(pack["DashengModelLoader"])

    def try_stage(name, stage, numbers):
        looks.count = 0
        first, whole = stage(), looks.count
        stopped = []
        for at in (1, whole // 2, whole):
            looks.count, looks.stop_at = 0, at
            try:
                stage()
            except model_management.InterruptProcessingException:
                stopped.append(looks.count == at)
            looks.stop_at = None
        again = stage()
        same = all(map(torch.equal, numbers(first), numbers(again)))
        report[name] = {"looks": whole, "stopped": stopped, "same": same}
        return again

    def weights(module):
        return [*module.parameters(), *module.buffers()]

    load = partial(loaders.load_clip, FILES["text_encoder"], FILES["audiogen"])
    clip = try_stage("load_clip", load, lambda clip: weights(clip.cond_stage_model))
    load = partial(loaders.load_model_patcher, FILES["audiogen"], torch.float32)
    try_stage("load_model", load, lambda patcher: weights(patcher.model.diffusion_model))
    load = partial(loaders.DashengVAE, FILES["audio_tokenizer"])
    vae = try_stage("load_vae", load, lambda vae: weights(vae.first_stage_model))

    read = partial(pack["DashengTextEncode"].EXECUTE_NORMALIZED, clip=clip, prompt=PROMPT)
    try_stage("read", read, lambda output: [output.result[0][0][0]])
    latent = torch.randn(1, vae.latent_channels, 50, generator=torch.Generator().manual_seed(0))
    sound = try_stage("decode", lambda: vae.decode(latent), lambda sound: [sound])

    def encode():
        vae._encoder_patcher = None
        return vae.encode(sound)

    try_stage("encode", encode, lambda latent: [latent])
    counts = {
        "blocks": len(clip.cond_stage_model.text_encoder.t5.encoder.block),
        "clip": len(clip.cond_stage_model.text_encoder.state_dict()),
        "model": len(loaders.load_model_patcher(FILES["audiogen"]).model.diffusion_model.state_dict()),
        "decoder": len(vae.first_stage_model.state_dict()),
        "encoder": len(vae._encoder_patcher.model.state_dict()),
    }
    sys.stdout.write(json.dumps({"stages": report, "counts": counts}) + "\n")


if __name__ == "__main__":
    main()
