"""DashengAudioGen: the stages in order, from prompts to waveforms."""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .adapter import ContentAdapter, frames_from_duration, load_adapter
from .audio_tokenizer.decoder import Decoder, load_decoder
from .audio_tokenizer.encoder import Encoder, load_encoder
from .backbone import Backbone, load_backbone
from .control.emphasis import as_emphasis, lint_scene, without_aspect
from .control.keep import kept_of
from .control.loop import loop_wrap
from .control.stems import StemOptions
from .control.timeline import Timeline, as_scenes, pad_contexts, prompts_of, spoken_of
from .duration import FRAME_RATE, MAX_SECONDS, SAMPLE_RATE, SAMPLES_PER_FRAME, frames_from_seconds
from .inputs import as_int, as_list, as_prompts, as_seconds
from .options import SamplingOptions
from .progress import step_bar
from .prompt import compose_prompt
from .sampling import Branch, Branches, as_noise, choose_seeds, denoise, draw_noises
from .separation import stems_of_audio, stems_of_latent
from .tensors import (
    as_context,
    as_device,
    as_dtype,
    as_latent,
    as_tensor,
    as_token_mask,
    as_waveform,
    check_finite,
    has_fast_bfloat16,
)
from .text_encoder import TextEncoder, load_text_encoder
from .tokenizer import SceneTokenizer
from .weights.checkpoint import Checkpoint
from .weights.config import AdapterConfig
from .weights.parts import open_parts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .control.stems import FurtherStemOptions
    from .options import FurtherOptions

log = logging.getLogger(__name__)

DEFAULTS = SamplingOptions()
# Spans of a clip, from and to in seconds.
KeepSpans = Sequence[tuple[float, float]]


