"""A batch of AUDIO as takes: one of them, by its number or by a measure."""

from comfy_api.latest import io

from ..dasheng_core.delivery.measures import measure as measure_clip
from ..dasheng_core.inputs import as_choice, as_float, as_int, as_text
from ..dasheng_core.prompt import spoken_words
from .common import CATEGORY, number_input
from .lists import calls, only
from .node_text import said
from .take_table import HEADER, MEASURES, UNIT_ROW, UNITS, extreme_of, refusal, shown_value, table_row
from .takes import TAKES, list_takes, seed_number, take_rows
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


class DashengPickTake(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengPickTake",
            display_name="Dasheng Pick Take",
            category=CATEGORY,
            search_aliases=["choose take", "best of", "measure", "lufs", "audio from batch"],
            description="Keeps one take of many: by its number, or the highest or lowest of a measure. Takes beyond "
            "the thresholds are refused.",
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
            reasons = "; ".join(f"take {number}: {reason}" for number, reason in enumerate(refused, start=1) if reason)
            raise ValueError(
                f"Refused by the thresholds ({reasons}): pick another take, make more, or move a threshold."
            )
        order = sorted(range(len(takes)), key=lambda i: (values[i] is not None, values[i] or 0.0), reverse=True)
        table = "\n".join(
            [HEADER, UNIT_ROW, *(table_row(i + 1, measured[i], takes[i].seed, refused[i]) for i in order)]
        )
        unit = UNITS[list(MEASURES).index(key)]
        seed = seed_number(takes[picked])
        text = f"take {picked + 1} of {len(takes)}, seed {'not known' if seed < 0 else seed}"
        shown = said(f"{text}, {key} {shown_value(values[picked])} {unit}".rstrip())
        ui = {**shown, **take_rows([takes[picked]], picked + 1)}
        return io.NodeOutput(takes[picked].audio(), table, picked + 1, seed, ui=ui)


def _count_words(transcript: str) -> float | None:
    if not transcript.strip():
        return None
    return spoken_words(transcript if "<|" in transcript else f"<|caption|> speech <|asr|> {transcript}")
