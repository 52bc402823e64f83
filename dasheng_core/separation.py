"""Stems of waveforms and latents by :class:`DashengAudioGen`: what :mod:`dasheng_core.control.stems` asks of a model."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .audio_tokenizer.decoder import Decoder
from .audio_tokenizer.spectral import resample
from .backbone import Backbone
from .control.loop import loop_shifts, loop_wrap
from .control.stems import (
    REST,
    STEMS,
    Separator,
    StemOptions,
    aspect_prompts,
    aspect_weights,
    held_prompts,
    lint_stems,
    separate,
)
from .control.timeline import Timeline, as_scenes, pad_contexts, prompts_of, spans_of, spoken_of
from .duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from .options import SamplingOptions
from .progress import step_bar
from .sampling import Branch, Branches, draw_noise, euler, item_seeds, make_velocity
from .tensors import UNSTABLE, as_latent, as_tensor, as_waveform, check_finite

log = logging.getLogger(__name__)


class Stages(Protocol):
    """What :class:`DashengAudioGen` has that is used here."""

    device: torch.device
    backbone: Backbone
    decoder: Decoder

    @property
    def latent_channels(self) -> int: ...
    def encode_text(self, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor, Tensor]: ...
    def decode(self, latent: Tensor, loop: bool = False) -> Tensor: ...
    def encode(self, audio: Tensor) -> Tensor: ...


def stems_of_sounds(
    model: Stages,
    prompts: str | Timeline | Sequence[str | Timeline],
    sound: Tensor,
    latent: Tensor | None,
    seed: int | Sequence[int],
    options: StemOptions,
    callback: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Take sounds apart one by one, each as it would be alone.

    Args:
        sound: ``[B, channels, 640 T]`` at 16 kHz.
        latent: ``[B, C, T]``, what it was decoded from; None: it is encoded.

    Returns:
        ``[B, channels, 640 T]`` for each aspect that one of the prompts has, silent for items whose prompt lacks it.
    """
    scenes = as_scenes(prompts)
    if len(scenes) not in (1, len(sound)):
        raise ValueError(f"{len(scenes)} prompts for {len(sound)} sounds: give one for all, or one for each sound.")
    scenes = scenes * len(sound) if len(scenes) == 1 else scenes
    seeds, frames = item_seeds(seed, len(sound)), sound.shape[-1] // SAMPLES_PER_FRAME
    own = [aspect_prompts(prompts_of(scene)) for scene in scenes]
    weights = [aspect_weights(alone, spans_of(scene), frames) for alone, scene in zip(own, scenes, strict=True)]
    names = [stem for stem in STEMS if any(stem in alone for alone in own)] + [REST] * options.rest
    stems = {name: torch.zeros_like(sound) for name in names}
    with step_bar(callback) as report:
        for i, (scene, alone) in enumerate(zip(scenes, own, strict=True)):
            separator = _separator(model, _own_scenes(scene, alone), frames, seeds[i], options)
            mix = sound[i : i + 1]
            known = separator.encode(mix.mean(dim=1)) if latent is None else latent[i : i + 1].cpu()
            drawn = draw_noise(seeds[i], options.draws * model.latent_channels, frames)
            made = separate(
                mix,
                known,
                weights[i],
                drawn.unflatten(0, (options.draws, 1, -1)),
                separator,
                options,
                partial(_report_sound, report, i, len(sound)),
            )
            for doubt in lint_stems(list(alone), made[: len(alone)], mix):
                log.warning(doubt)
            for name, stem in zip([*alone, *[REST] * options.rest], made, strict=True):
                stems[name][i] = check_finite(stem[0], f"The stem {name}", UNSTABLE)
    return stems


def _report_sound(report: Callable[[int, int], None], before: int, sounds: int, done: int, rounds: int) -> None:
    report(before * rounds + done, sounds * rounds)


def _own_scenes(scene: str | Timeline, own: dict[str, list[str | None]]) -> list[str | Timeline]:
    """What each aspect reads: its own prompt, of a timeline in each entry."""
    held = [held_prompts(alone) for alone in own.values()]
    if isinstance(scene, Timeline):
        starts = [start for start, _ in scene.entries]
        return [Timeline(list(zip(starts, prompts, strict=True)), scene.fade) for prompts in held]
    return [prompt for (prompt,) in held]


