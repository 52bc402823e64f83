"""What nodes of other packs hand over, right and wrong, by name."""

import math

import comfy.model_patcher
import numpy as np
import torch

# One second in steps of 1/128, which every dtype of sound holds exactly.
STEPS = torch.randint(-30, 30, (1, 1, 16000), generator=torch.Generator().manual_seed(0))
SOUND = STEPS / 128
LATENT = torch.randn(1, 24, 5, generator=torch.Generator().manual_seed(1))
CONTEXT = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(2))
NAN, INF = math.nan, math.inf


def audio(waveform, sample_rate=16000):
    return {"waveform": waveform, "sample_rate": sample_rate}


def broken(tensor, value=NAN):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


def latent(samples, **more):
    return {"samples": samples, **more}


def conditioning(context):
    return [[context, {"pooled_output": None}]]


# The same sound in other clothes: the latent of each is that of audio(SOUND).
SAME_SOUND = {
    "as it is": lambda: audio(SOUND),
    "numpy": lambda: audio(SOUND.numpy()),
    "numpy, big endian": lambda: audio(SOUND.numpy().astype(">f4")),
    "list": lambda: audio(SOUND.tolist()),
    "float64": lambda: audio(SOUND.double()),
    "int16": lambda: audio((STEPS * 2**8).to(torch.int16)),
    "eight channels": lambda: audio(SOUND.expand(1, 8, -1)),
    "rate 16000.0": lambda: audio(SOUND, 16000.0),
    "rate of torch": lambda: audio(SOUND, torch.tensor(16000)),
}
WRONG_AUDIO = {
    "None": lambda: None,
    "a tensor": lambda: SOUND,
    "no waveform": lambda: {"sample_rate": 16000},
    "waveform None": lambda: audio(None),
    "waveform a text": lambda: audio("sound.wav"),
    "waveform bool": lambda: audio(SOUND > 0),
    "waveform int64": lambda: audio(STEPS),
    "waveform complex": lambda: audio(SOUND.to(torch.complex64)),
    "waveform sparse": lambda: audio(SOUND.to_sparse()),
    "waveform NaN": lambda: audio(broken(SOUND)),
    "waveform inf, stereo": lambda: audio(broken(SOUND, INF).expand(1, 2, -1)),
    "waveform float64 beyond float32": lambda: audio(broken(SOUND.double(), 1e300)),
    "waveform of four dimensions": lambda: audio(SOUND[None]),
    "no clips": lambda: audio(SOUND[:0]),
    "no samples": lambda: audio(SOUND[..., :0]),
    "too short": lambda: audio(SOUND[..., :400]),
    "too short at its rate": lambda: audio(SOUND[..., :4000], 400_000),
    "twelve hours": lambda: audio(torch.zeros(1, 1, 44100), 1),
    "rate 0": lambda: audio(SOUND, 0),
    "rate None": lambda: audio(SOUND, None),
    "rate text": lambda: audio(SOUND, "44100"),
    "rate 44100.5": lambda: audio(SOUND, 44100.5),
    "rate True": lambda: audio(SOUND, True),
    "rates": lambda: audio(SOUND, [16000, 44100]),
}
SAME_LATENT = {
    "latent as it is": lambda: latent(LATENT),
    "latent numpy": lambda: latent(LATENT.numpy()),
    "latent float64": lambda: latent(LATENT.double()),
    "latent list": lambda: latent(LATENT.tolist()),
    "latent gradient": lambda: latent(LATENT.clone().requires_grad_()),
}
WRONG_LATENT = {
    "latent None": lambda: None,
    "latent a tensor": lambda: LATENT,
    "latent {}": lambda: {},
    "latent of None": lambda: latent(None),
    "latent NaN": lambda: latent(broken(LATENT)),
    "latent of no takes": lambda: latent(LATENT[:0]),
    "latent of no frames": lambda: latent(LATENT[..., :0]),
    "latent of two dimensions": lambda: latent(LATENT[0]),
    "latent of other channels": lambda: latent(LATENT[:, :16]),
    "latent of a picture": lambda: latent(LATENT[:, :16].reshape(1, 4, 4, 5)),
}
# Only a sampler looks at these.
WRONG_BATCH = {
    "batch_index too short": lambda: latent(LATENT, batch_index=[]),
    "batch_index negative": lambda: latent(LATENT, batch_index=[-1]),
    "batch_index a text": lambda: latent(LATENT, batch_index=["a"]),
    "mask of a picture": lambda: latent(LATENT, noise_mask=torch.ones(1, 4, 4, 5)),
    "mask NaN": lambda: latent(LATENT, noise_mask=torch.full((1, 1, 5), NAN)),
    "mask of nothing": lambda: latent(LATENT, noise_mask=torch.ones(1, 1, 0)),
    "mask a text": lambda: latent(LATENT, noise_mask="all"),
}
WRONG_CONDITIONING = {
    "conditioning None": lambda: None,
    "conditioning []": lambda: [],
    "conditioning a tensor": lambda: CONTEXT,
    "conditioning of a tensor": lambda: [CONTEXT],
    "conditioning of a lone tensor": lambda: [[CONTEXT]],
    "conditioning of None": lambda: conditioning(None),
    "conditioning of another model": lambda: conditioning(torch.randn(1, 77, 768)),
    "conditioning of two dimensions": lambda: conditioning(CONTEXT[0]),
    "conditioning of no tokens": lambda: conditioning(CONTEXT[:, :0]),
    "conditioning NaN": lambda: conditioning(broken(CONTEXT)),
    "conditioning inf, second": lambda: conditioning(CONTEXT) + conditioning(broken(CONTEXT, INF)),
}


