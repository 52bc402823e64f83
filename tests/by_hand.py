"""A small model in a graph of ComfyUI's nodes, and the same computation spelt out with the library's backbone."""

import torch
from safetensors.torch import load_file

from conftest import deviation
from dasheng_core.sampling import draw_noise
from dasheng_core.schedule import make_sigmas
from graphs import Graph, run

CAT = "<|caption|> A cat meowing softly. <|sfx|> Soft cat meow."
STORM = "<|caption|> Thunder rolling in the distance. <|env|> Stormy night ambience."
SECONDS, FRAMES, STEPS, SEED, GUIDANCE = 1.2, 30, 8, 21, 3.0


class Scene(Graph):
    """A graph with a small model loaded and two prompts encoded."""

    def __init__(self):
        super().__init__()
        self.model, self.clip, self.vae = self.loaders()
        self.cat, self.storm = self.encode(self.clip, CAT), self.encode(self.clip, STORM)
        self.zero = self.add("ConditioningZeroOut", conditioning=self.cat)

    def empty(self, batch_size=1):
        return self.add("EmptyDashengLatentAudio", seconds=SECONDS, batch_size=batch_size)

    def cfg_guider(self, positive, negative=None, model=None):
        model, negative = model or self.model, negative or self.zero
        return self.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=GUIDANCE)

    def advanced(self, guider, latent=None, sampler="euler", sigmas=None, seed=SEED):
        return self.add(
            "SamplerCustomAdvanced",
            noise=self.add("RandomNoise", noise_seed=seed),
            guider=guider,
            sampler=self.add("KSamplerSelect", sampler_name=sampler),
            sigmas=sigmas or self.add("DashengSwaySigmas", steps=STEPS, sway=-1.0, denoise=1.0),
            latent_image=latent or self.empty(),
        )

    def ksampler(self, sampler="euler", scheduler="simple", steps=STEPS, denoise=1.0, latent=None, **options):
        inputs = dict(model=self.model, positive=self.cat, negative=self.zero, cfg=GUIDANCE, seed=SEED)
        inputs.update(steps=steps, sampler_name=sampler, scheduler=scheduler, denoise=denoise)
        return self.add("KSampler", **{**inputs, "latent_image": latent or self.empty(), **options})

    def ours(self, positive=None, latent=None, **options):
        options = {"steps": STEPS, "guidance": GUIDANCE, "seed": SEED, **options}
        return self.sample(options.pop("model", self.model), positive or self.cat, latent or self.empty(), **options)


def latents(server, scene: Graph, *samples) -> list[torch.Tensor]:
    for i, latent in enumerate(samples):
        scene.add("SaveLatent", samples=latent, filename_prefix=f"test_{i:02}_")
    result = run(server, scene)
    assert result.events[-1][0] == "execution_success", result.error()
    return [load_file(path)["latent_tensor"] for path in sorted(result.files("latents"), key=lambda path: path.name)]


def close(actual, expected, tolerance=1e-4):
    assert deviation(actual, expected) <= tolerance


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
