"""AUDIO -> AUDIO, ready to deliver: rate and channels; trimmed, faded and at a level; two sounds mixed."""

from dataclasses import replace
from itertools import groupby

from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from ..dasheng_core.delivery import finishing
from ..dasheng_core.inputs import as_choice, as_float
from ..dasheng_core.tensors import check_finite
from .common import number_input
from .inputs import as_audio
from .lists import calls
from .node_text import said
from .pictures import picture_inputs, picture_seconds, samples_under
from .takes import TAKES, Take, list_takes
from .versions import schema

RATES = {"as it is": None, "16000": 16000, "44100": 44100, "48000": 48000}
PAIRS = "takes as left and right"
CHANNELS = {
    "as it is": lambda clip: clip,
    "mono": finishing.to_mono,
    "stereo": finishing.to_stereo,
    PAIRS: finishing.to_mono,
}
LENGTH = "a length in seconds"
FINISHED = "Each take on its own: a list of as many, one clip each."


class DashengConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengConvert",
            display_name="Dasheng Rate and Channels",
            search_aliases=["resample", "48 khz", "stereo", "mono"],
            description="44.1 or 48 kHz, mono or stereo: for video, music programs and game engines, which expect "
            "others than 16 kHz mono.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.Combo.Input(
                    "sample_rate",
                    options=list(RATES),
                    default="48000",
                    tooltip="48000 for video, 44100 for music programs. Nothing above 8 kHz is added to what the model makes.",
                ),
                io.Combo.Input(
                    "channels",
                    options=list(CHANNELS),
                    default="as it is",
                    tooltip="mono: the average of the channels. stereo: mono in both channels, which measures 3 LU louder. "
                    "takes as left and right: takes 1 and 2 become one wide clip, 3 and 4 the next; for ambience.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="For a seamless loop: its end still runs on into its beginning at the new rate.",
                ),
            ],
            outputs=[io.Audio.Output(is_output_list=True, tooltip=FINISHED)],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio, sample_rate, channels, loop=(False,)) -> io.NodeOutput:
        converted = []
        for sound, rate, kind, loops in calls(audio=audio, sample_rate=sample_rate, channels=channels, loop=loop):
            rate = RATES[as_choice(rate, "sample_rate", RATES)]
            change = CHANNELS[as_choice(kind, "channels", CHANNELS)]
            at_rate = finishing.resample_loop if loops else resample
            for take in list_takes([sound]):
                new_rate = rate or take.sample_rate
                clip = at_rate(change(take.waveform), take.sample_rate, new_rate)
                converted.append((kind, take.sounding(clip, new_rate)))
        made = []
        for kind, group in groupby(converted, key=lambda item: item[0]):
            takes = [take for _, take in group]
            made += _pairs(takes) if kind == PAIRS else takes
        return io.NodeOutput([take.audio() for take in made])


