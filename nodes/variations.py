"""A batch of AUDIO -> a set of variations: aligned, equally loud, neither alike nor strangers."""

import torch.nn.functional as F
from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from ..dasheng_core.delivery.finishing import to_mono
from ..dasheng_core.delivery.variations import choose_variations
from ..dasheng_core.duration import SAMPLE_RATE
from ..dasheng_core.inputs import as_float, as_int
from ..dasheng_core.options import DISTANCES, MOST_VARIATIONS
from .audio import EXPECTED_VAE
from .comfy.vae import DashengVAE
from .common import CATEGORY, number_input
from .inputs import check_kind
from .lists import only
from .node_text import said
from .takes import TAKES, list_takes
from .versions import schema


class DashengVariations(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengVariations",
            display_name="Dasheng Variations",
            category=CATEGORY,
            search_aliases=["round robin", "siblings", "footsteps", "game audio", "similar takes"],
            description="Chooses takes that belong together, as games play them in turn: they begin at one moment, are equally loud, "
            "and no two are too alike or too far from each other.",
            inputs=[
                io.Audio.Input(
                    "audio", tooltip=f"{TAKES} Give half as many again as you need: what does not fit is left out."
                ),
                io.Vae.Input(
                    "vae", tooltip="From Load Dasheng Audio Tokenizer: its latents say how far two takes are."
                ),
                io.Int.Input("count", default=8, min=2, max=MOST_VARIATIONS, tooltip="How many sounds the set has."),
                number_input(
                    "least_distance",
                    DISTANCES[0],
                    0.0,
                    10.0,
                    0.005,
                    "Of two takes nearer than this, the later is left out. 0: none.",
                ),
                number_input(
                    "most_distance", DISTANCES[1], 0.0, 10.0, 0.01, "A take farther from another is left out."
                ),
            ],
            outputs=[
                io.Audio.Output(display_name="set", tooltip="16 kHz mono, one clip for each variation."),
                io.String.Output(
                    display_name="table",
                    tooltip="Take, seed, and least and largest distance of each sound of the set, columns apart by tabs.",
                ),
            ],
            is_input_list=True,
        )

    @classmethod
    def execute(cls, audio, vae, count, least_distance, most_distance) -> io.NodeOutput:
        vae = only(vae, "vae")
        check_kind(vae, DashengVAE, "vae", EXPECTED_VAE)
        count = as_int(only(count, "count"), "count", 2, MOST_VARIATIONS, "they are one set")
        near, far = (
            as_float(only(value, name), name, 0, 10, "it is a distance of two takes")
            for name, value in (("least_distance", least_distance), ("most_distance", most_distance))
        )
        takes = list_takes(audio)
        if len(takes) < count:
            raise ValueError(f"audio has {len(takes)} takes, expected at least {count}: make more, or lower count.")
        clips = [to_mono(resample(take.waveform, take.sample_rate))[0] for take in takes]
        longest = max(map(len, clips))
        made = choose_variations(
            (F.pad(clip, (0, longest - len(clip))) for clip in clips),
            lambda sound: vae.encode(sound[:, :, None]),
            count,
            (near, far),
        )
        seeds = [takes[number].seed for number in made.numbers]
        rows = ["take\tseed\tleast\tlargest"]
        for place, (number, seed) in enumerate(zip(made.numbers, seeds, strict=True)):
            others = sorted(made.distances[place].tolist())[1:]
            rows.append(f"{number + 1}\t{'-' if seed is None else seed}\t{others[0]:.3f}\t{others[-1]:.3f}")
        pairs = made.distances[made.distances > 0].tolist() or [0.0]
        lines = [f"{count} of {len(takes)} takes, {min(pairs):.3f} to {max(pairs):.3f} apart"]
        lines += [f"take {number + 1} is {why}" for number, why in sorted(made.refused.items())]
        sounds = {"waveform": made.sounds[:, None], "sample_rate": SAMPLE_RATE, "seeds": seeds}
        return io.NodeOutput(sounds, "\n".join(rows), ui=said(*lines))
