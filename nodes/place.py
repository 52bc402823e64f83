"""A bed, takes of an effect and times -> AUDIO in which the takes begin to sound at these times."""

import logging

from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from ..dasheng_core.delivery import finishing
from ..dasheng_core.delivery.hits import read_hits
from ..dasheng_core.delivery.placing import onset_of, place_takes
from ..dasheng_core.inputs import as_float
from .common import number_input
from .finish import reported
from .lists import only
from .takes import list_takes
from .versions import schema

log = logging.getLogger(__name__)


class DashengPlace(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengPlace",
            display_name="Dasheng Place",
            search_aliases=["place audio", "hits", "markers", "sync", "foley", "trigger"],
            description="Lays takes of an effect into a sound so that each begins to sound at its time, the next take each time. Nothing "
            "else of the sound changes: the node shows what would clip.",
            inputs=[
                io.Audio.Input("bed", tooltip="What lies below. The result has its length, rate and channels."),
                io.Audio.Input(
                    "effect", tooltip="Takes of an effect, used in turn: of two or more, neighbours differ."
                ),
                io.String.Input(
                    "hits",
                    multiline=True,
                    tooltip="A line for each, from Dasheng Hits or written: 0:01.250, and behind it a level of its own, as -6 dB.",
                ),
                number_input("effect_db", 0.0, -60.0, 24.0, 0.1, "How much louder all takes get, in dB."),
            ],
            outputs=[
                io.Audio.Output(is_output_list=True, tooltip="A list of clips, one for each take of the bed."),
                io.String.Output(
                    display_name="report", tooltip="Where each take begins to sound, and what would clip."
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, bed, effect, hits, effect_db) -> io.NodeOutput:
        hits = read_hits(only(hits, "hits"))
        gain = as_float(only(effect_db, "effect_db"), "effect_db", -60, 24, "it is a change of level in dB")
        takes, placed, lines = list_takes(effect), [], []
        for number, take in enumerate(takes, start=1):
            onset = onset_of(take.waveform)
            begins = "is silent" if onset is None else f"begins to sound at {onset / take.sample_rate:.3f} s"
            lines.append(f"effect {number} {begins}")
        if len(takes) == 1 < len(hits):
            lines.append("one take for all hits: neighbours sound alike")
        for number, under in enumerate(list_takes(bed), start=1):
            rate = under.sample_rate
            # Seconds of the video are those of the clip before its beginning was cut off.
            places = [(round((second - under.cut) * rate), level + gain) for second, level in hits]
            within = [place for place in places if 0 <= place[0] < under.waveform.shape[-1]]
            if outside := len(places) - len(within):
                log.warning("%d of %d hits lie outside of the bed's take %d: left out.", outside, len(places), number)
            at_rate = [resample(take.waveform, take.sample_rate, rate) for take in takes]
            placed.append(under.sounding(place_takes(under.waveform, at_rate, rate, within)))
            notes = [f"{len(within)} hits", *finishing.peak_notes(placed[-1].waveform, rate)]
            lines.append(f"take {number}: {', '.join(notes)}")
        return reported([take.audio() for take in placed], lines)