def takes():
    """Four takes of 2 s: a tone between silences, one with clipped samples, silence, and a click."""
    clips = torch.zeros(4, 1, 32000, dtype=torch.float32)
    tone = torch.sin(torch.arange(16000, dtype=torch.float32) * (2 * math.pi / 16))
    clips[0, 0, 8000:24000] = 0.1 * tone
    clips[1, 0, 4000:20000] = 1.25 * tone
    clips[3, 0, 16000:16020] = 0.5
    return audio(clips)


def takes_off():
    """The same, and the first has a DC offset."""
    sound = takes()
    sound["waveform"][0] += 0.05
    return sound


def ring():
    """A loop of 0.4 s: its last sample lies beside its first."""
    turn = torch.arange(6400, dtype=torch.float32) * (2 * math.pi / 6400)
    return audio((0.5 * torch.cos(20 * turn) + 0.3 * torch.cos(1001 * turn))[None, None])


OTHERS = {
    "ring": ring,
    "takes": takes,
    "takes, one off": takes_off,
    "a thousand takes": lambda: audio(torch.zeros(1000, 1, 160)),
    "pair": lambda: audio(torch.zeros(2, 1, 16000)),
    "takes with one seed": lambda: {**takes(), "seeds": [5]},
    "takes cut": lambda: {**takes(), "seeds": [7, 8, 9, 10], "cut": [0.25, 0.5, 0.0, 1.0]},
    "silence": lambda: audio(torch.zeros(1, 1, 16000)),
    "stuck at 0.5": lambda: audio(torch.full((1, 1, 16000), 0.5)),
    "stuck at -1": lambda: audio(torch.full((1, 1, 16000), -1.0)),
    "off by 0.3": lambda: audio(0.1 * torch.sin(torch.arange(16000) * 0.1)[None, None] + 0.3),
    "six channels": lambda: audio(0.1 * torch.sin(torch.arange(16000) * 0.1).expand(1, 6, -1)),
    "at 2 kHz": lambda: audio(0.1 * torch.sin(torch.arange(2000) * 0.5)[None, None], 2000),
    "loud": lambda: audio(torch.full((1, 1, 16000), 0.9)),
    "stereo at 48 kHz": lambda: audio(torch.stack([0.5 * torch.ones(48000), torch.zeros(48000)])[None], 48000),
    "conditioning": lambda: conditioning(CONTEXT),
    "too loud": lambda: conditioning(1e6 * CONTEXT),
    "other model": lambda: comfy.model_patcher.ModelPatcher(
        torch.nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu")
    ),
    "object": lambda: object(),
}
PLAIN = (None, True, "5", [], 0, -1, -5, 1.5, 2.5, 25.5, 1e-9, 1e30, 10**9, 2**64, NAN, INF, -3.0, 3600.0)
NUMBERS = {repr(value): lambda value=value: value for value in PLAIN} | {
    "float 4": lambda: 4.0,
    "numpy 4": lambda: np.int32(4),
    "torch 4": lambda: torch.tensor(4),
    "array 4": lambda: np.array([4]),
    "int 4": lambda: 4,
}
KINDS = (SAME_SOUND, WRONG_AUDIO, SAME_LATENT, WRONG_LATENT, WRONG_BATCH, WRONG_CONDITIONING, OTHERS, NUMBERS)
VALUES = {name: value for kind in KINDS for name, value in kind.items()}
