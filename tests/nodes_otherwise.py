"""Every stage of the nodes under torch's other defaults, and in float16; run by test_defaults.py in a process of its own,
with the folder of a checkpoint. Prints, for each default, how far each stage was off; and of each way to float16, the loudest
sample of its sound or the error that it was refused with.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

FILES = {folder.name: str(folder / "model.safetensors") for folder in Path(sys.argv[1]).iterdir() if folder.is_dir()}

import torch  # noqa: E402

from tools.comfyui_here import load_pack, module_of  # noqa: E402

CAT, RAIN = "<|caption|> A cat meowing softly. <|sfx|> A cat.", "<|caption|> Rain."
PLAIN = dict(rescale=0.0, sigma_low=0.0, sigma_high=1.0, zero_star=False, apg=False, apg_parallel=0.0, apg_limit=0.0)


@contextmanager
def by_default(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def euler():
    from comfy.samplers import sampler_object

    return sampler_object("euler")


class Nodes:
    """The pack's nodes as functions that give their outputs."""

    def __init__(self):
        self.pack = load_pack()
        self.loaders = module_of(self.pack["DashengModelLoader"])

    def __getattr__(self, name: str):
        node = self.pack[name]
        return lambda **inputs: node.EXECUTE_NORMALIZED(**inputs).result

    def load(self, dtype: torch.dtype | None):
        clip = self.loaders.load_clip(FILES["text_encoder"], FILES["audiogen"])
        vae = self.loaders.DashengVAE(FILES["audio_tokenizer"])
        return self.loaders.load_model_patcher(FILES["audiogen"], dtype), clip, vae

    def sample(self, model, positive, latent, **options):
        options = dict(seed=3, steps=2, guidance=5.0, sway=-1.0, denoise=1.0, keep_on_gpu=False, **options)
        (sampled,) = self.DashengSampler(model=model, positive=positive, latent=latent, noise="steady", **options)
        return sampled

    def stages(self) -> dict[str, torch.Tensor]:
        model, clip, vae = self.load(torch.float32)
        made = {}
        faders = dict.fromkeys(("speech", "asr", "music", "env"), 0.0)
        cat, _ = self.DashengEmphasis(clip=clip, prompt=CAT, sfx=1.0, **faders)
        rain, seconds = self.DashengTextEncode(clip=clip, prompt=RAIN)
        span = dict(end=0.0, fade=0.1, overlap="replace")
        (scene,) = self.DashengTimeline(conditioning=cat, start=0.0, **span)
        (scene,) = self.DashengTimeline(conditioning=rain, start=0.4, timeline=scene, **span)
        made["conditioning"], made["seconds"] = scene[0][0], torch.tensor([seconds], dtype=torch.float64, device="cpu")
        (empty,) = self.EmptyDashengLatentAudio(seconds=1.0, batch_size=2)
        made["sigmas"] = self.DashengSwaySigmas(steps=6, sway=-1.0, denoise=0.7)[0]
        (looped,) = self.DashengLoop(model=model)
        latent = self.sample(looped, scene, empty, negative=rain)
        (masked,) = self.DashengMaskTime(latent=latent, start=0.2, end=0.6, feather=0.1, add=False)
        (longer,) = self.DashengExtend(latent=latent, before=0.0, after=0.2)
        made["sampled"], made["mask"], made["room"] = latent["samples"], masked["noise_mask"], longer["noise_mask"]
        (cached,) = self.DashengSkipCache(model=model, outer_blocks=1)
        made["kept"] = self.sample(cached, rain, masked)["samples"]
        (guider,) = self.DashengGuider(model=model, positive=scene, guidance=5.0, apg_momentum=-0.5, **PLAIN)
        made["noise"] = noise = self.DashengNoise(seed=5)[0].generate_noise(latent)
        made["guided"] = guider.sample(noise, latent["samples"], euler(), made["sigmas"], seed=5)
        (audio,) = self.DashengDecode(vae=vae, latent=latent, loop=True)
        made["sound"] = audio["waveform"]
        made["encoded"] = self.DashengEncode(vae=vae, audio=audio)[0]["samples"]
        ((rate, *_),) = self.DashengConvert(audio=[audio], sample_rate=["48000"], channels=["stereo"], loop=[True])
        made["converted"] = rate["waveform"]
        finish = dict(trim=[True], trim_below=[-60.0], padding=[0.05], fade_in=[0.1], fade_out=[0.1])
        finished, _ = self.DashengFinish(audio=[audio], level=["loudness"], target=[-23.0], **finish)
        made["finished"] = finished[0]["waveform"]
        made["mixed"] = self.DashengMix(bed=audio, layer=rate, at=0.1, layer_db=-3.0)[0]["waveform"]
        made["picture"] = self.DashengSpectrogram(audio=[audio], width=[256], row_height=[128])[0]
        (plain, _) = self.DashengTextEncode(clip=clip, prompt=CAT)
        made["curves"] = self.DashengListen(model=model, conditioning=plain, latent=latent, words=False, audio=audio)[0]
        return made

    def loudest(self, change, dtype: torch.dtype | None = None, gain: float = 1.0):
        """The loudest sample of a sound whose context is multiplied by ``gain``, or the sentence of its refusal."""
        model, clip, vae = self.load(dtype)
        change(model)
        positive, _ = self.DashengTextEncode(clip=clip, prompt=CAT)
        positive = [[context * gain, options] for context, options in positive]
        (empty,) = self.EmptyDashengLatentAudio(seconds=1.0, batch_size=1)
        try:
            latent = self.sample(model, positive, empty)
            (audio,) = self.DashengDecode(vae=vae, latent=latent, loop=False)
            latent = self.DashengEncode(vae=vae, audio=audio)[0]
        except ValueError as error:
            return {"refused": str(error)}
        found = {"weights": str(model.model_dtype()), "vae": str(vae.weight_dtype)}
        found["finite"] = bool(audio["waveform"].isfinite().all() and latent["samples"].isfinite().all())
        return {**found, "peak": audio["waveform"].abs().max().item()}


def off(made: torch.Tensor, expected: torch.Tensor) -> float | str:
    """The largest difference, or what else is not alike."""
    kinds = [f"{tensor.dtype} {tensor.device} {list(tensor.shape)}" for tensor in (made, expected)]
    return " for ".join(kinds) if kinds[0] != kinds[1] else (made.double() - expected.double()).abs().max().item()


def main() -> None:
    nodes, report = Nodes(), {}
    with torch.inference_mode():
        expected = nodes.stages()
        # Not another device too: ComfyUI's own models lie on the default one.
        for dtype in (torch.float64, torch.bfloat16):
            with by_default(dtype):
                made = nodes.stages()
            report[str(dtype)] = {stage: off(made[stage], tensor) for stage, tensor in expected.items()}
        half = {
            "by the flag": nodes.loudest(lambda model: None),
            "chosen": nodes.loudest(lambda model: None, torch.float16),
            "computed": nodes.loudest(lambda model: model.set_model_compute_dtype(torch.float16), torch.float16),
            "too loud for it": nodes.loudest(
                lambda model: model.set_model_compute_dtype(torch.float16), torch.float16, gain=1e6
            ),
        }
    sys.stdout.write(json.dumps({"defaults": report, "half": half}) + "\n")


if __name__ == "__main__":
    main()
