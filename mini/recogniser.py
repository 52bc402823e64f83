"""A small recogniser of the mini model's spoken words, trained on synthetic speech only.

Log-mel frames, a few convolutions, and one class a word with CTC, so that it learns from (waveform, words) pairs
without being told when each word is said. The pairs come from the caller: this file does not
know who speaks.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.nn.utils.rnn import pad_sequence

from dasheng_core.duration import SAMPLE_RATE
from mini.vocabulary import LICENSE

FFT, WINDOW, HOP, MELS = 512, 400, 160, 40
# CTC's class for "no word here".
BLANK = 0


class Recogniser(nn.Module):
    """Log-mel ``[B, MELS, T]`` -> log-probabilities ``[B, ceil(T / 4), 1 + words]``, 25 frames per second."""

    def __init__(self, words: Iterable[str], width: int = 64):
        super().__init__()
        self.words, self.width = tuple(words), width
        channels, layers = MELS, []
        # Two strides of 2, then a view of 0.7 s: a spoken word.
        for stride in (2, 2, 1, 1, 1):
            layers += [nn.Conv1d(channels, width, 5, stride, 2), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1)]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv1d(width, 1 + len(self.words), 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features).transpose(1, 2).log_softmax(-1)

    @torch.inference_mode()
    def recognise(self, waveform: np.ndarray) -> tuple[str, ...]:
        """The words heard in a waveform ``[samples]``, in their order."""
        if len(waveform) < FFT:
            return ()
        best = self(log_mel(waveform)[None])[0].argmax(-1)
        return tuple(self.words[i - 1] for i in torch.unique_consecutive(best).tolist() if i != BLANK)


def log_mel(waveform: np.ndarray) -> Tensor:
    """``[samples]`` -> ``[MELS, T]``, 100 frames per second, in deviations from the clip's own mean."""
    samples = torch.as_tensor(np.array(waveform, np.float32))
    window = torch.hann_window(WINDOW)
    power = torch.stft(samples, FFT, HOP, WINDOW, window, pad_mode="constant", return_complex=True).abs() ** 2
    mel = mel_filters() @ power
    # 60 dB below the loudest counts as silence, whatever the level.
    log = (mel + 1e-6 * mel.max() + 1e-10).log()
    return (log - log.mean()) / log.std().clamp(min=1e-3)


def mel_filters() -> Tensor:
    """Triangles evenly spaced in mel from 60 Hz to 7.6 kHz, ``[MELS, FFT // 2 + 1]``."""
    mel = torch.linspace(*(2595 * np.log10(1 + hz / 700) for hz in (60, 7600)), MELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hz = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return torch.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clamp(min=0)


def shortened(frames: int) -> int:
    """Frames after two convolutions of stride 2."""
    return (frames + 3) // 4


def train_recogniser(
    pairs: Iterable[tuple[np.ndarray, tuple[str, ...]]],
    epochs: int = 15,
    seed: int = 0,
) -> Recogniser:
    """Learn from (waveform, words) pairs. The random state of the process is left alone."""
    examples = [(log_mel(waveform), tuple(words)) for waveform, words in pairs]
    vocabulary = sorted({word for _, words in examples for word in words})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recogniser(vocabulary)
        steps = epochs * -(-len(examples) // 16)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.randperm(len(examples)).split(16):
                loss = batch_loss(model, [examples[i] for i in chosen])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
    return model.eval()


def batch_loss(model: Recogniser, examples: list[tuple[Tensor, tuple[str, ...]]]) -> Tensor:
    features = pad_sequence([mel.T for mel, _ in examples], batch_first=True).transpose(1, 2)
    lengths = torch.tensor([shortened(mel.shape[-1]) for mel, _ in examples])
    # Levels are not words: a random gain for each band hides the loudspeaker and not the speech.
    tilt = 0.2 * torch.randn(len(examples), MELS, 1)
    targets = torch.tensor([1 + model.words.index(word) for _, words in examples for word in words])
    counts = torch.tensor([len(words) for _, words in examples])
    scores = model(features + tilt).transpose(0, 1)
    return ctc_loss(scores, targets, lengths, counts, blank=BLANK, zero_infinity=True)


def save(model: Recogniser, path: Path) -> None:
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    save_file(tensors, path, {"words": json.dumps(model.words), "width": str(model.width), "license": LICENSE})


def load(path: Path) -> Recogniser:
    with safe_open(path, "pt") as file:
        told = file.metadata()
        model = Recogniser(json.loads(told["words"]), int(told["width"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return model.eval()