def _separator(model: Stages, own: Sequence[str | Timeline], frames: int, seed: int, options: StemOptions) -> Separator:
    """``own``: what each aspect reads."""
    texts = dict.fromkeys(text for scene in own for text in prompts_of(scene))
    contexts = {text: model.encode_text([text])[0][0] for text in texts}
    context, mask = (tensor.to(model.device) for tensor in pad_contexts(own, contexts, frames))
    read = Branches(Branch(context, mask, spoken=spoken_of(own, frames)))
    sampling = SamplingOptions(guidance_scale=1.0, loop=options.loop, window=options.window)

    def sample(latents: Tensor, sigmas: Tensor) -> Tensor:
        shifts = loop_shifts([seed] * len(own), sigmas[:-1].tolist(), frames) if options.loop else None
        velocity = make_velocity(model.backbone, read, sampling, sigmas, shifts=shifts)
        return euler(velocity, latents[:, 0].to(model.device), sigmas)[:, None].cpu()

    def encode(sound: Tensor) -> Tensor:
        if not options.loop:
            return model.encode(sound).cpu()
        reach = model.decoder.reach
        return model.encode(loop_wrap(sound, reach * SAMPLES_PER_FRAME))[..., reach:-reach].cpu()

    return Separator(sample, lambda latent: model.decode(latent, options.loop), encode)


def stems_of_latent(
    model: Stages,
    prompts: str | Timeline | Sequence[str | Timeline],
    latent: Tensor,
    seed: int | Sequence[int],
    options: StemOptions,
    callback: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """``[B, samples]`` of each aspect of latents ``[B, C, T]``."""
    latent = as_latent(latent, model.latent_channels)
    sound = model.decode(latent, options.loop)[:, None]
    made = stems_of_sounds(model, prompts, sound, latent, seed, options, callback)
    return {name: stem[:, 0] for name, stem in made.items()}


def stems_of_audio(
    model: Stages,
    prompts: str | Timeline | Sequence[str | Timeline],
    audio: Tensor,
    sample_rate: int,
    seed: int | Sequence[int],
    options: StemOptions,
    callback: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """``[B, samples]``, or ``[B, channels, samples]`` of each aspect of waveforms of that shape."""
    audio = as_tensor(audio, "The audio")
    waveform = as_waveform(audio[:, None] if audio.ndim == 2 else audio, sample_rate)

    def stems_of(sound: Tensor) -> dict[str, Tensor]:
        return stems_of_sounds(model, prompts, sound, None, seed, options, callback)

    stems = at_own_rate(stems_of, waveform, sample_rate, options.loop)
    return stems if audio.ndim == 3 else {name: stem[:, 0] for name, stem in stems.items()}


def at_own_rate(
    stems_of: Callable[[Tensor], dict[str, Tensor]], waveform: Tensor, sample_rate: int, loop: bool
) -> dict[str, Tensor]:
    """Stems of a waveform ``[B, channels, samples]`` at any rate, by those of whole frames at 16 kHz.

    At another rate what that one lacks goes to the rest, so that the sum is exact.

    Raises:
        ValueError: a loop that is not of whole frames.
    """
    given = resample(waveform, sample_rate)
    samples, more = given.shape[-1], -given.shape[-1] % SAMPLES_PER_FRAME
    if loop and more:
        raise ValueError(
            f"The loop has {samples} samples at 16 kHz, expected whole frames of {SAMPLES_PER_FRAME}: cut it, or take its stems "
            "without loop."
        )
    stems = {name: stem[..., :samples] for name, stem in stems_of(F.pad(given, (0, more))).items()}
    if sample_rate == SAMPLE_RATE:
        return stems
    L = waveform.shape[-1]
    stems = {name: resample(stem, SAMPLE_RATE, sample_rate)[..., :L] for name, stem in stems.items()}
    above = waveform - resample(given, SAMPLE_RATE, sample_rate)[..., :L]
    return {**stems, REST: above + stems[REST] if REST in stems else above}
