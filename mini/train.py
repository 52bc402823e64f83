"""Train the mini model: ``python -m mini.train STATE_FOLDER --export FOLDER``.

First the audio tokenizer, then text encoder, adapter, length head and backbone by flow matching. Everything made on the
way is kept in STATE_FOLDER, and the same command goes on from there after any stop. One seed decides everything.

Dimensions: B batch, C latent channels, T latent frames, S text tokens, X context width.
"""

import argparse
import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from dasheng_core.audio_tokenizer.encoder import Encoder
from dasheng_core.duration import SAMPLE_RATE, SAMPLES_PER_FRAME
from mini import sounds
from mini.captions import layers_of, training_prompt
from mini.learning import Batch, Objective, train
from mini.model import LATENT, AudioTokenizer, Generator, export, new_audio_tokenizer, new_generator, train_tokenizer
from mini.vocabulary import DIGITS, WorldScene
from mini.world import MOST_WORDS, render, sample_scene, word_labels

TRAINED_PARTS = ("codec", "decoder", "generator")
CONDITION_DROPOUT = 0.1
CROP_FRAMES, CROPS_PER_BATCH = 25, 12
CODEC_RATE, GENERATOR_RATE = 2e-3, 1e-3
# Words are the hardest: this share of the batches is speech alone, and clips with as many words come after this share
# of the steps.
SPEECH_SHARE = 0.4
WORDS_AFTER = {1: 0.0, 2: 0.1, 3: 0.2}
# Weights of the losses of the word head and the order head.
WORDS, ORDER = 0.5, 0.2
# FFT sizes of the audio tokenizer's spectral losses.
SPECTRA = (2048, 1024, 512, 256)
# A generator's latents are never quite right.
CODEC_NOISE, DECODER_NOISE = (0.1, 0.1), (0.0, 0.3)
ON_GRID = ("beep", "bell", "buzz", "arpeggio", "drone", "knock")
TONES_SHARE = 0.2
WAVE_WEIGHT, TONES = 0.5, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "state", type=Path, help="folder for what is made on the way; the run goes on from what is there"
    )
    parser.add_argument("--export", type=Path, help="write the three checkpoint folders here at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=16000, help="clips rendered once and used again with new captions")
    parser.add_argument("--codec-steps", type=int, default=8000, help="of encoder and decoder together")
    parser.add_argument("--decoder-steps", type=int, default=6000, help="of the decoder alone")
    parser.add_argument("--steps", type=int, default=18000, help="of the generator")
    parser.add_argument("--frames", type=int, default=1600, help="latent frames in a batch of the generator's")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default %(default)s)")
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    state, seed = args.state, args.seed

    def train_part(part: str, modules: nn.Module, objective: Objective, steps: int, rate: float) -> None:
        train(state / f"{part}.pt", modules, objective, steps, rate, args.device)

    clips = Clips(state, args.clips, seed)
    codec = new_audio_tokenizer()
    objective = codec_objective(codec, clips, seed, CODEC_NOISE)
    train_part("codec", codec.modules(), objective, args.codec_steps, CODEC_RATE)
    # From here on the latents stay what they are.
    codec.encoder.requires_grad_(False)
    objective = codec_objective(codec, clips, seed + 1, DECODER_NOISE)
    codec.encoder.to(args.device)
    train_part("decoder", codec.decoder, objective, args.decoder_steps, CODEC_RATE / 2)
    codec.encoder.cpu()
    text_tokenizer = load_text_tokenizer(state / "tokenizer.json", seed)
    latents = encode_clips(state / "latents.npy", codec.encoder, clips)
    generator = new_generator()
    draw = batches(clips, args.steps, args.frames)
    objective = generator_objective(generator, clips, latents, text_tokenizer, seed, draw)
    train_part("generator", generator.modules(), objective, args.steps, GENERATOR_RATE)
    if args.export:
        export(args.export, codec, generator, text_tokenizer)


