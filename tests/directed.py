"""Graphs of the nodes of direction on the golden model, and the library's sampling to compare them with."""

import torch

from by_hand import CAT, FRAMES, GUIDANCE, SECONDS, SEED, STORM
from dasheng_core import DashengAudioGen, Timeline
from dasheng_core.control.timeline import pad_contexts
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise, draw_noise
from graphs import Graph

STEPS = 4


class Scene(Graph):
    """A graph with the tiny model loaded and two prompts encoded."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders()
        self.cat, self.storm = self.encode(self.clip, CAT), self.encode(self.clip, STORM)
        self.sigmas = self.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0)

    def empty(self, seconds=SECONDS, batch_size=1, **more):
        return self.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=batch_size, **more)

    def ours(self, positive=None, latent=None, model=None, **options):
        options = {"steps": STEPS, "guidance": GUIDANCE, "seed": SEED, **options}
        return self.sample(model or self.model, positive or self.cat, latent or self.empty(), **options)

    def zero(self, conditioning):
        return self.add("ConditioningZeroOut", conditioning=conditioning)

    def cfg_guider(self, positive=None, negative=None, model=None):
        positive, model = positive or self.cat, model or self.model
        negative = negative or self.zero(positive)
        return self.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=GUIDANCE)

    def guider(self, positive=None, model=None, **options):
        defaults = dict(guidance=GUIDANCE, rescale=0.0, sigma_low=0.0, sigma_high=1.0, zero_star=False, apg=False)
        defaults.update(apg_parallel=0.0, apg_limit=0.0, apg_momentum=0.0, model=model or self.model)
        return self.add("DashengGuider", positive=positive or self.cat, **{**defaults, **options})

    def advanced(self, guider, latent=None, noise=None):
        return self.add(
            "SamplerCustomAdvanced", guider=guider, sigmas=self.sigmas, latent_image=latent or self.empty(),
            noise=noise or self.add("RandomNoise", noise_seed=SEED), sampler=self.add("KSamplerSelect", sampler_name="euler"),
        )  # fmt: skip

    def custom(self, positive, latent=None, model=None):
        return self.add(
            "SamplerCustom", model=model or self.model, positive=positive, negative=self.zero(positive), cfg=GUIDANCE,
            latent_image=latent or self.empty(), add_noise=True, noise_seed=SEED, sigmas=self.sigmas,
            sampler=self.add("KSamplerSelect", sampler_name="euler"),
        )  # fmt: skip

    def ksampler(self, positive=None, latent=None, model=None, **options):
        inputs = dict(model=model or self.model, positive=positive or self.cat, cfg=GUIDANCE, seed=SEED, steps=STEPS)
        inputs.update(sampler_name="euler", scheduler="simple", denoise=1.0, latent_image=latent or self.empty())
        return self.add("KSampler", **{**inputs, "negative": self.zero(inputs["positive"]), **options})

    def every_sampler(self, positive, latent=None):
        return [
            self.ours(positive, latent),
            self.custom(positive, latent),
            self.advanced(self.cfg_guider(positive), latent),
            self.advanced(self.guider(positive), latent),
        ]

    def timeline(self, conditioning, timeline=None, start=0.0, end=0.0, fade=0.0, overlap="replace"):
        wires = {"timeline": timeline} if timeline else {}
        return self.add(
            "DashengTimeline", conditioning=conditioning, start=start, end=end, fade=fade, overlap=overlap, **wires
        )

    def emphasis(self, prompt=CAT, **faders):
        faders = {**dict.fromkeys(("speech", "asr", "sfx", "music", "env"), 0.0), **faders}
        return self.add("DashengEmphasis", clip=self.clip, prompt=prompt, **faders)

    def mask(self, latent, start=0.0, end=0.0, feather=0.0, add=False):
        return self.add("DashengMaskTime", latent=latent, start=start, end=end, feather=feather, add=add)

    def windows(self, length, overlap):
        return self.add(
            "ContextWindowsManual", model=self.model, context_length=length, context_overlap=overlap, dim=2, context_stride=1,
            context_schedule="standard_static", closed_loop=False, fuse_method="pyramid", freenoise=False, causal_window_fix=False,
            split_conds_to_windows=False, cond_retain_index_list="", latent_retain_index_list="",
        )  # fmt: skip


class Library:
    """Sample by the library: a prompt or a timeline, its faders, and options; noise as KSampler draws it."""

    def __init__(self, model: DashengAudioGen):
        self.model = model
        self.encoded: dict[str, torch.Tensor] = {}

    def contexts(self, scene, items: int = 1):
        for text in scene.prompts if isinstance(scene, Timeline) else [scene]:
            self.encoded.setdefault(text, self.model.encode_text([text])[0][0])
        return pad_contexts([scene] * items, self.encoded, FRAMES)

    @torch.inference_mode()
    def __call__(self, scene, faders=(), kind="plain", scale=GUIDANCE, kept=None, seeds=(SEED,), sway=-1.0, **options):
        noise = torch.stack([draw_noise(seed, self.model.latent_channels, FRAMES, kind) for seed in seeds])
        positive = Branch(*(scene if isinstance(scene, tuple) else self.contexts(scene, len(seeds))))
        read = Branches(
            positive, faders=[Branch(*self.contexts(other, len(seeds)), weight) for weight, other in faders]
        )
        sampling = SamplingOptions(STEPS, scale, sway, **options)
        return denoise(self.model.backbone, noise, read, sampling, known=kept, seeds=seeds)