class DashengAudioGen:
    """The model, stage by stage; each method takes what the one before it returns.

    ``sample_rate`` is that of every waveform, in Hz.

    ``dtype`` is the backbone's, the adapter's and the decoder body's; the text encoder runs in bfloat16
    when its weights are and in float32 otherwise. Latents are always float32.
    """

    sample_rate = SAMPLE_RATE
    compose_prompt = staticmethod(compose_prompt)

    def __init__(
        self,
        tokenizer: SceneTokenizer,
        text_encoder: TextEncoder,
        adapter: ContentAdapter,
        backbone: Backbone,
        audio_tokenizer: Checkpoint,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.device, self.dtype = torch.device(device), dtype
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.to(self.device)
        self.adapter = adapter.to(self.device)
        self.backbone = backbone.to(self.device)
        self.decoder: Decoder = load_decoder(audio_tokenizer, dtype=dtype).to(self.device)
        self._audio_tokenizer = audio_tokenizer
        self._encoder: Encoder | None = None

    @classmethod
    def from_pretrained(
        cls,
        audiogen: str | Path,
        text_encoder: str | Path | None = None,
        audio_tokenizer: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        compile: bool = False,
    ) -> "DashengAudioGen":
        """Load the three checkpoints.

        Args:
            audiogen: folder or file of the audio generator, or the id of a hub repository that is already in
                the local cache; or a folder that holds all three as ``audiogen``, ``text_encoder`` and
                ``audio_tokenizer``. Nothing is ever fetched.
            text_encoder: the same, of the T5 or mT5 encoder; None: the one the generator's config.json names.
            audio_tokenizer: the same, of the audio tokenizer; None: the one the generator's config.json names.
            device: where all parts run; "auto": the first GPU, or the CPU where there is none.
            dtype: float32, bfloat16 or float16, also as text ("bf16" or "bfloat16"). On a CPU that has no fast bfloat16, that one is computed in float32.
            compile: run the network by torch.compile, which takes minutes at the first clip of each length.

        Raises:
            FileNotFoundError: a path that does not exist, or a repository that is not in the cache.
            CheckpointError: a file of another model.
            ValueError: an unknown dtype, or a device that cannot be used.
        """
        dtype, device = as_dtype(dtype), as_device(device)
        if dtype == torch.bfloat16 and not has_fast_bfloat16(torch.device(device)):
            log.info("This processor has no fast bfloat16: computing in float32.")
            dtype = torch.float32
        generator, t5, codec = open_parts(audiogen, text_encoder, audio_tokenizer)
        config = AdapterConfig.from_checkpoint(generator)
        tokenizer, encoder = load_text_encoder(t5, generator, config)
        backbone = load_backbone(generator, dtype=dtype).to(device)
        if compile:
            backbone.step = torch.compile(backbone.step)  # type: ignore[method-assign]
        return cls(tokenizer, encoder, load_adapter(generator, config, dtype=dtype), backbone, codec, device, dtype)

    def to(self, device: str | torch.device) -> "DashengAudioGen":
        """The model itself, all of its parts on ``device``."""
        self.device = as_device(device)
        for part in (self.text_encoder, self.adapter, self.backbone, self.decoder, self._encoder):
            if part is not None:
                part.to(self.device)
        return self

    def cuda(self) -> "DashengAudioGen":
        """The model itself, on the GPU."""
        return self.to("cuda")

    def eval(self) -> "DashengAudioGen":
        """The model itself, which is never trained."""
        return self

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Timeline | Sequence[str | Timeline],
        num_steps: int = DEFAULTS.num_steps,
        guidance_scale: float = DEFAULTS.guidance_scale,
        sway_sampling_coef: float = DEFAULTS.sway_sampling_coef,
        *,
        seed: int | Sequence[int] | None = None,
        duration: float | Sequence[float] | None = None,
        noise: Tensor | None = None,
        emphasis: Mapping[str, float] | None = None,
        latent: Tensor | None = None,
        keep: KeepSpans | None = None,
        feather: float = 0.0,
        negative: str | Sequence[str] | None = None,
        takes: int = 1,
        callback: Callable[[int, int], None] | None = None,
        **options: "Unpack[FurtherOptions]",
    ) -> Tensor:
        """Make one clip per prompt and take, each exactly as it would be made alone.

        Args:
            prompts: a tagged prompt or a list; see :func:`dasheng_core.compose_prompt`. A :class:`Timeline` stands wherever a
                prompt does.
            num_steps: evaluations of the network, 1 to 10000.
            guidance_scale: of classifier-free guidance; 1 or less samples the conditional branch alone, in half the time.
            sway_sampling_coef: where the steps lie, from -1 (most near the noise) to 1.75; 0 spreads them evenly.
            seed: item i uses ``seed + i``, or the i-th of a list, 0 to 2^64 - 1; None draws one below 2^53 and logs it. With
                ``takes`` an item is a take: those of a prompt stand one after the other, and take t of a prompt whose seed in
                a list is s uses s + t.
            duration: seconds, one for all or one per item, rounded to frames of 40 ms; None: that of ``latent``, else the
                model's estimate, of a timeline its own ``seconds`` or the longest of its entries.
            noise: initial latents ``[B, C, T]``, instead of a seed; item i uses its first frames.
            emphasis: aspect -> weight w of each fader that is not 0: w (v with the aspect - v without it) is added, for one
                branch more in each guided step.
            latent, keep: spans in seconds that stay as they are in a latent ``[B or 1, C, T]``; all else is made.
            feather: seconds around them in which less and less of the latent is kept, which softens the joins.
            negative: tagged prompts, one for all or one per prompt, of what not to make: guidance goes away from them. None: the
                model's own unconditional branch.
            takes: how many waveforms of each prompt.
            callback: called with (steps done, steps in all) over all items; None: a bar on a terminal or in a notebook.
            options: the other fields of :class:`SamplingOptions`, such as ``grid``.

        Returns:
            Waveforms ``[B takes, samples]`` at 16 kHz, float32 on the CPU; silence after the end of shorter items.

        Raises:
            PromptError: a prompt without caption, with unknown tags, or without a word of the tokenizer's vocabulary.
            TypeError: an option that does not exist.
            ValueError: no prompts; an impossible length, step count, sway coefficient, guidance scale, seed or noise;
                a seed and noise; a result with values that are not numbers.
        """
        sampling = SamplingOptions(num_steps, guidance_scale, sway_sampling_coef, **options)
        takes = as_int(takes, "takes", 1, 10_000, "it is the number of waveforms of each prompt")
        given = as_scenes(prompts)
        scenes = [scene for scene in given for _ in range(takes)]
        seeds = choose_seeds(seed, noise, len(given), takes)
        negatives = [] if negative is None else _for_each(as_prompts(negative), len(given), takes)
        faders = as_emphasis({} if emphasis is None else emphasis)
        others = [[without_aspect(scene, aspect) for scene in scenes] for aspect in faders]
        kept = kept_of(latent, keep, feather, len(scenes), self.latent_channels)
        seconds = None if duration is None else as_seconds(duration, len(given))

        texts = [text for some in (scenes, *others) for scene in some for text in prompts_of(scene)]
        contexts, estimates = self._encode_each([*texts, *negatives])
        if seconds is not None:
            frames = [frames_from_seconds(length) for length in seconds for _ in range(takes)]
        elif kept is not None:
            frames = [len(kept.share)] * len(scenes)
        else:
            frames = [
                frames_from_seconds(scene.seconds)
                if isinstance(scene, Timeline) and scene.seconds
                else max(estimates[text] for text in prompts_of(scene))
                for scene in scenes
            ]
        for scene, T in dict.fromkeys(zip(scenes, frames, strict=True)):
            for doubt in lint_scene(scene, T, faders):
                log.warning(doubt)
        if noise is not None:
            noise = as_noise(noise, len(scenes), self.latent_channels, max(frames))

        def branch(some: Sequence[str | Timeline], items: list[int], T: int, weight: float = 1.0) -> Branch:
            own = [some[i] for i in items]
            return Branch(*pad_contexts(own, contexts, T), weight, spoken_of([scenes[i] for i in items], T))

        order = sorted(range(len(scenes)), key=frames.__getitem__)
        groups = [list(items) for _, items in groupby(order, key=frames.__getitem__)]
        waveforms: dict[int, Tensor] = {}
        with step_bar(callback) as report:
            for done, items in enumerate(groups):
                T, own_seeds = frames[items[0]], [seeds[i] for i in items] if seeds else []
                if noise is None:
                    start = draw_noises(own_seeds, self.latent_channels, [T] * len(items), sampling.noise_kind)
                else:
                    start = noise[items, :, :T]
                read = Branches(
                    branch(scenes, items, T),
                    branch(negatives, items, T) if negatives else None,
                    [branch(some, items, T, weight) for weight, some in zip(faders.values(), others, strict=True)],
                )

                def count(step: int, steps: int, done: int = done) -> None:
                    report(done * steps + step, len(groups) * steps)

                sampled = denoise(
                    self.backbone,
                    start,
                    read,
                    sampling,
                    known=kept and kept.of(items, T),
                    seeds=own_seeds,
                    callback=count,
                )
                for i, item in zip(items, sampled, strict=True):
                    waveforms[i] = self.decode(item[None], loop=sampling.loop)[0]
        return pad_sequence([waveforms[i] for i in range(len(scenes))], batch_first=True)

    @torch.inference_mode()
    def encode_text(self, prompts: str | Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Read prompts.

        Returns:
            content ``[B, S, D]`` for the backbone, mask ``[B, S]`` bool (True for real tokens), and the model's
            estimate of each clip's length in latent frames ``[B]`` int64, 25 per second.

        Raises:
            PromptError: a prompt without caption, or with unknown tags.
            ValueError: no prompts.
        """
        prompts = as_prompts(prompts)
        input_ids, mask = (tensor.to(self.device) for tensor in self.tokenizer(prompts))
        _, features = self.text_encoder(input_ids, mask)
        content, global_duration = self.adapter(features, mask)
        check_finite(content, "What the text encoder made", f"load the model with another dtype than {self.dtype}")
        return content, mask, frames_from_duration(global_duration, self.adapter.config.duration_offset, FRAME_RATE)

    @torch.inference_mode()
    def sample(
        self,
        content: Tensor,
        mask: Tensor,
        frames: Tensor,
        num_steps: int = DEFAULTS.num_steps,
        guidance_scale: float = DEFAULTS.guidance_scale,
        sway_sampling_coef: float = DEFAULTS.sway_sampling_coef,
        *,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        keep: KeepSpans | None = None,
        feather: float = 0.0,
        callback: Callable[[int, int], None] | None = None,
        **options: "Unpack[FurtherOptions]",
    ) -> Tensor:
        """Denoise one batch at its longest item's length, as the published model does.

        Frames beyond an item's own length are hidden from attention only, so an item of a mixed-length batch
        is not quite what it is alone; :meth:`generate` keeps items apart.

        Args:
            content: ``[B, S, D]``.
            mask: ``[B, S]`` bool.
            frames: ``[B]`` int, 1 to 15000.
            noise: initial latent ``[B, C, T]``, at least as long as the longest item; drawn from ``seed`` if None.

        The others are those of :meth:`generate`.

        Returns:
            Latent ``[B, C, T]``, float32 on the model's device.

        Raises:
            TypeError: an option that does not exist.
            ValueError: arguments that do not fit each other or the model, a seed and noise, or a latent that came out
                with values that are not numbers.
        """
        sampling = SamplingOptions(num_steps, guidance_scale, sway_sampling_coef, **options)
        content = as_context(content, self.backbone.config.context_dim, "content")
        mask = as_token_mask(mask, content)
        most = int(MAX_SECONDS * FRAME_RATE)
        lengths = [
            as_int(length, "A number of frames", 1, most, "there are 25 per second") for length in as_list(frames)
        ]
        if len(lengths) != len(content):
            raise ValueError(
                f"frames has {len(lengths)} numbers, expected {len(content)}, one for each item of content."
            )
        longest = max(lengths)
        if min(lengths) < longest and (sampling.loop or sampling.window is not None):
            raise ValueError(
                f"frames has lengths from {min(lengths)} to {longest}, expected one length for all with loop or window: sample "
                "them one by one."
            )
        kept = kept_of(latent, keep, feather, len(lengths), self.latent_channels)
        seeds = choose_seeds(seed, noise, len(lengths))
        if noise is None:
            noise = draw_noises(seeds, self.latent_channels, lengths, sampling.noise_kind)
        noise = as_noise(noise, len(lengths), self.latent_channels, longest)[..., :longest]
        frame_mask = None
        if min(lengths) < longest:
            frame_mask = torch.arange(longest, device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
        kept = kept and kept.of(range(len(lengths)), longest)
        read = Branches(Branch(content, mask))
        return denoise(
            self.backbone, noise, read, sampling, frame_mask=frame_mask, known=kept, seeds=seeds, callback=callback
        )

    @torch.inference_mode()
    def decode(self, latent: Tensor, loop: bool = False) -> Tensor:
        """Latent ``[B, C, T]`` -> waveform ``[B, 640 T]`` at 16 kHz, float32 on the CPU, level untouched.

        Args:
            loop: the first frame follows the last: the sound's end joins its beginning.

        Raises:
            ValueError: a latent of another shape; values that are not numbers in it or in the waveform.
        """
        latent = as_latent(latent, self.latent_channels).to(self.device)
        if not loop:
            return self.decoder(latent).cpu()
        reach = self.decoder.reach
        ends = reach * SAMPLES_PER_FRAME
        return self.decoder(loop_wrap(latent, reach))[:, ends:-ends].cpu()

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Waveform ``[B, samples]`` at 16 kHz -> latent ``[B, C, T]`` float32; items are encoded one by one.

        The encoder's weights are read on the first call.

        Args:
            audio: also ``[samples]``, or ``[B, channels, samples]``, of which channels are averaged; floating point within
                about -1 to 1, or int8, uint8, int16 or int32, which are scaled to it.

        Raises:
            ValueError: no clips, fewer than 513 samples, more than an hour, or samples that are not numbers.
        """
        audio = as_tensor(audio, "The audio")
        audio = as_waveform(audio[:, None] if audio.ndim == 2 else audio).mean(dim=1)
        if self._encoder is None:
            self._encoder = load_encoder(self._audio_tokenizer, dtype=self.dtype).to(self.device)
        return self._encoder(audio.to(self.device))

    @torch.inference_mode()
    def stems(
        self,
        prompts: str | Timeline | Sequence[str | Timeline],
        *,
        latent: Tensor | None = None,
        audio: Tensor | None = None,
        sample_rate: int = SAMPLE_RATE,
        seed: int | Sequence[int] = 0,
        callback: Callable[[int, int], None] | None = None,
        **options: "Unpack[FurtherStemOptions]",
    ) -> dict[str, Tensor]:
        """Take sounds apart into the aspects of their prompts; the stems add up to the sound within 1e-6.

        Each aspect costs as many evaluations of the network and decodings as there are sigmas, 4, and one encoding fewer.

        Args:
            prompts: one for all, or one for each sound; of a recording, what it is: its asr must be what is said.
            latent: ``[B, C, T]``, of a generated clip; or
            audio: waveforms as :meth:`encode` takes them, at ``sample_rate`` Hz.
            seed: item i uses ``seed + i``, or the i-th of a list.
            callback: called with (rounds done, rounds in all) over all items.
            options: the fields of :class:`dasheng_core.control.stems.StemOptions`, such as ``rest``.

        Returns:
            ``speech``, ``sfx``, ``music`` and ``env``, as far as the prompts have them, and ``rest`` where it is asked for:
            float32 on the CPU, ``[B, samples]``, or of audio with channels ``[B, channels, samples]``. Of audio at another rate
            than 16 kHz they have that rate, and ``rest`` is always among them: it has what lies above 8 kHz.

        Raises:
            PromptError: a prompt that is not tagged.
            ValueError: a prompt of a caption alone; both of latent and audio, or neither; an impossible option, latent or audio.
        """
        how = StemOptions(**options)
        if latent is not None and audio is None:
            return stems_of_latent(self, prompts, latent, seed, how, callback)
        if audio is not None and latent is None:
            return stems_of_audio(self, prompts, audio, sample_rate, seed, how, callback)
        raise ValueError("latent and audio: expected one of them, the sound that is taken apart.")

    @property
    def latent_channels(self) -> int:
        return self.backbone.config.latent_dim

    def _encode_each(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Context ``[S, D]`` and estimate in frames of each text: one by one, since an estimate depends on a batch's others."""
        encoded = {text: self.encode_text([text]) for text in dict.fromkeys(texts)}
        contexts = {text: content[0] for text, (content, _, _) in encoded.items()}
        return contexts, {text: int(frames) for text, (_, _, frames) in encoded.items()}


def _for_each(values: list[str], prompts: int, takes: int) -> list[str]:
    """One text for all, or one per prompt, for each take."""
    if len(values) not in (1, prompts):
        raise ValueError(f"{len(values)} negative prompts for {prompts} prompts: give one for all, or one per prompt.")
    each = [compose_prompt(prompt=value) for value in (values * prompts if len(values) == 1 else values)]
    return [value for value in each for _ in range(takes)]
