"""Stems: a sound taken apart into the aspects of its prompt by the model that made it; they add up to the sound.

In each round the sound gets noise, and one evaluation under an aspect's own prompt says what of it the aspect explains: its
reference. The references' shares of the energy, bin by bin, are masks over the sound; the stems that they cut out are what the
next round gets noise on. A mask moves no phase, and all masks of a bin add up to 1.

Dimensions: K aspects, B batch, L samples, C latent channels, T latent frames, F frequency bins, N spectrum frames.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ..duration import SAMPLES_PER_FRAME
from ..inputs import as_float, as_list
from ..options import as_window
from ..prompt import compose_prompt, first_words, parse_prompt
from .timeline import Span, timeline_weights

# Aspects that have a stem. The transcript is the speech's.
STEMS = ("speech", "sfx", "music", "env")
# What no aspect explains, and what lies above the model's band.
REST = "rest"
SIGMAS = (0.8, 0.8, 0.7, 0.6)
# Half a latent frame, so that the grid of a spectrum closes around a loop of whole frames; windows are 80 ms.
HOP = SAMPLES_PER_FRAME // 2
FFT = 4 * HOP
# Bins and frames that count as near; and how steeply that weighs: half where 4 % of a bin is explained.
NEAR, MISSING_POWER = (5, 3), 16
# Of more aspects than these, a layer that went to another one in an early round must be able to come back: in each round but the
# last, so much of the sound is left in each stem. And what a peak of a reference stands out of.
FEW, LEFT, AROUND = 2, 0.15, (65, 9)
# What was not found has less than these shares of the energy and of the audible bins, which are within 50 dB of the loudest one.
FAINT, FEW_BINS, AUDIBLE = 0.01, 0.1, 1e-5
# A stem sampled again gets noise to this sigma, and as many steps.
RETAKE_SIGMA, RETAKE_STEPS = 0.7, 8
# The caption of speech whose speaker is not described.
VOICE = "Someone speaks."


@dataclass(frozen=True)
class StemOptions:
    """How a sound is taken apart.

    Attributes:
        sigmas: of the rounds, one evaluation for each aspect in each, falling from the noise.
        rest: a stem of what no aspect explains. It takes from the others: only for a sound that the prompt does not name.
        retake: each stem is sampled again from sigma 0.7, in 8 evaluations: cleaner, and no longer a part of the sound.
        loop: the sound's end joins its beginning, and so does each stem's.
        window: seconds; evaluate a longer sound in windows, see :mod:`dasheng_core.control.windows`.

    Raises:
        ValueError: no sigmas, or a number out of its range.
    """

    sigmas: Sequence[float] = SIGMAS
    rest: bool = False
    retake: bool = False
    loop: bool = False
    window: float | None = None

    def __post_init__(self) -> None:
        remedy = f"{SIGMAS} are a good start"
        sigmas = tuple(as_float(sigma, "A sigma of the stems", 0.01, 1.0, remedy) for sigma in as_list(self.sigmas))
        if not sigmas:
            raise ValueError(f"The sigmas of the stems are an empty list, expected one for each round: {remedy}.")
        object.__setattr__(self, "sigmas", sigmas)
        if self.window is not None:
            as_window(self.window)

    @property
    def draws(self) -> int:
        """How many latents of noise an item needs."""
        return len(self.sigmas) + self.retake


class FurtherStemOptions(TypedDict, total=False):
    """The fields of :class:`StemOptions` by name."""

    sigmas: Sequence[float]
    rest: bool
    retake: bool
    loop: bool
    window: float | None


class Separator(NamedTuple):
    """What taking apart asks of a model.

    Attributes:
        sample: latents ``[K, B, C, T]`` of the aspects with noise at the first of some sigmas, and these, which end with 0 ->
            the latents that Euler steps lead to, each aspect under its own prompt, unguided.
        decode: ``[B, C, T]`` -> ``[B, 640 T]``.
        encode: ``[B, 640 T]`` -> ``[B, C, T]``.
    """

    sample: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]


def aspect_prompts(prompts: Sequence[str]) -> dict[str, list[str | None]]:
    """Each aspect as a scene of its own: for each of the prompts of a clip its prompt, None where that one lacks it.

    An aspect's text is its caption too. The scene's caption is left out: it names all.

    Raises:
        PromptError: not a tagged prompt.
        ValueError: a prompt of a caption alone.
    """
    own: dict[str, list[str | None]] = {stem: [] for stem in STEMS}
    for prompt in prompts:
        texts = parse_prompt(prompt)
        spoken = texts.get("asr")
        captions = {stem: texts.get(stem) or (VOICE if stem == "speech" and spoken else None) for stem in STEMS}
        if not any(captions.values()):
            raise ValueError(
                f"The prompt {first_words(prompt)!r} has a caption alone, expected what is to be a stem in its aspect: add "
                "<|speech|>, <|sfx|>, <|music|> or <|env|> and what sounds."
            )
        for stem, caption in captions.items():
            given = {"asr": spoken, stem: texts.get(stem)} if stem == "speech" else {stem: caption}
            own[stem].append(compose_prompt(caption, **given) if caption else None)
    return {stem: alone for stem, alone in own.items() if any(alone)}


def held_prompts(prompts: Sequence[str | None]) -> list[str]:
    """Where an aspect has no prompt it reads the one before, or the first one; its weight is 0 there, see :func:`aspect_weights`."""
    last = next(filter(None, prompts))
    return [last := prompt or last for prompt in prompts]


def aspect_weights(own: dict[str, list[str | None]], spans: Sequence[Span], frames: int) -> Tensor:
    """How much of each aspect the prompts of a clip describe in a frame, ``[K, T]``, 0 to 1."""
    described = torch.tensor([[prompt is not None for prompt in alone] for alone in own.values()], device="cpu")
    return (described.float() @ timeline_weights(spans, frames)[:, 1:].T).clamp(max=1)


def retake_sigmas() -> Tensor:
    """The schedule of a stem that is sampled again: the part of the published one below its first sigma."""
    angles = torch.linspace(math.acos(RETAKE_SIGMA), math.pi / 2, RETAKE_STEPS + 1, dtype=torch.float64, device="cpu")
    return torch.cat([angles[:-1].cos(), angles.new_zeros(1)]).float()


def separate(
    mix: Tensor,
    latent: Tensor,
    weights: Tensor,
    noise: Tensor,
    separator: Separator,
    options: StemOptions,
    report: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Take sounds apart.

    Args:
        mix: ``[B, channels, 640 T]``, 16 kHz. All channels are cut by the masks of their mean.
        latent: ``[B, C, T]``, what it is decoded from, or encoded to.
        weights: ``[K, T]``, see :func:`aspect_weights`.
        noise: ``[draws, B, C, T]``.
        report: called with (rounds done, rounds in all).

    Returns:
        ``[K, B, channels, 640 T]``, and as the last of K the rest where it is asked for. They add up to ``mix`` within
        float32, unless they are sampled again.
    """
    K = len(weights)
    # A spectrum's frames stand at the middle and the ends of latent frames.
    described = F.pad(weights.repeat_interleave(2, dim=1), (0, 1), mode="replicate").to(mix.device)[:, None, None]
    whole = _spectrum(mix, options.loop)
    mono = _energy(mix.mean(dim=1), options.loop)
    latents = latent.expand(K, *latent.shape)
    for step, sigma in enumerate(options.sigmas):
        sampled = separator.sample(
            _noised(latents, noise[step], sigma), torch.tensor([sigma, 0.0], dtype=torch.float32, device="cpu")
        )
        energies = [_energy(separator.decode(one).to(mix.device), options.loop) for one in sampled]
        energy = _claimed(torch.stack(energies) * described, mono)
        if options.rest:
            energy = torch.cat([energy, (mono - energy.sum(dim=0)).clamp(min=0)[None]])
        stems = _waveform(_shares(energy)[:, :, None] * whole, mix.shape[-1], options.loop)
        if report is not None:
            report(step + 1, options.draws)
        if step + 1 < options.draws:
            kept = LEFT if K > FEW and step + 1 < len(options.sigmas) else 0.0
            left = torch.lerp(stems[:K], mix, kept).mean(dim=2)
            latents = torch.stack([separator.encode(stem) for stem in left])
    if options.retake:
        sampled = separator.sample(_noised(latents, noise[-1], RETAKE_SIGMA), retake_sigmas())
        again = torch.stack([separator.decode(one).to(mix.device) for one in sampled])
        stems = torch.cat([again[:, :, None].expand_as(stems[:K]), stems[K:]])
        if report is not None:
            report(options.draws, options.draws)
    return stems