class Clips:
    """Scenes and their sound, rendered once: 16-bit samples in one memory-mapped file."""

    def __init__(self, state: Path, count: int, seed: int):
        self.scenes = [sample_scene(np.random.default_rng([seed, 1, i])) for i in range(count)]
        lengths = [round(scene.seconds * SAMPLE_RATE / SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME for scene in self.scenes]
        self.ends = np.cumsum(lengths)

        def sound(i: int) -> np.ndarray:
            return np.round(render(self.scenes[i], np.random.default_rng([seed, 2, i])) * 32767)

        self._samples = in_parts(state / f"clips_{seed}_{count}.npy", self.ends, (), np.int16, sound, "rendering")

    def __len__(self) -> int:
        return len(self.scenes)

    def frames(self, i: int) -> int:
        return int(self.ends[i] - (self.ends[i - 1] if i else 0)) // SAMPLES_PER_FRAME

    def sound(self, i: int, first: int = 0, frames: int | None = None) -> Tensor:
        """``[samples]`` float32 of clip i, or of some of its frames."""
        frames = self.frames(i) if frames is None else frames
        start = int(self.ends[i]) - (self.frames(i) - first) * SAMPLES_PER_FRAME
        samples = np.asarray(self._samples[start : start + frames * SAMPLES_PER_FRAME])
        return torch.from_numpy(samples.astype(np.float32) / 32767)


def in_parts(
    path: Path, ends: np.ndarray, shape: tuple[int, ...], dtype: type, make: Callable[[int], np.ndarray], doing: str
) -> np.ndarray:
    """``[ends[-1], *shape]``, memory-mapped, made part by part; after a stop it goes on where it was.

    Args:
        ends: where each part ends.
        make: number of a part -> the part, never zeros alone.
    """
    if not path.exists():
        temporary = path.with_suffix(".part")
        mode = "r+" if temporary.exists() else "w+"
        made = np.lib.format.open_memmap(temporary, mode, dtype, (int(ends[-1]), *shape))
        parts = [slice(*part) for part in itertools.pairwise([0, *map(int, ends)])]
        # The last part that is there may not be there whole.
        first = max(0, sum(bool(made[part].any()) for part in parts) - 1)
        for i in tqdm(range(first, len(parts)), desc=doing, unit="clip"):
            made[parts[i]] = make(i)
        made.flush()
        os.replace(temporary, path)
    return np.load(path, mmap_mode="r")


def codec_objective(codec: AudioTokenizer, clips: Clips, seed: int, noise: tuple[float, float]) -> Objective:
    """Spectral distances of crops to their round trip, and a pull of the latents towards mean 0 and deviation 1.

    Args:
        noise: least and most deviation of what is added to the latents of a crop.
    """

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, 3, step])
        crops, on_grid = [], []
        for _ in range(CROPS_PER_BATCH):
            if rng.random() < TONES_SHARE:
                crops.append(torch.from_numpy(random_tones(rng, CROP_FRAMES * SAMPLES_PER_FRAME)))
                on_grid.append(True)
                continue
            i = int(rng.integers(len(clips)))
            first = int(rng.integers(clips.frames(i) - CROP_FRAMES + 1))
            crops.append(clips.sound(i, first, CROP_FRAMES))
            on_grid.append(is_on_grid(clips.scenes[i]))
        added = normal(rng, (len(crops), LATENT, CROP_FRAMES))
        added *= torch.from_numpy(rng.uniform(*noise, (len(crops), 1, 1)).astype(np.float32))
        return {"sound": torch.stack(crops), "on_grid": torch.tensor(on_grid), "noise": added}

    def losses(batch: Batch) -> dict[str, Tensor]:
        sound = batch["sound"]
        latent = codec.encoder.encode_alike(sound)
        decoded = codec.decoder(latent + batch["noise"])
        # Over channels, with the batch and time as samples.
        mean, deviation = latent.mean(dim=(0, 2)), latent.std(dim=(0, 2))
        return {
            "spectra": spectral_distance(decoded, sound),
            "wave": WAVE_WEIGHT * wave_distance(decoded, sound, batch["on_grid"]),
            "latent": 0.1 * (mean.square().mean() + (deviation + 1e-3).log().square().mean()),
        }

    return Objective(batch, losses)


def spectral_distance(decoded: Tensor, sound: Tensor) -> Tensor:
    """Distance of the magnitudes of two ``[B, L]`` in the mean over several resolutions, as four views of it.

    Roots and logarithms see what is faint, and each clip's error in units of its own energy sees its tones. Logarithms
    weighted by what should be there raise a tone that is missing: the decoder's magnitudes are exponentials, and where
    one is small every other view is flat.
    """
    total = sound.new_zeros(())
    for size in SPECTRA:
        a, b = (magnitudes(wave, size) for wave in (decoded, sound))
        energy = (a - b).square().sum((1, 2)) / (b.square().sum((1, 2)) + 0.01)
        logs = ((a + 1e-3).log() - (b + 1e-3).log()).abs()
        there = b.sqrt() / (b.sqrt().mean((1, 2), keepdim=True) + 0.01)
        total = total + 4 * F.l1_loss(a.sqrt(), b.sqrt()) + 0.25 * logs.mean()
        total = total + TONES * ((energy + 1e-4).sqrt().mean() + 0.5 * (there * logs).mean())
    return total / len(SPECTRA)


