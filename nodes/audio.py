"""LATENT -> AUDIO and AUDIO -> LATENT."""

from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from ..dasheng_core.control.loop import loop_wrap
from ..dasheng_core.duration import SAMPLES_PER_FRAME
from .comfy.vae import DashengVAE, as_sampled
from .common import HIDDEN
from .inputs import as_audio, check_kind, latent_samples
from .latent import LATENT_KIND, known_seeds
from .versions import schema

EXPECTED_VAE = "Dasheng's audio tokenizer: connect Load Dasheng Audio Tokenizer"


class DashengDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengDecode",
            display_name="Dasheng Decode",
            search_aliases=["vae decode audio", "vocoder"],
            description="Turns a latent into 16 kHz mono sound. The level is the model's: nothing is normalised or clipped.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Dasheng Audio Tokenizer."),
                io.Latent.Input("latent", tooltip="From Dasheng Sampler or any sampler of ComfyUI."),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    # Workflows saved before this input was there run as they did.
                    optional=True,
                    tooltip="The end of the sound runs on into its beginning. For a clip sampled with Dasheng Loop.",
                ),
            ],
            outputs=[io.Audio.Output(tooltip="16 kHz mono, one take for each item of the latent.")],
            hidden=HIDDEN,
        )

    @classmethod
    def execute(cls, vae, latent, loop=False) -> io.NodeOutput:
        check_kind(vae, DashengVAE, "vae", EXPECTED_VAE)
        samples, reach = latent_samples(latent), vae.first_stage_model.decoder.reach
        seeds = known_seeds(latent, samples)
        samples = as_sampled(samples, vae.latent_channels, cls.hidden)
        if loop:
            samples = loop_wrap(samples, reach)
        waveform = vae.decode(samples).movedim(-1, 1)
        if loop:
            waveform = waveform[..., reach * SAMPLES_PER_FRAME : -reach * SAMPLES_PER_FRAME]
        return io.NodeOutput({"waveform": waveform, "sample_rate": vae.audio_sample_rate, "seeds": seeds})


class DashengEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengEncode",
            display_name="Dasheng Encode",
            search_aliases=["vae encode audio", "audio to audio"],
            description="Turns sound into a latent, to be sampled again (denoise below 1), blended or kept.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Dasheng Audio Tokenizer."),
                io.Audio.Input(
                    "audio",
                    tooltip="Any rate from 1 Hz to 768 kHz, any number of channels: resampled to 16 kHz, channels averaged. "
                    "33 ms to one hour, for which memory is needed.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="25 frames per second, for a sampler or Dasheng Decode.")],
        )

    @classmethod
    def execute(cls, vae, audio) -> io.NodeOutput:
        check_kind(vae, DashengVAE, "vae", EXPECTED_VAE)
        waveform = resample(*as_audio(audio))
        return io.NodeOutput({"samples": vae.encode(waveform.movedim(1, -1)), **LATENT_KIND})
