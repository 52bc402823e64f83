"""A batch of AUDIO as takes: each on its own, measured, and one of them picked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.delivery.measures import measure as measure_clip
from ..dasheng_core.inputs import as_choice, as_float, as_int, as_text
from ..dasheng_core.prompt import spoken_words
from ..dasheng_core.tensors import check_finite
from .common import CATEGORY, number_input
from .inputs import as_audio
from .lists import calls, only
from .node_text import show
from .take_table import HEADER, MEASURES, extreme_of, refusal, shown_value, table_row
from .versions import schema

PICKS = ("number", "highest", "lowest")
# Default, least, most, and what it does.
THRESHOLDS = {
    "min_peak": (
        -60.0,
        -120.0,
        0.0,
        "Refuses takes that stay below this, or move by less, in dBFS. -60: silence; -25: faint.",
    ),
    "min_crest": (
        0.0,
        0.0,
        60.0,
        "Refuses takes whose peak lies less than this above their average level, in dB. 0: none; 20 refuses drones and "
        "noise where a sound effect was asked for.",
    ),
    "max_silence": (1.0, 0.0, 1.0, "Refuses takes of which a larger share is silent (below -60 dBFS). 1: none."),
}
MAX_OFFSET = 0.1
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
            description="Gives each take of a batch on its own: what follows runs once for each. The node shows their seeds.",
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
        seeds = ["not known" if take.seed is None else take.seed for take in takes]
        show("\n".join(f"take {number}: seed {seed}" for number, seed in enumerate(seeds, start=1)))
        return io.NodeOutput([take.audio() for take in takes], [_seed(take) for take in takes])


class DashengPickTake(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengPickTake",
            display_name="Dasheng Pick Take",
            category=CATEGORY,
            search_aliases=["choose take", "best of", "measure", "lufs", "audio from batch"],
            description="Measures takes, refuses those beyond the thresholds, and gives one: by its number, or the highest or "
            "lowest of a measure.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.Combo.Input(
                    "pick",
                    options=list(PICKS),
                    default="number",
                    tooltip="number: the take of that number. highest, lowest: of the measure, among those not refused.",
                ),
                io.Int.Input("number", default=1, min=1, max=4096, tooltip="Which take, counted from 1."),
                io.Combo.Input(
                    "measure",
                    options=list(MEASURES),
                    default="loudness",
                    tooltip="What highest and lowest compare, and what the table is sorted by, highest first.",
                ),
                *(number_input(name, *bounds, 0.05, tooltip) for name, (*bounds, tooltip) in THRESHOLDS.items()),
                io.Int.Input(
                    "max_clipped",
                    default=-1,
                    min=-1,
                    max=2**31 - 1,
                    tooltip="Refuses takes with more samples than this at or beyond full scale. -1: none.",
                ),
                io.String.Input(
                    "transcript",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What is spoken, for words per second: the words, or the prompt of Dasheng Scene Prompt.",
                ),
                io.Float.Input(
                    "max_offset",
                    default=MAX_OFFSET,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    # Workflows saved before this input was there run with its default.
                    optional=True,
                    tooltip="Refuses takes whose average is farther from 0 than this share of full scale (DC offset). 1: none.",
                ),
            ],
            outputs=[
                io.Audio.Output(tooltip="The take picked."),
                io.String.Output(
                    display_name="table",
                    tooltip="The measures of each take, sorted, columns apart by tabs: for Preview as Text or a spreadsheet.",
                ),
                io.Int.Output(display_name="number", tooltip="The number of the take picked, counted from 1."),
                io.Int.Output(display_name="seed", tooltip="The seed of the take picked; -1 where it is not known."),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(
        cls, audio, pick, number, measure, min_peak, min_crest, max_silence, max_clipped, transcript=("",), max_offset=(MAX_OFFSET,)
    ) -> io.NodeOutput:  # fmt: skip
        pick, key = (
            as_choice(only(pick, "pick"), "pick", PICKS),
            as_choice(only(measure, "measure"), "measure", MEASURES),
        )
        levels = dict(min_peak=min_peak, min_crest=min_crest, max_silence=max_silence)
        counted = dict(max_clipped=max_clipped, max_offset=max_offset, transcript=transcript)
        takes, measured, refused = [], [], []
        for sound, *least, clipped, off, spoken in calls(audio=audio, **levels, **counted):
            least = [
                as_float(value, name, *THRESHOLDS[name][1:3], "it is a threshold")
                for name, value in zip(THRESHOLDS, least, strict=True)
            ]
            clipped = as_int(clipped, "max_clipped", -1, 2**31 - 1, "-1 refuses none")
            off, words = (
                as_float(off, "max_offset", 0, 1, "1 refuses none"),
                _count_words(as_text(spoken, "transcript")),
            )
            for take in list_takes([sound]):
                takes.append(take)
                measured.append(measure_clip(take.waveform, take.sample_rate, words))
                refused.append(refusal(measured[-1], *least, clipped, off))
        values = [getattr(found, MEASURES[key]) for found in measured]
        if pick == "number":
            picked = (
                as_int(only(number, "number"), "number", 1, len(takes), "it is the number of a take, counted from 1")
                - 1
            )
        else:
            picked = extreme_of(values, refused, max if pick == "highest" else min, key)
        if refused[picked]:
            said = "; ".join(f"take {number}: {reason}" for number, reason in enumerate(refused, start=1) if reason)
            raise ValueError(f"Refused by the thresholds ({said}): pick another take, make more, or move a threshold.")
        order = sorted(range(len(takes)), key=lambda i: (values[i] is not None, values[i] or 0.0), reverse=True)
        table = "\n".join([HEADER, *(table_row(i + 1, measured[i], takes[i].seed, refused[i]) for i in order)])
        show(f"take {picked + 1} of {len(takes)}: {key} {shown_value(values[picked])}")
        return io.NodeOutput(takes[picked].audio(), table, picked + 1, _seed(takes[picked]))


def _seed(take: Take) -> int:
    return -1 if take.seed is None else take.seed


def _count_words(transcript: str) -> float | None:
    if not transcript.strip():
        return None
    return spoken_words(transcript if "<|" in transcript else f"<|caption|> speech <|asr|> {transcript}")
