"""Up to four AUDIO, each at its place -> one stereo AUDIO."""

from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from ..dasheng_core.delivery import finishing
from ..dasheng_core.delivery.stereo import MOST_DELAY, Place, place_in_stereo
from ..dasheng_core.tensors import check_finite
from .common import CATEGORY, number_input
from .finish import reported
from .inputs import as_audio
from .takes import list_takes
from .versions import schema

SOUNDS = 4


class DashengPlaceInStereo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = []
        for n in range(1, SOUNDS + 1):
            inputs += [
                io.Audio.Input(f"audio_{n}", optional=True, tooltip="A sound to place: channels are averaged."),
                _slider(f"pan_{n}", -1.0, 1.0, "-1: left. 0: the middle. 1: right."),
                _slider(f"distance_{n}", 0.0, 1.0, "0: as it is. 1: 12 dB quieter, and dull above 2 kHz."),
                io.Float.Input(
                    f"gain_{n}", default=0.0, min=-60.0, max=24.0, step=0.1, tooltip="How much louder it gets, in dB."
                ),
            ]
        inputs.append(
            number_input(
                "delay",
                0.0,
                0.0,
                MOST_DELAY,
                0.05,
                "Milliseconds by which a sound that is wholly at one side comes later to the other. Ears are 0.65 apart. 0: none, and "
                "left and right together are the mono sound.",
            )
        )
        return schema(
            node_id="DashengPlaceInStereo",
            display_name="Dasheng Place in Stereo",
            category=CATEGORY,
            search_aliases=["pan", "panorama", "spatial", "mixer", "stereo"],
            description="Places up to four sounds between left and right, near or far, and mixes them. Nothing is limited or clipped: "
            "the node shows what would clip.",
            inputs=inputs,
            outputs=[
                io.Audio.Output(tooltip="Stereo, as long as the longest sound, at the highest of their rates."),
                io.String.Output(display_name="report", tooltip="The peak of each take, and what would clip."),
            ],
        )

    @classmethod
    def execute(cls, delay, **inputs) -> io.NodeOutput:
        placed, cuts = [], []
        for n in range(1, SOUNDS + 1):
            if (audio := inputs.get(f"audio_{n}")) is not None:
                waveform, rate = as_audio(audio, least=1)
                place = Place(*(inputs[f"{name}_{n}"] for name in ("pan", "distance", "gain")))
                placed.append((waveform.cpu().mean(dim=1), rate, place))
                cuts = cuts or [take.cut for take in list_takes([audio])]
        if not placed:
            raise ValueError("No sound is connected, expected one to four: connect a stem to audio_1.")
        counts = {len(sound) for sound, _, _ in placed}
        if len(counts - {1}) > 1:
            raise ValueError(
                f"The sounds have {', '.join(map(str, sorted(counts)))} takes, expected as many, or one: use Dasheng Pick Take."
            )
        rate = max(rate for _, rate, _ in placed)
        scene = None
        for sound, own_rate, place in placed:
            stereo = place_in_stereo(resample(sound, own_rate, rate), rate, place, delay)
            scene = stereo if scene is None else finishing.mix(scene, stereo, 0)
        check_finite(scene, "The scene", "one of the sounds is far beyond full scale; turn it down")
        lines = [f"take {n}: {', '.join(finishing.peak_notes(clip, rate))}" for n, clip in enumerate(scene, start=1)]
        cuts = cuts if len(cuts) == len(scene) else cuts * len(scene)
        return reported({"waveform": scene, "sample_rate": rate, "cut": cuts}, lines)


def _slider(name: str, least: float, most: float, tooltip: str):
    return io.Float.Input(
        name,
        default=0.0,
        min=least,
        max=most,
        step=0.05,
        display_mode=io.NumberDisplay.slider,
        tooltip=tooltip,
    )
