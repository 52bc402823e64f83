"""The mini model's training: it can be stopped anywhere, and what it writes is an ordinary checkpoint."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from conftest import load_model
from mini import learning
from mini import train as training
from mini.model import export, new_audio_tokenizer, new_generator
from mini.vocabulary import Speech, WorldScene
from mini.world import WORD_LABELS, sample_scene

STEPS = 4
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A few clips of kinds that need no speech synthesiser."""
    kinds = itertools.cycle(("beep", "knock", "drone", "rain"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "sample_scene", lambda rng: dataclasses.replace(sample_scene(rng, next(kinds)), speech=None)
        )
        return training.Clips(tmp_path_factory.mktemp("clips"), count=24, seed=0)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(training, "CROPS_PER_BATCH", 2)
    monkeypatch.setattr(learning, "SAVE_EVERY", 0.0)


def weights(modules) -> torch.Tensor:
    return torch.cat([tensor.flatten().float() for tensor in modules.state_dict().values()])


def train_codec(folder, clips, stop_before: int = STEPS) -> torch.Tensor:
    """Train from what is saved, until all steps are done or a Ctrl-C comes before one of them."""
    torch.manual_seed(0)
    codec = new_audio_tokenizer()
    objective = training.codec_objective(codec, clips, seed=0, noise=training.CODEC_NOISE)

    def interrupted(step):
        if step == stop_before:
            raise KeyboardInterrupt
        return objective.batch(step)

    stopped = objective._replace(batch=interrupted)
    training.train(folder / "codec.pt", codec.modules(), stopped, STEPS, training.CODEC_RATE, CPU)
    return weights(codec.modules())


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(clips, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = train_codec(whole, clips)
    with pytest.raises(KeyboardInterrupt):
        train_codec(parts, clips, stop_before=2)
    assert torch.equal(train_codec(parts, clips), expected)


def test_what_it_writes_is_an_ordinary_checkpoint_of_at_most_12_mb(clips, tmp_path):
    torch.manual_seed(0)
    codec, generator = new_audio_tokenizer(), new_generator()
    text_tokenizer = training.load_text_tokenizer(tmp_path / "tokenizer.json", seed=0)
    latents = training.encode_clips(tmp_path / "latents.npy", codec.encoder, clips)
    draw = training.batches(clips, steps=2, most_frames=80)
    objective = training.generator_objective(generator, clips, latents, text_tokenizer, 0, draw)
    before, modules = weights(generator.modules()), generator.modules()
    training.train(tmp_path / "generator.pt", modules, objective, 2, training.GENERATOR_RATE, CPU)
    assert not torch.equal(weights(generator.modules()), before)

    export(tmp_path / "mini", codec, generator, text_tokenizer)
    assert sum(file.stat().st_size for file in (tmp_path / "mini").rglob("*.*")) <= 12e6
    model = load_model(tmp_path / "mini")
    # Stored as float16, run as float32.
    assert (weights(model.backbone) - weights(generator.backbone)).abs().max() < 1e-2
    sound = model.generate("<|caption|> A low beep.", num_steps=2, seed=0)
    assert sound.isfinite().all() and sound.shape[1] % 640 == 0
    assert model.encode(sound).shape == (1, 48, sound.shape[1] // 640)


def test_a_new_text_encoder_tells_the_order_of_words():
    """One digit first and the other second, or the other way round: the same digit's features differ."""
    torch.manual_seed(0)
    text_encoder = new_generator().text_encoder.eval()
    ids = torch.tensor([[10, 11, 12, 20, 21, 1], [10, 11, 12, 21, 20, 1]])
    with torch.inference_mode():
        _, features = text_encoder(ids, torch.ones_like(ids))
    first, second = features[0, 3], features[1, 4]
    assert (first - second).norm() > 0.1 * first.norm()


def test_words_of_a_transcript_are_counted(tmp_path):
    tokenizer = training.load_text_tokenizer(tmp_path / "tokenizer.json", seed=0)
    prompts = ["<|caption|> Two seconds. <|asr|> Seven, two. <|env|> Rain.", "<|caption|> One take. <|asr|> nine"]
    ids, _ = training.tokenize(tokenizer, prompts)
    places = training.word_places(ids, tokenizer)
    heard = [
        [(tokenizer.id_to_token(int(i)), int(p)) for i, p in zip(*row, strict=True) if p >= 0]
        for row in zip(ids, places, strict=True)
    ]
    assert heard == [[("\u2581seven", 0), ("\u2581two", 1)], [("\u2581nine", 0)]]
    right = 20 * torch.nn.functional.one_hot(places.clamp(min=0), 3).float()
    # A transcript of one word has no order.
    assert training.order_loss(right, places) < 1e-3 and training.order_loss(right[1:], places[1:]) == 0


def test_a_stopped_rendering_goes_on_where_it_was(tmp_path):
    made = []

    def part(i: int) -> np.ndarray:
        if made == [0, 1, 2]:
            made.append("stopped")
            raise KeyboardInterrupt
        made.append(i)
        return np.full(2, i + 1)

    arguments = (tmp_path / "parts.npy", np.array([2, 4, 6, 8, 10]), (), np.int16, part, "making")
    with pytest.raises(KeyboardInterrupt):
        training.in_parts(*arguments)
    whole = training.in_parts(*arguments)
    assert whole.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    # The last one that was there is made again: the stop may have come in its middle.
    assert made == [0, 1, 2, "stopped", 2, 3, 4]


def test_clips_are_cut_where_they_were_joined(clips):
    """Clip i is its own sound, whole or in part, and not its neighbour's."""
    for i in (0, 1, len(clips) - 1):
        scene = clips.scenes[i]
        sound = training.render(scene, np.random.default_rng([0, 2, i]))
        assert len(sound) == 640 * clips.frames(i)
        assert (clips.sound(i).numpy() - sound).max() < 1e-4
        assert torch.equal(clips.sound(i, 5, 3), clips.sound(i)[5 * 640 : 8 * 640])


class OneLength(list):
    """Clips of 40 frames each."""

    @property
    def scenes(self) -> list[WorldScene]:
        return self

    def frames(self, i: int) -> int:
        return 40


def test_clips_with_more_words_come_later_and_speech_often():
    one, two = (WorldScene(1.6, speech=Speech("low", ("one", "two")[:count])) for count in (1, 2))
    scenes = [WorldScene(1.6, ambience="rain"), one, two, dataclasses.replace(two, ambience="rain")]
    draw = training.batches(OneLength(scenes), steps=100, most_frames=1600)
    rng = np.random.default_rng(0)
    early, late = ([draw(step, rng) for _ in range(400)] for step in (0, 99))
    assert {int(i) for chosen in early for i in chosen} == {0, 1}
    assert {int(i) for chosen in late for i in chosen} == {0, 1, 2, 3}
    for drawn, all_speech in ((early, {1}), (late, {1, 2})):
        assert abs(np.mean([set(map(int, chosen)) <= all_speech for chosen in drawn]) - training.SPEECH_SHARE) < 0.1


def test_the_word_head_is_asked_about_clips_with_words_and_a_condition():
    spoken = torch.zeros(3, 5, dtype=torch.long)
    spoken[0, 1:3], spoken[1, 1:3] = 7, 7
    logits = torch.zeros(3, 5, WORD_LABELS)
    kept = torch.tensor([True, False, True])
    assert training.word_loss(logits, spoken, kept).item() == pytest.approx(math.log(WORD_LABELS), abs=1e-5)
    right = 20 * torch.nn.functional.one_hot(spoken, WORD_LABELS).float()
    right[1:] = 0
    assert training.word_loss(right, spoken, kept) < 1e-3 < training.word_loss(right, spoken, ~kept | kept)
    assert training.word_loss(logits, spoken, torch.zeros(3, dtype=torch.bool)) == 0


@pytest.mark.full
def test_one_command_trains_all_parts_and_goes_on_after_a_stop(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Clips", lambda *_: clips)

    def command(steps: str, *more: str) -> None:
        kinds = [option for kind in ("codec-steps", "decoder-steps", "steps") for option in (f"--{kind}", steps)]
        monkeypatch.setattr("sys.argv", ["train", str(tmp_path / "state"), *kinds, "--frames", "80", *more])
        training.main()

    command("1")
    command("2", "--export", str(tmp_path / "mini"))
    assert {torch.load(tmp_path / "state" / f"{part}.pt")["step"] for part in training.TRAINED_PARTS} == {2}
    assert load_model(tmp_path / "mini").generate("<|caption|> A low beep.", num_steps=1, seed=0).isfinite().all()