def cut_by_energy(mix: Tensor, sounds: Tensor, loop: bool = False) -> Tensor:
    """What of ``mix`` ``[B, channels, 640 T]`` each of ``sounds`` ``[K, B, 640 T]`` explains, ``[K, B, channels, 640 T]``."""
    masks = _shares(_energy(sounds, loop))
    return _waveform(masks[:, :, None] * _spectrum(mix, loop), mix.shape[-1], loop)


def lint_stems(names: Sequence[str], stems: Tensor, mix: Tensor) -> list[str]:
    """A sentence for each of ``stems`` ``[K, B, channels, L]`` in which hardly anything of ``mix`` is left: it was not found there.

    Such a stem has less than a hundredth of the energy, and more than half of fewer than a tenth of the bins that are within 50 dB of
    the loudest one.
    """
    whole, doubts = _energy(mix.mean(dim=1), False), []
    audible = whole > whole.amax(dim=(1, 2), keepdim=True) * AUDIBLE
    for name, stem in zip(names, stems, strict=True):
        own = _energy(stem.mean(dim=1), False)
        levels = own.sum(dim=(1, 2)) / whole.sum(dim=(1, 2)).clamp(min=1e-20)
        bins = (audible & (own > whole / 2)).sum(dim=(1, 2)) / audible.sum(dim=(1, 2)).clamp(min=1)
        for take in ((levels < FAINT) & (bins < FEW_BINS)).nonzero()[:, 0].tolist():
            place = f" in take {take + 1}" if len(mix) > 1 else ""
            under = -10 * math.log10(max(1e-12, levels[take].item()))
            doubts.append(
                f"{name} was not found{place}: its stem is {under:.0f} dB under the sound, and the others have paid for it. Leave "
                f"<|{name}|> out of the prompt, or describe what is heard."
            )
    return doubts


