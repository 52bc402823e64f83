"""A small model in a graph of ComfyUI's nodes; and the same computation by the library, and spelt out with its backbone."""

import torch

from conftest import deviation
from dasheng_core import DashengAudioGen, Timeline
from dasheng_core.control.timeline import pad_contexts
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise, draw_noise
from dasheng_core.schedule import make_sigmas
from graphs import Graph, complete

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
STORM = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."
SECONDS, FRAMES, STEPS, SEED, GUIDANCE = 1.2, 30, 5, 21, 3.0


class Scene(Graph):
    """A graph with the golden model loaded and two prompts encoded."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders()
        self.cat, self.storm = self.encode(self.clip, CAT), self.encode(self.clip, STORM)
        self.sigmas = self.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0)

    def empty(self, batch_size=1, seconds=SECONDS, **more):
        return self.add("EmptyDashengLatentAudio", seconds=seconds, batch_size=batch_size, **more)

    def zero(self, conditioning):
        return self.add("ConditioningZeroOut", conditioning=conditioning)

    # Samplers

    def ours(self, positive=None, latent=None, model=None, **options):
        options = {"steps": STEPS, "guidance": GUIDANCE, "seed": SEED, **options}
        return self.sample(model or self.model, positive or self.cat, latent or self.empty(), **options)

    def ksampler(self, positive=None, latent=None, model=None, **options):
        inputs = dict(model=model or self.model, positive=positive or self.cat, cfg=GUIDANCE, seed=SEED, steps=STEPS)
        inputs.update(sampler_name="euler", scheduler="simple", denoise=1.0, latent_image=latent or self.empty())
        return self.add("KSampler", **{**inputs, "negative": self.zero(inputs["positive"]), **options})

    def custom(self, positive, latent=None, model=None):
        return self.add(
            "SamplerCustom", model=model or self.model, positive=positive, negative=self.zero(positive), cfg=GUIDANCE,
            latent_image=latent or self.empty(), add_noise=True, noise_seed=SEED, sigmas=self.sigmas,
            sampler=self.add("KSamplerSelect", sampler_name="euler"),
        )  # fmt: skip

    def advanced(self, guider, latent=None, noise=None, sampler="euler", sigmas=None):
        return self.add(
            "SamplerCustomAdvanced", guider=guider, sigmas=sigmas or self.sigmas, latent_image=latent or self.empty(),
            noise=noise or self.add("RandomNoise", noise_seed=SEED), sampler=self.add("KSamplerSelect", sampler_name=sampler),
        )  # fmt: skip

    def cfg_guider(self, positive=None, negative=None, model=None, cfg=GUIDANCE):
        positive, model = positive or self.cat, model or self.model
        negative = negative or self.zero(positive)
        return self.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)

    def guider(self, positive=None, model=None, **options):
        defaults = dict(guidance=GUIDANCE, rescale=0.0, sigma_low=0.0, sigma_high=1.0, zero_star=False, apg=False)
        defaults.update(apg_parallel=0.0, apg_limit=0.0, apg_momentum=0.0, model=model or self.model)
        return self.add("DashengGuider", positive=positive or self.cat, **{**defaults, **options})

    def every_sampler(self, positive=None, latent=None):
        positive = positive or self.cat
        return [
            self.ours(positive, latent),
            self.custom(positive, latent),
            self.advanced(self.cfg_guider(positive), latent),
            self.advanced(self.guider(positive), latent),
        ]

    # Direction

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


def latents(server, scene: Scene, *samples) -> list[torch.Tensor]:
    return complete(server, scene.save(*samples)).latents()


def close(actual, expected, tolerance=1e-4):
    assert deviation(actual, expected) <= tolerance


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


class Hand:
    """The same computation, spelt out with the library's backbone."""

    def __init__(self, model):
        self.backbone = model.backbone
        self.cat, self.storm = model.encode_text(CAT)[0], model.encode_text(STORM)[0]
        self.noise = draw_noise(SEED, model.latent_channels, FRAMES, "plain")[None]

    @torch.inference_mode()
    def velocity(self, content, latent, sigma):
        time_aligned = self.backbone.dummy_ta_embed[None, None] * bool(content.count_nonzero())
        return self.backbone(latent, sigma * 1000, content, time_aligned)

    def guided(self, positive, negative=None, scale=GUIDANCE):
        negative = torch.zeros_like(positive) if negative is None else negative

        def velocity(latent, sigma):
            base = self.velocity(negative, latent, sigma)
            return base + scale * (self.velocity(positive, latent, sigma) - base)

        return velocity

    @torch.inference_mode()
    def euler(self, velocity, sigmas=None, start=None, noise=None):
        sigmas = make_sigmas(STEPS) if sigmas is None else sigmas
        noise = self.noise if noise is None else noise
        latent = sigmas[0] * noise + (1 - sigmas[0]) * (0 if start is None else start)
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            latent = latent + (following - sigma) * velocity(latent, sigma)
        return latent


def simple_sigmas(steps):
    """What ComfyUI's "simple" scheduler gives for this model: every n-th of a thousand."""
    return torch.tensor([(1000 - int(i * 1000 / steps)) / 1000 for i in range(steps)] + [0.0])
