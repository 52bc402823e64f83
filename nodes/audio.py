"""LATENT -> AUDIO and AUDIO -> LATENT."""

from comfy_api.latest import io

from ..dasheng_core.audio_tokenizer.spectral import resample
from .comfy_adapter import DashengVAE
from .latent import LATENT_KIND
from .loaders import CATEGORY


class DashengDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DashengDecode",
            display_name="Dasheng Decode",
            category=CATEGORY,
            description="Turns a latent into 16 kHz mono sound. The level is the model's: nothing is normalised or clipped.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Dasheng Audio Tokenizer."),
                io.Latent.Input("latent", tooltip="From Dasheng Sampler or any sampler of ComfyUI."),
            ],
            outputs=[io.Audio.Output()],
        )

    @classmethod
    def execute(cls, vae, latent) -> io.NodeOutput:
        check_vae(vae)
        samples = latent["samples"]
        if samples.ndim != 3 or samples.shape[1] != vae.latent_channels:
            raise ValueError(
                f"latent has shape {list(samples.shape)}, expected [batch, {vae.latent_channels}, frames]: it belongs "
                "to another model, or was not sampled yet; connect Dasheng Sampler or Dasheng Encode."
            )
        waveform = vae.decode(samples).movedim(-1, 1)
        return io.NodeOutput({"waveform": waveform, "sample_rate": vae.audio_sample_rate})


class DashengEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="DashengEncode",
            display_name="Dasheng Encode",
            category=CATEGORY,
            description="Turns sound into a latent, to be sampled again (denoise below 1), blended or kept.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load Dasheng Audio Tokenizer."),
                io.Audio.Input(
                    "audio", tooltip="Any rate, mono or stereo: resampled to 16 kHz, channels averaged. At least 33 ms."
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, vae, audio) -> io.NodeOutput:
        check_vae(vae)
        waveform = audio["waveform"]
        if waveform.shape[1] > 2:
            raise ValueError(
                f"The audio has {waveform.shape[1]} channels, expected mono or stereo: averaging more would smear the sound; "
                "choose or mix channels first."
            )
        waveform = resample(waveform, audio["sample_rate"])
        return io.NodeOutput({"samples": vae.encode(waveform.movedim(1, -1)), **LATENT_KIND})


def check_vae(vae):
    if not isinstance(vae, DashengVAE):
        raise ValueError(
            f"vae is a {type(vae).__name__} of another model, expected Dasheng's audio tokenizer: "
            "connect Load Dasheng Audio Tokenizer."
        )
