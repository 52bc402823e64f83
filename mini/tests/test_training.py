"""The mini model's training: it can be stopped anywhere, and what it writes is an ordinary checkpoint."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import load_model
from mini import learning
from mini import train as training
from mini.model import export, new_audio_tokenizer, new_generator
from mini.vocabulary import Speech, WorldScene
from mini.world import WORD_LABELS, sample_scene

STEPS = 4
CPU = torch.device("cpu")
SMALL = training.BatchSize(80)


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
    training.train(folder / "codec.pt", codec.modules(), stopped, STEPS, math.inf, training.CODEC_RATE, CPU)
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
    objective = training.generator_objective(generator, clips, latents, text_tokenizer, 0, steps=2, size=SMALL)
    before, modules = weights(generator.modules()), generator.modules()
    assert training.train(tmp_path / "generator.pt", modules, objective, 2, math.inf, training.GENERATOR_RATE, CPU)
    assert not torch.equal(weights(generator.modules()), before)

    export(tmp_path / "mini", codec, generator, text_tokenizer)
    assert sum(file.stat().st_size for file in (tmp_path / "mini").rglob("*.*")) <= 12e6
    model = load_model(tmp_path / "mini")
    # Stored as float16, run as float32.
    assert (weights(model.backbone) - weights(generator.backbone)).abs().max() < 1e-2
    sound = model.generate("<|caption|> A low beep.", num_steps=2, seed=0)
    assert sound.isfinite().all() and sound.shape[1] % 640 == 0
    assert model.encode(sound).shape == (1, 48, sound.shape[1] // 640)


class NothingRead(TorchDispatchMode):
    """Fails where numbers of a tensor decide what is computed, or come from the host: a CUDA graph cannot hold that."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal"), name
        chosen = [index for index in args[1] if index is not None] if name in ("index", "index_put_") else []
        assert not any(index.dtype == torch.bool for index in chosen), name
        return function(*args, **(kwargs or {}))


@pytest.fixture
def new_generator_part(clips, tmp_path):
    """A function that makes the generator's modules, in weights of seed 0, and its objective."""

    def new():
        torch.manual_seed(0)
        codec, generator = new_audio_tokenizer(), new_generator()
        latents = training.encode_clips(tmp_path / "latents.npy", codec.encoder, clips)
        text_tokenizer = training.load_text_tokenizer(tmp_path / "tokenizer.json", seed=0)
        objective = training.generator_objective(generator, clips, latents, text_tokenizer, 0, steps=9, size=SMALL)
        return generator.modules(), objective

    return new


def test_only_shapes_decide_what_a_step_computes(new_generator_part, monkeypatch):
    modules, objective = new_generator_part()
    batch = objective.batch(0)
    # Where this says so, transformers 5 reads no masks.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with NothingRead():
        sum(objective.losses(batch).values()).backward()
    assert all(parameter.grad is not None for parameter in modules.parameters() if parameter.numel())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
def test_replayed_steps_are_the_steps(new_generator_part):
    """Batches of two lengths, each of them as it is, captured, and replayed twice."""
    losses, averages = [], []
    for around in (lambda update: update, learning.Replayed):
        modules, objective = new_generator_part()
        update = learning.Update(modules.cuda(), objective.losses, torch.device("cuda"))
        update.rate.fill_(1e-3)
        update.averaged.fill_(0.5)
        with torch.cuda.stream(torch.cuda.Stream()):
            run = around(update)
            losses.append(torch.stack([run(objective.batch(step % 2)).clone() for step in range(8)]))
        averages.append(weights(update.average))
    assert run.graphs and all(run.graphs.values())
    assert torch.allclose(*losses, rtol=1e-2, atol=1e-4)
    # Adam moves a weight whose gradient is all but zero by a whole rate, to either side.
    assert (averages[0] - averages[1]).norm() < 1e-2 * averages[0].norm()
    assert len(set(losses[1][:, 0].tolist())) == 8


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


def test_clips_with_more_words_come_later_and_speech_often():
    one, two = (WorldScene(1.6, speech=Speech("low", ("one", "two")[:count])) for count in (1, 2))
    scenes = [WorldScene(1.6, ambience="rain"), one, two, dataclasses.replace(two, ambience="rain")]
    draw = training.batches(scenes, np.full(len(scenes), 40), steps=100, most_frames=1600)
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


@pytest.mark.parametrize("part", ["decoder", "generator"])
def test_a_part_waits_for_the_codec(clips, tmp_path, monkeypatch, capsys, part):
    monkeypatch.setattr(training, "Clips", lambda *_: clips)
    monkeypatch.setattr("sys.argv", ["train", str(tmp_path), "--part", part])
    with pytest.raises(SystemExit):
        training.main()
    assert "finished codec" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.full
def test_one_command_trains_all_parts_and_goes_on_after_a_stop(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Clips", lambda *_: clips)
    steps = [option for kind in ("codec-steps", "decoder-steps", "steps") for option in (f"--{kind}", "2")]
    steps += ["--frames", "80"]
    command = ["train", str(tmp_path / "state"), *steps, "--export", str(tmp_path / "mini")]
    monkeypatch.setattr("sys.argv", [*command, "--minutes", "0"])
    training.main()
    assert not (tmp_path / "mini").exists()
    monkeypatch.setattr("sys.argv", command)
    training.main()
    assert {torch.load(tmp_path / "state" / f"{part}.pt")["step"] for part in training.TRAINED_PARTS} == {2}
    assert load_model(tmp_path / "mini").generate("<|caption|> A low beep.", num_steps=1, seed=0).isfinite().all()
