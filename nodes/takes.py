"""A batch of AUDIO as takes: each on its own, measured, and one of them picked."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from comfy_api.latest import io
from torch import Tensor

from ..dasheng_core.inputs import as_audio, as_choice, as_float, as_int, as_text
from ..dasheng_core.measures import Measures
from ..dasheng_core.measures import measure as measure_clip
from ..dasheng_core.prompt import spoken_words
from .loaders import CATEGORY
from .shown import plain_errors, show
from .versions import schema

# What people read in a combo -> the field of Measures.
MEASURES = {field.name.replace("_", " "): field.name for field in fields(Measures)}
PICKS = ("number", "highest", "lowest")
# Default, least, most, and what it does.
THRESHOLDS = {
    "min_peak": (-60.0, -120.0, 0.0, "Refuses takes that stay below this, in dBFS: -60: silence; -25: faint takes."),
    "min_crest": (
        0.0,
        0.0,
        60.0,
        "Refuses takes whose peak lies less than this above their average level, in dB. 0: none; 20 refuses drones and "
        "noise where a sound effect was asked for.",
    ),
    "max_silence": (1.0, 0.0, 1.0, "Refuses takes of which a larger share is silent (below -60 dBFS). 1: none."),
}
TAKES = "Any sound: a batch of takes, a list of them, or one clip."


def number_input(name: str, default: float, least: float, most: float, step: float, tooltip: str):
    return io.Float.Input(name, default=default, min=least, max=most, step=step, tooltip=tooltip)


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
        return replace(self, waveform=waveform, sample_rate=rate, cut=self.cut + cut)


def list_takes(audios: Iterable[dict]) -> list[Take]:
    """The clips of each AUDIO, in order."""
    takes = []
    for audio in audios:
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
    @plain_errors
    def execute(
        cls, audio, pick, number, measure, min_peak, min_crest, max_silence, max_clipped, transcript=("",)
    ) -> io.NodeOutput:
        pick, key = as_choice(pick[0], "pick", PICKS), as_choice(measure[0], "measure", MEASURES)
        takes, words = list_takes(audio), _count_words(as_text(transcript[0], "transcript"))
        measured = [measure_clip(take.waveform, take.sample_rate, words) for take in takes]
        thresholds = [
            as_float(value[0], name, *THRESHOLDS[name][1:3], "it is a threshold")
            for name, value in zip(THRESHOLDS, (min_peak, min_crest, max_silence), strict=True)
        ]
        most_clipped = as_int(max_clipped[0], "max_clipped", -1, 2**31 - 1, "-1 refuses none")
        refused = [_refusal(found, *thresholds, most_clipped) for found in measured]
        values = [getattr(found, MEASURES[key]) for found in measured]
        if pick == "number":
            picked = as_int(number[0], "number", 1, len(takes), "it is the number of a take, counted from 1") - 1
        else:
            picked = _extreme(values, refused, max if pick == "highest" else min, key)
        if refused[picked]:
            said = "; ".join(f"take {number}: {reason}" for number, reason in enumerate(refused, start=1) if reason)
            raise ValueError(f"Refused by the thresholds ({said}): pick another take, make more, or move a threshold.")
        order = sorted(range(len(takes)), key=lambda i: (values[i] is not None, values[i] or 0.0), reverse=True)
        table = "\n".join([HEADER, *(_row(i, takes[i], measured[i], refused[i]) for i in order)])
        show(f"take {picked + 1} of {len(takes)}: {key} {_shown(values[picked])}")
        return io.NodeOutput(takes[picked].audio(), table, picked + 1, _seed(takes[picked]))


# Under 8 letters each, so that tabs align them; seconds, share, dBFS, dBTP, samples, dB, LUFS.
HEADER = "\t".join(
    ["take", "seconds", "silence", "peak", "true pk", "clipped", "crest", "LUFS", "words/s", "seed", "refused"]
)


def _row(index: int, take: Take, found: Measures, refused: str) -> str:
    values = [_shown(getattr(found, name)) for name in MEASURES.values()]
    return "\t".join([str(index + 1), *values, _shown(take.seed), refused])


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _refusal(found: Measures, min_peak: float, min_crest: float, max_silence: float, max_clipped: int) -> str:
    """Which thresholds a take does not meet; empty where it meets all."""
    reasons = {
        f"peak {_shown(found.peak)} dBFS": found.peak < min_peak,
        f"crest {_shown(found.crest)} dB": found.crest < min_crest,
        f"silence {found.silence:.0%}": found.silence > max_silence,
        f"{found.clipped} clipped": 0 <= max_clipped < found.clipped,
    }
    return ", ".join(reason for reason, holds in reasons.items() if holds)


def _extreme(values: list[float | None], refused: list[str], extreme, name: str) -> int:
    """The take with the largest or smallest value among those not refused; any one where all are."""
    left = [i for i in range(len(values)) if not refused[i]]
    if left and all(values[i] is None for i in left):
        raise ValueError(
            f"No take has the measure {name}: loudness needs 0.4 s of sound, words per second a transcript; give that, or "
            "pick by another measure."
        )
    return extreme((i for i in left if values[i] is not None), key=values.__getitem__, default=0)


def _seed(take: Take) -> int:
    return -1 if take.seed is None else take.seed


def _count_words(transcript: str) -> float | None:
    if not transcript.strip():
        return None
    return spoken_words(transcript if "<|" in transcript else f"<|caption|> speech <|asr|> {transcript}")
