"""Schedules and sampling: steps and sway -> SIGMAS; MODEL, CONDITIONING and LATENT -> LATENT."""

import comfy.model_management as mm
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..dasheng_core.inputs import as_choice
from ..dasheng_core.options import GRIDS, SWAY_MAX, SWAY_MIN, as_guidance
from ..dasheng_core.sampling import MAX_SEED, as_seed, draw_noises
from ..dasheng_core.schedule import make_sigmas
from .comfy.sampling_call import SEEDS
from .latent import batch_indices, noise_mask, note_seeds, prepare_latent, warn_of_repeats
from .noise import NOISE_KINDS, take_seeds
from .scene_inputs import check_scenes, guidance_input, scene_inputs
from .versions import RATIOS, advanced, schema


def steps_input():
    return io.Int.Input(
        "steps",
        default=25,
        min=1,
        max=1000,
        tooltip="Network evaluations. Published default 25; fewer is faster and rougher.",
    )


def sway_input():
    return advanced(
        io.Float.Input(
            "sway",
            default=-1.0,
            min=SWAY_MIN,
            max=round(SWAY_MAX - 0.005, 2),
            step=0.05,
            tooltip="Where the steps lie: -1 (published) puts most near the noise, 0 spreads them evenly, above 0 puts "
            "more near the finished sound.",
        )
    )


def denoise_input():
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="1 starts from noise and ignores the latent. Below 1, only the last part of the schedule runs, at least "
        "one step less, so that the latent is kept in part: just below 1 very little of it, near 0 most.",
    )


def grid_input():
    return advanced(
        io.Combo.Input(
            "grid",
            options=[*GRIDS],
            default="full",
            optional=True,
            tooltip="full: the published schedule. epss: 5, 6, 7, 10, 12 or 16 steps, close together near the noise "
            "and far apart later; faster, and not the same sound.",
        )
    )


class DashengSwaySigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengSwaySigmas",
            display_name="Dasheng Sway Sigmas",
            search_aliases=["scheduler", "sigmas", "epss"],
            description="The model's own noise schedule, for SamplerCustom and SamplerCustomAdvanced (use euler).",
            inputs=[
                steps_input(),
                sway_input(),
                denoise_input(),
                grid_input(),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps, sway, denoise, grid="full") -> io.NodeOutput:
        return io.NodeOutput(make_sigmas(steps, sway, denoise, grid))


class DashengSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengSampler",
            display_name="Dasheng Sampler",
            search_aliases=["ksampler", "make sound", "generate"],
            description="Makes the sound. Seed, steps, how closely it follows the words.",
            inputs=[
                *scene_inputs(),
                io.Latent.Input(
                    "latent", tooltip="From Empty Dasheng Latent Audio, Dasheng Encode or another sampler."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED - 1,
                    control_after_generate=True,
                    tooltip="Take i of a batch uses seed + i: set that number to make the same take alone. A latent of LatentBatch "
                    "can have the same take twice, and the log says so.",
                ),
                steps_input(),
                guidance_input(),
                sway_input(),
                denoise_input(),
                advanced(
                    io.Boolean.Input(
                        "keep_on_gpu",
                        default=False,
                        tooltip="Leave the latent on the GPU for the next Dasheng node. Off: it goes where ComfyUI keeps "
                        "results, so that every node can mix it.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "noise",
                        options=list(NOISE_KINDS),
                        default="steady",
                        optional=True,
                        tooltip="steady: another length is the same sound, longer or shorter. as KSampler: the noise of RandomNoise "
                        "and KSampler, which another length makes another sound.",
                    )
                ),
                grid_input(),
            ],
            outputs=[io.Latent.Output(tooltip="The finished latent, for Dasheng Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        latent,
        seed,
        steps,
        guidance,
        sway,
        denoise,
        keep_on_gpu,
        negative=None,
        noise="steady",
        grid="full",
    ) -> io.NodeOutput:
        config, positive, negative = check_scenes(model, positive, negative)
        samples, mask = prepare_latent(model, latent, config.latent_dim), noise_mask(latent)
        sigmas, seed = make_sigmas(steps, sway, denoise, grid), as_seed(seed)
        warn_of_repeats(batch_indices(latent), samples if mask is not None or sigmas[0] < 1 else None)
        seeds = take_seeds(seed, latent)
        kind, lengths = NOISE_KINDS[as_choice(noise, "noise", NOISE_KINDS)], [samples.shape[-1]] * len(seeds)
        takes = draw_noises(seeds, config.latent_dim, lengths, kind)

        guider = comfy.samplers.CFGGuider(model)
        # A loop turns each take as its own seed says.
        options = {**model.model_options["transformer_options"], SEEDS: seeds}
        guider.model_options = {**model.model_options, "transformer_options": options}
        guider.set_conds(positive, negative)
        guider.set_cfg(max(1.0, as_guidance(guidance)))
        sampled = guider.sample(
            takes,
            samples,
            comfy.samplers.sampler_object("euler"),
            sigmas,
            denoise_mask=mask,
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        if not keep_on_gpu:
            sampled = sampled.to(mm.intermediate_device())
        kept = {key: value for key, value in latent.items() if key not in RATIOS}
        return io.NodeOutput({**kept, "samples": sampled, "seeds": note_seeds(sampled, seeds)})