def _noised(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """One noise for all aspects: what differs between them is the prompts' doing."""
    return torch.lerp(latents, noise.to(latents.device), sigma)


def _claimed(energy: Tensor, mix: Tensor) -> Tensor:
    """Energies ``[K, B, F, N]`` of references, and to them where they explain little of the mix's ``[B, F, N]`` those of near bins.

    A tone that the decoder does not bring back is in no reference: it belongs to the aspect that sounds beside it; of many, to the
    one whose reference has a peak there.
    """
    missing = (1 - energy.sum(dim=0) / mix.clamp(min=1e-20)).clamp(min=0) ** MISSING_POWER
    near = _pooled(energy, *NEAR)
    if len(energy) > FEW:
        peaks = near / _pooled(energy, *AROUND).clamp(min=1e-12)
        near = near.sum(dim=0) * peaks / peaks.sum(dim=0).clamp(min=1e-12)
    return energy + missing * near


def _pooled(energy: Tensor, bins: int, frames: int) -> Tensor:
    return F.avg_pool2d(energy, (bins, frames), stride=1, padding=(bins // 2, frames // 2))


def _shares(energy: Tensor) -> Tensor:
    """Masks ``[K, B, F, N]`` that add up to 1; a bin in which nothing sounds is shared evenly."""
    # Energies of the quietest bins are no numbers to divide by.
    share = energy / energy.amax(dim=0).clamp(min=1e-20) + 1e-9
    return share / share.sum(dim=0)


def _energy(sound: Tensor, loop: bool) -> Tensor:
    return _spectrum(sound, loop).abs().square()


def _spectrum(sound: Tensor, loop: bool) -> Tensor:
    """``[..., L]`` -> ``[..., F, N]``, N = L / 320 + 1; before a loop stands its end and after it its beginning."""
    flat = F.pad(sound.reshape(1, -1, sound.shape[-1]), (FFT // 2, FFT // 2), mode="circular" if loop else "constant")[
        0
    ]
    spectrum = torch.stft(flat, FFT, HOP, window=_window(sound), center=False, return_complex=True)
    return spectrum.unflatten(0, sound.shape[:-1])


def _waveform(spectrum: Tensor, samples: int, loop: bool) -> Tensor:
    flat = spectrum.flatten(0, -3)
    if loop:
        # The four windows that reach over either end; the first frame is the last one too.
        frames = flat.shape[-1]
        flat = flat[..., torch.arange(-4, frames + 4, device=flat.device) % (frames - 1)]
    padded = samples + 8 * HOP if loop else samples
    sound = torch.istft(flat, FFT, HOP, window=_window(spectrum.real), length=padded)
    if loop:
        sound = sound[..., 4 * HOP : -4 * HOP]
    return sound.unflatten(0, spectrum.shape[:-2])


def _window(like: Tensor) -> Tensor:
    return torch.hann_window(FFT, dtype=like.dtype, device=like.device)