def magnitudes(wave: Tensor, size: int) -> Tensor:
    """Of the frames of ``[B, L]`` under a Hann window, half a window apart; ``[B, T, F]``, noise of deviation 1 is about 1."""
    frames = wave.unfold(-1, size, size // 2) * torch.hann_window(size, device=wave.device)
    spectrum = torch.view_as_real(torch.fft.rfft(frames)) / math.sqrt(size)
    return (spectrum.square().sum(-1) + 1e-10).sqrt()


def random_tones(rng: np.random.Generator, n: int) -> np.ndarray:
    """One to four tones of the world's grid that come and go: the scenes have too few high ones to learn them all."""
    wave = np.zeros(n)
    for _ in range(rng.integers(1, 5)):
        start, stop = np.sort(rng.integers(0, n, 2))
        pitch = sounds.on_grid(math.exp(rng.uniform(math.log(100), math.log(6000))))
        envelope = sounds.gate(n, start, stop) if rng.random() < 0.5 else sounds.decay(n, rng.uniform(0.2, 3.0))
        wave += 10 ** (rng.uniform(-40, 0) / 20) * sounds.tone(n, {pitch: 1.0}) * envelope
    level = 10 ** (rng.uniform(-35, -11) / 20)
    return (wave * (level / (np.abs(wave).max() + 1e-6))).astype(np.float32)


def is_on_grid(scene: WorldScene) -> bool:
    """Whether every layer has a phase that its spectrum tells: tones on the grid and hardly any noise."""
    kinds = [part.kind for part in (scene.effect, scene.music) if part]
    return not scene.ambience and scene.quality != "static" and all(kind in ON_GRID for kind in kinds)


def wave_distance(decoded: Tensor, sound: Tensor, chosen: Tensor) -> Tensor:
    """Mean distance of the chosen (``[B]`` bool) waveforms of ``[B, L]``, each in units of its own level."""
    level = sound.square().mean(-1, keepdim=True).sqrt() + 0.01
    return mean_of(((decoded - sound).abs() / level).mean(-1), chosen)


def mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """0 where nothing is chosen."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def load_text_tokenizer(path: Path, seed: int) -> Tokenizer:
    if not path.exists():
        rng = np.random.default_rng([seed, 4])
        train_tokenizer([training_prompt(sample_scene(rng), rng) for _ in range(20000)]).save(str(path))
    return Tokenizer.from_file(str(path))


@torch.inference_mode()
def encode_clips(path: Path, encoder: Encoder, clips: Clips) -> np.ndarray:
    """Latents of all clips one after another, ``[frames, C]`` float16, memory-mapped."""

    def latent(i: int) -> np.ndarray:
        return encoder(clips.sound(i)[None])[0].T.half().numpy()

    return in_parts(path, clips.ends // SAMPLES_PER_FRAME, (LATENT,), np.float16, latent, "encoding")


def generator_objective(
    generator: Generator,
    clips: Clips,
    latents: np.ndarray,
    tokenizer: Tokenizer,
    seed: int,
    draw: Callable[[int, np.random.Generator], np.ndarray],
) -> Objective:
    """Flow matching: the velocity noise - data at a point between them; the length the text tells; the words.

    Which word stands where decides so little of the velocity that flow matching alone does not learn it in time. So
    the backbone's middle is asked for it too.
    """
    ends = clips.ends // SAMPLES_PER_FRAME
    seen: dict[str, Tensor] = {}
    generator.backbone.mid_block.register_forward_hook(lambda module, inputs, output: seen.update(middle=output))

    def batch(step: int) -> Batch:
        rng = np.random.default_rng([seed, 5, step])
        chosen = draw(step, rng)
        scenes, length = [clips.scenes[i] for i in chosen], clips.frames(chosen[0])
        data = [np.asarray(latents[ends[i] - length : ends[i]], np.float32).T for i in chosen]
        ids, mask = tokenize(tokenizer, [training_prompt(scene, rng) for scene in scenes])
        kept = torch.from_numpy(rng.random(len(chosen)) >= CONDITION_DROPOUT)
        # The sway schedule's own density: most of what the text decides is decided near the noise.
        sigma = torch.cos(math.pi / 2 * torch.from_numpy(rng.random(len(chosen)).astype(np.float32)))
        return {
            "data": torch.from_numpy(np.stack(data)),
            "noise": normal(rng, (len(chosen), LATENT, length)),
            "sigma": sigma,
            "kept": kept,
            "ids": ids,
            "mask": mask,
            "places": word_places(ids, tokenizer),
            "spoken": torch.from_numpy(np.stack([word_labels(scene, length) for scene in scenes])),
            "seconds": torch.tensor([scene.seconds for scene in scenes], dtype=torch.float32),
        }

    def losses(batch: Batch) -> dict[str, Tensor]:
        data, noise, mask = batch["data"], batch["noise"], batch["mask"]
        _, features = generator.text_encoder(batch["ids"], mask)
        content, duration = generator.adapter(features, mask)
        kept, sigma = batch["kept"][:, None, None], batch["sigma"][:, None, None]
        time_aligned = generator.backbone.dummy_ta_embed.expand(len(data), 1, -1) * kept
        mixed = (1 - sigma) * data + sigma * noise
        velocity = generator.backbone(mixed, batch["sigma"] * 1000, content * kept, time_aligned, mask)
        length = (batch["seconds"] + generator.adapter.config.duration_offset).log()
        return {
            "velocity": F.mse_loss(velocity, noise - data),
            "order": ORDER * order_loss(generator.order_head(content), batch["places"]),
            "words": WORDS * word_loss(generator.word_head(seen.pop("middle")), batch["spoken"], batch["kept"]),
            "length": 0.1 * F.smooth_l1_loss(duration, length, beta=0.05),
        }

    return Objective(batch, losses)


def batches(clips: Clips, steps: int, most_frames: int) -> Callable[[int, np.random.Generator], np.ndarray]:
    """What draws the clips of a step, all of one length, so that none is padded: some batches of speech alone, clips with
    many words later.
    """
    frames = np.array([clips.frames(i) for i in range(len(clips))])
    words = np.array([len(scene.speech.words) if scene.speech else 0 for scene in clips.scenes])
    alone = (words > 0) & np.array([set(layers_of(scene)) <= {"speech", "quality"} for scene in clips.scenes])

    def by_length(chosen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        groups = [np.flatnonzero(chosen & (frames == length)) for length in np.unique(frames[chosen])]
        shares = np.array([frames[group].sum() for group in groups], dtype=float)
        return groups, shares / shares.sum()

    most = range(1, MOST_WORDS + 1)
    everything = {count: by_length(words <= count) for count in most}
    speech = {count: by_length(alone & (words <= count)) for count in most if (alone & (words <= count)).any()}

    def draw(step: int, rng: np.random.Generator) -> np.ndarray:
        count = max(count for count in most if step >= WORDS_AFTER[count] * steps)
        pool = speech if rng.random() < SPEECH_SHARE and count in speech else everything
        groups, shares = pool[count]
        group = groups[rng.choice(len(groups), p=shares)]
        return rng.choice(group, size=max(2, most_frames // int(frames[group[0]])))

    return draw


def word_loss(logits: Tensor, spoken: Tensor, kept: Tensor) -> Tensor:
    """Cross-entropy of ``[B, T, labels]`` over the clips with words whose condition was ``kept`` (``[B]`` bool)."""
    each = F.cross_entropy(logits.transpose(1, 2), spoken, reduction="none")
    return mean_of(each.mean(-1), kept & spoken.any(-1))


def word_places(ids: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Which word of its transcript each token is, ``[B, S]``: 0 for the first; -1 for a token that is none."""
    digits = torch.tensor([tokenizer.token_to_id(f"\u2581{digit}") for digit in DIGITS])
    spoken = torch.isin(ids, digits) & ((ids == tokenizer.token_to_id("<|asr|>")).cumsum(1) > 0)
    places = spoken.cumsum(1) - 1
    return torch.where(spoken & (places < MOST_WORDS), places, -1)


def order_loss(logits: Tensor, places: Tensor) -> Tensor:
    """Cross-entropy of ``[B, S, places]`` over the words of transcripts with several."""
    each = F.cross_entropy(logits.transpose(1, 2), places.clamp(min=0), reduction="none")
    return mean_of(each, (places >= 0) & (places.amax(1, keepdim=True) > 0))


def normal(rng: np.random.Generator, shape) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def tokenize(tokenizer: Tokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """``[B, S]`` ids and bool mask."""
    rows = [torch.tensor(encoding.ids) for encoding in tokenizer.encode_batch(prompts)]
    ids = pad_sequence(rows, batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


if __name__ == "__main__":
    main()