class DashengFinish(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengFinish",
            display_name="Dasheng Finish",
            search_aliases=["normalize", "loudness", "lufs", "trim silence", "fade"],
            description="Trims silence, fades, and sets the level, each take on its own. Nothing is limited or clipped: the node "
            "shows what would clip.",
            inputs=[
                io.Audio.Input("audio", tooltip=TAKES),
                io.Boolean.Input(
                    "trim",
                    default=True,
                    tooltip="Cut silence at the beginning and the end; not under a connected video.",
                ),
                number_input("trim_below", -60, -120, 0, 1, "With trim: what stays below this is silence, in dBFS."),
                number_input("padding", 0.05, 0, 10, 0.005, "With trim: seconds left before and after the sound."),
                number_input("fade_in", 0.01, 0, 60, 0.005, "Seconds at the beginning over which the sound rises."),
                number_input("fade_out", 0.05, 0, 60, 0.005, "Seconds at the end over which the sound falls."),
                io.Combo.Input(
                    "level",
                    options=list(finishing.LEVELS),
                    default="as it is",
                    tooltip="loudness: integrated, ITU-R BS.1770-4, in LUFS. true peak: between samples too, in dBTP.",
                ),
                io.Float.Input(
                    "target",
                    default=-23.0,
                    min=-70.0,
                    max=0.0,
                    step=0.1,
                    tooltip="With level: LUFS (-23 broadcast, -16 podcasts and games, -14 streaming) or dBTP (-6 one-shots, -1 "
                    "the usual most). Mono measures 3 LU less than the same sound in two channels.",
                ),
                *picture_inputs("cut the sound, or add silence behind it, to exactly this length."),
            ],
            outputs=[
                io.Audio.Output(is_output_list=True, tooltip=FINISHED),
                io.String.Output(
                    display_name="report", tooltip="What was done to each take, its levels, and what would clip."
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio, trim, trim_below, padding, fade_in, fade_out, level, target, **pictures) -> io.NodeOutput:
        inputs = dict(trim=trim, trim_below=trim_below, padding=padding, fade_in=fade_in, fade_out=fade_out)
        inputs |= {name: pictures.get(name) for name in ("like_images", "fps", "like_video")}
        finished, lines = [], []
        for values in calls(audio=audio, **inputs, level=level, target=target):
            sound, trims, below, around, *fades, images, fps, video, kind, aim = values
            kind = as_choice(kind, "level", finishing.LEVELS)
            below = as_float(below, "trim_below", -120, 0, "it is a level in dBFS")
            around = as_float(around, "padding", 0, 10, LENGTH)
            ends = [
                as_float(fade, name, 0, 60, LENGTH) for fade, name in zip(fades, ("fade_in", "fade_out"), strict=True)
            ]
            aim = as_float(aim, "target", -70, 0, "it is a level in LUFS or dBTP")
            seconds = picture_seconds(images, fps, video)
            for take in list_takes([sound]):
                clip, cut, rate, notes, wanted = take.waveform, 0, take.sample_rate, [], 0
                if seconds is not None:
                    wanted, done = samples_under(seconds, rate, clip.shape[-1])
                    # What is too long ends with the fade; silence comes behind it.
                    clip, notes = clip[:, :wanted], [done]
                elif trims:
                    clip, cut = finishing.trim_silence(clip, rate, below, around)
                    notes.append(f"{(take.waveform.shape[-1] - clip.shape[-1]) / rate:.2f} s cut")
                clip, said = finishing.set_level(finishing.fade(clip, rate, *ends), rate, kind, aim)
                clip = finishing.extend_silence(clip, wanted)
                finished.append(take.sounding(clip, cut=cut / rate).audio())
                notes = [f"{clip.shape[-1] / rate:.2f} s", *notes, *said]
                lines.append(f"take {len(finished)}: {', '.join(notes)}")
        return reported(finished, lines)


class DashengMix(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengMix",
            display_name="Dasheng Mix",
            search_aliases=["merge audio", "overlay", "layer"],
            description="Lays one sound over another. Their levels stay as they are, apart from what you set for the "
            "layer: the node shows what would clip.",
            inputs=[
                io.Audio.Input("bed", tooltip="What lies below, from its first second."),
                io.Audio.Input(
                    "layer", tooltip="What is added. Of another rate or mono: both get the higher rate, and stereo."
                ),
                number_input("at", 0.0, 0.0, 3600.0, 0.01, "The second of the bed at which the layer starts."),
                number_input("layer_db", 0.0, -60.0, 24.0, 0.1, "How much louder the layer gets, in dB."),
            ],
            outputs=[
                io.Audio.Output(
                    tooltip="As long as the two need. A batch with one clip, or with as many, gives a batch."
                ),
                io.String.Output(display_name="report", tooltip="The peak of each take, and what would clip."),
            ],
        )

    @classmethod
    def execute(cls, bed, layer, at, layer_db) -> io.NodeOutput:
        at = as_float(at, "at", 0, 3600, LENGTH)
        gain = 10 ** (as_float(layer_db, "layer_db", -60, 24, "it is a change of level in dB") / 20)
        cuts = [take.cut for take in list_takes([bed])]
        (bed, bed_rate), (layer, layer_rate) = as_audio(bed, least=1), as_audio(layer, least=1)
        rate = max(bed_rate, layer_rate)
        bed, layer = resample(bed.cpu(), bed_rate, rate), resample(layer.cpu(), layer_rate, rate)
        if 1 not in (len(bed), len(layer)) and len(bed) != len(layer):
            raise ValueError(
                f"The bed has {len(bed)} takes, the layer {len(layer)}, expected as many, or one: use Dasheng Pick Take."
            )
        mixed = finishing.mix(bed, layer * gain, round(at * rate))
        check_finite(mixed, "The mix", "one of the sounds is far beyond full scale; turn it down")
        notes = [f"take {n}: {', '.join(finishing.peak_notes(clip, rate))}" for n, clip in enumerate(mixed, start=1)]
        cuts *= len(mixed) // len(cuts)
        return reported({"waveform": mixed, "sample_rate": rate, "cut": cuts}, notes)


def _pairs(takes: list[Take]) -> list[Take]:
    """Mono takes 1 and 2 as left and right of one, and so on."""
    if len(takes) % 2:
        raise ValueError(
            f"{len(takes)} takes cannot be left and right of one another, expected an even number: make one more."
        )
    pairs = []
    for left, right in zip(takes[::2], takes[1::2], strict=True):
        right = resample(right.waveform, right.sample_rate, left.sample_rate)
        pairs.append(replace(left, waveform=finishing.left_and_right(left.waveform, right), seed=None))
    return pairs


def reported(audio: list[dict] | dict, lines: list[str]) -> io.NodeOutput:
    """A sound and the lines as its report; the node shows those of what would clip first."""
    text = said(*sorted(lines, key=lambda line: "WOULD CLIP" not in line))
    return io.NodeOutput(audio, "\n".join(lines), ui=text)
