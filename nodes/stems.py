"""A sound and the prompt it was made of -> an AUDIO for each aspect; they add up to the sound."""

import logging
from functools import partial

import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.control.loop import loop_wrap
from ..dasheng_core.control.stems import (
    REST,
    Separator,
    StemOptions,
    aspect_prompts,
    aspect_weights,
    held_prompts,
    lint_stems,
    separate,
)
from ..dasheng_core.duration import SAMPLES_PER_FRAME
from ..dasheng_core.sampling import MAX_SEED, as_seed, draw_noise, item_seeds
from ..dasheng_core.separation import at_own_rate
from .audio import EXPECTED_VAE
from .comfy.model import check_dasheng
from .comfy.sampling_call import LOOP, SEEDS
from .comfy.scene import prompts_of_scene, scene_of, silence_of
from .comfy.vae import DashengVAE, as_sampled
from .common import ASPECT_LABELS, CATEGORY
from .inputs import as_audio, check_conditioning, check_kind, latent_samples
from .latent import known_seeds
from .node_text import said, show_progress
from .text import encode
from .versions import schema

log = logging.getLogger(__name__)
# What people read at each output; of an aspect as at Dasheng Scene Prompt.
LABELS = {"speech": "speech", **{name: ASPECT_LABELS[name] for name in ("sfx", "music", "env")}, REST: REST}
REST_TOOLTIP = "What no aspect explains, where that is switched on, and of audio at another rate than 16 kHz what lies above 8 kHz; else silence."


class DashengStems(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengStems",
            display_name="Dasheng Stems",
            category=CATEGORY,
            search_aliases=["separate", "split", "demix", "source separation", "multitrack", "layers"],
            description="Takes a sound apart into speech, effects, music and ambience, by the model and the prompt that it was made "
            "with. Together they are the sound, sample by sample.",
            inputs=[
                io.Model.Input("model", tooltip="From Load Dasheng AudioGen, or what the clip was sampled with."),
                io.Clip.Input("clip", tooltip="From Load Dasheng Text Encoder."),
                io.Vae.Input("vae", tooltip="From Load Dasheng Audio Tokenizer."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="What sounds, from Dasheng Text Encode, Dasheng Emphasis or Dasheng Timeline: each aspect is a stem. Of a "
                    "recording, describe it; its asr must be what is said.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED - 1,
                    tooltip="Take i of a batch uses seed + i. Another one cuts a little differently.",
                ),
                io.Boolean.Input(
                    "rest",
                    default=False,
                    tooltip="Give what no aspect explains to rest. It takes from the others: switch it on where something loud is "
                    "heard that the prompt does not name.",
                ),
                io.Boolean.Input(
                    "retake",
                    default=False,
                    tooltip="Sample each stem again from sigma 0.7: cleaner, and no longer a part of the sound. Together they are "
                    "then another sound.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The sound to take apart: any rate, any channels. Or connect latent.",
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The clip to take apart, as a sampler made it. Or connect audio."
                ),
            ],
            outputs=[
                io.Audio.Output(
                    display_name=label,
                    tooltip=REST_TOOLTIP
                    if name == REST
                    else f"What <|{name}|> says; silence of the same length where the prompt lacks it.",
                )
                for name, label in LABELS.items()
            ],
        )

    @classmethod
    def execute(cls, model, clip, vae, conditioning, seed, rest, retake, audio=None, latent=None) -> io.NodeOutput:
        config = check_dasheng(model)
        check_kind(vae, DashengVAE, "vae", EXPECTED_VAE)
        check_conditioning(conditioning, config.context_dim, "conditioning")
        if (audio is None) == (latent is None):
            raise ValueError("audio and latent: expected one of them connected, the sound that is taken apart.")
        loop = LOOP in model.model_options["transformer_options"]
        options, codec, known = StemOptions(rest=rest, retake=retake, loop=loop), Codec(vae, loop), None
        if audio is not None:
            waveform, rate = as_audio(audio)
            notes = {key: audio[key] for key in ("seeds", "cut") if key in audio}
        else:
            known = as_sampled(latent_samples(latent), config.latent_dim)
            waveform, rate = codec.decode(known)[:, None], vae.audio_sample_rate
            notes = {"seeds": known_seeds(latent, known)}
        seeds = item_seeds(as_seed(seed), len(waveform))
        prompts, spans = prompts_of_scene(conditioning)
        own = aspect_prompts(prompts)
        scenes = [scene_of([encode(clip, prompt) for prompt in held_prompts(alone)], spans) for alone in own.values()]
        separator = Separator(partial(sample_scenes, model, scenes, seeds), codec.decode, codec.encode)
        bar = comfy.utils.ProgressBar(options.draws)

        def report(done: int, rounds: int) -> None:
            bar.update_absolute(done, rounds)
            show_progress(f"{done} of {rounds} rounds")

        def stems_of(sound: Tensor) -> dict[str, Tensor]:
            z = (codec.encode(sound.mean(dim=1)) if known is None else known).cpu()
            drawn = [draw_noise(each, options.draws * z.shape[1], z.shape[2]) for each in seeds]
            noise = torch.stack(drawn).unflatten(1, (options.draws, -1)).movedim(1, 0)
            weights = aspect_weights(own, spans, z.shape[2])
            made = separate(sound, z, weights, noise, separator, options, report)
            for doubt in lint_stems(list(own), made[: len(own)], sound):
                log.warning(doubt)
            return dict(zip([*own, REST], made, strict=False))

        waveform = waveform.cpu()
        stems = at_own_rate(stems_of, waveform, rate, loop)
        absent = [LABELS[name] for name in LABELS if name not in stems]
        line = f"{len(own)} stems" + (f"; the prompt has no {', no '.join(absent)}: silence" if absent else "")
        silence = torch.zeros_like(waveform)
        sounds = [{"waveform": stems.get(name, silence), "sample_rate": rate, **notes} for name in LABELS]
        return io.NodeOutput(*sounds, ui=said(line))


class Codec:
    """Decoder and encoder of a VAE as :class:`Separator` asks for them; of a loop, both run on over its end."""

    def __init__(self, vae, loop: bool):
        self.vae, self.reach = vae, vae.first_stage_model.decoder.reach if loop else 0

    def decode(self, latent: Tensor) -> Tensor:
        sound = self.vae.decode(loop_wrap(latent, self.reach))[..., 0].cpu()
        ends = self.reach * SAMPLES_PER_FRAME
        return sound[:, ends : sound.shape[-1] - ends]

    def encode(self, sound: Tensor) -> Tensor:
        latent = self.vae.encode(loop_wrap(sound, self.reach * SAMPLES_PER_FRAME)[..., None]).cpu()
        return latent[..., self.reach : latent.shape[-1] - self.reach]


def sample_scenes(model, scenes: list[list], seeds: list[int], latents: Tensor, sigmas: Tensor) -> Tensor:
    """Latents ``[K, B, C, T]`` with noise at the first of some sigmas -> what unguided Euler steps make of them, a scene each."""
    guider = comfy.samplers.CFGGuider(model)
    guider.model_options = {
        **model.model_options,
        "transformer_options": {**model.model_options["transformer_options"], SEEDS: seeds},
    }
    made = []
    for scene, latent in zip(scenes, latents, strict=True):
        guider.set_conds(scene, silence_of(scene))
        guider.set_cfg(1.0)
        # It mixes noise and latent by the first sigma; what is given as both stays as it is.
        sampler = comfy.samplers.sampler_object("euler")
        made.append(guider.sample(latent, latent, sampler, sigmas, disable_pbar=True, seed=seeds[0]).cpu())
    return torch.stack(made)
