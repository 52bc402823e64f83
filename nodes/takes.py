"""A batch of AUDIO as takes: each on its own, with a player."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.delivery.audio_file import write_audio
from ..dasheng_core.delivery.measures import loudness
from ..dasheng_core.tensors import check_finite
from .common import CATEGORY
from .inputs import as_audio
from .lists import calls
from .versions import schema

# Of a batch; each player is a file among ComfyUI's temporary ones.
MOST_PLAYERS = 64
TAKES = "Any sound: a batch of takes, a list of them, or one clip."


@dataclass(frozen=True)
class Take:
    """One clip ``[C, L]`` float32 on the CPU; the seed it was made with, where that is known, and how many seconds of its
    beginning were cut off."""

    waveform: Tensor
    sample_rate: int
    seed: int | None = None
    cut: float = 0.0

    def audio(self) -> dict:
        """ComfyUI's AUDIO."""
        kept = {"seeds": [self.seed], "cut": [self.cut]}
        return {"waveform": self.waveform[None], "sample_rate": self.sample_rate, **kept}

    def sounding(self, waveform: Tensor, sample_rate: int | None = None, cut: float = 0.0) -> "Take":
        rate = sample_rate or self.sample_rate
        check_finite(waveform, "The changed sound", "it is far beyond full scale; turn it down first")
        return replace(self, waveform=waveform, sample_rate=rate, cut=self.cut + cut)


def list_takes(audios: Sequence[dict]) -> list[Take]:
    """The clips of each AUDIO, in order, at least one."""
    takes = []
    for (audio,) in calls(audio=audios):
        waveform, rate = as_audio(audio, least=1)
        known = [audio.get(key) or [] for key in ("seeds", "cut")]
        # A node that changed the number of clips has not told which are left.
        known = [notes if len(notes) == len(waveform) else [None] * len(waveform) for notes in known]
        takes += [
            Take(clip, rate, seed if isinstance(seed, int) else None, cut or 0.0)
            for clip, seed, cut in zip(waveform.cpu(), *known, strict=True)
        ]
    return takes


class DashengTakes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengTakes",
            display_name="Dasheng Takes",
            category=CATEGORY,
            search_aliases=["split batch", "audio list", "seeds"],
            description="A player, seed, length and loudness for each take. What follows runs once for each take of a batch.",
            inputs=[io.Audio.Input("audio", tooltip=TAKES)],
            outputs=[
                io.Audio.Output(display_name="takes", is_output_list=True, tooltip="A list, one clip each."),
                io.Int.Output(
                    display_name="seed",
                    is_output_list=True,
                    tooltip="The seed of each take: the same alone in Dasheng Sampler. -1 where it is not known.",
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio) -> io.NodeOutput:
        takes = list_takes(audio)
        rows = take_rows(takes, 1)
        return io.NodeOutput([take.audio() for take in takes], [seed_number(take) for take in takes], ui=rows)


def take_rows(takes: Sequence[Take], first: int) -> dict[str, list[str]]:
    """The UI output from which the app draws a table with a player for each take, numbered from ``first`` on."""
    rows = []
    for number, take in enumerate(takes, start=first):
        length = f"{take.waveform.shape[-1] / take.sample_rate:.2f} s"
        seed = "not known" if take.seed is None else str(take.seed)
        row = {"number": number, "seed": seed, "length": length, "loudness": _shown_loudness(take)}
        rows.append(row if len(rows) >= MOST_PLAYERS else {**row, "file": _player_file(take)})
    # As text: what is no file is not one of a run's results.
    return {"dasheng_takes": [json.dumps(rows)]}


def _shown_loudness(take: Take) -> str:
    try:
        return f"{loudness(take.waveform, take.sample_rate):.1f} LUFS"
    except (ValueError, ImportError):
        return "-"


def _player_file(take: Take) -> dict[str, str] | None:
    """A temporary file of a take, as ComfyUI serves it; None for what no file holds."""
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(
        "dasheng_take", folder_paths.get_temp_directory()
    )
    path = Path(folder, f"{stem}_{counter:05}_.wav")
    try:
        # Floats: a sound beyond full scale is none of this node's business.
        write_audio(path, take.waveform, take.sample_rate, "wav32")
    except (ValueError, OSError):
        return None
    return {"filename": path.name, "subfolder": subfolder, "type": "temp"}


def seed_number(take: Take) -> int:
    return -1 if take.seed is None else take.seed
