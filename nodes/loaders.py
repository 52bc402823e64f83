"""Files -> MODEL, CLIP and VAE."""

import hashlib
import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..dasheng_core.inputs import as_choice, as_text
from ..dasheng_core.quoting import plain
from ..dasheng_core.tensors import DTYPES
from ..dasheng_core.weights.checkpoint import A_TEXT_ENCODER, AN_AUDIO_TOKENIZER, AN_AUDIOGEN, fingerprint, name_taker
from .comfy.clip import load_clip
from .comfy.model import load_model_patcher
from .comfy.vae import DashengVAE
from .common import SOUND
from .node_text import said
from .versions import advanced, schema

# Which loader takes a file that another was given.
TAKERS = {
    AN_AUDIOGEN: "Load Dasheng AudioGen",
    A_TEXT_ENCODER: "Load Dasheng Text Encoder",
    AN_AUDIO_TOKENIZER: "Load Dasheng Audio Tokenizer",
}
DTYPE_CHOICES = ("auto", *DTYPES)
# The small model that comes with the pack, and its parts in mini/.
MINI_NAME = "dasheng-mini/model.safetensors"
MINI = {"diffusion_models": "audiogen", "text_encoders": "text_encoder", "vae": "audio_tokenizer"}


def model_files(kind: str, gguf: bool = True) -> list[str]:
    """Names of the files in a models folder, .gguf files among them, which ComfyUI's own lists leave out; the mini model last."""
    names = set(folder_paths.get_filename_list(kind))
    for folder in folder_paths.get_folder_paths(kind) if gguf else []:
        files, _ = folder_paths.recursive_search(folder, excluded_dir_names=[".git"])
        names.update(folder_paths.filter_files_extensions(files, {".gguf"}))
    return [*sorted(names - {MINI_NAME}), MINI_NAME]


def model_path(kind: str, name: str) -> str:
    """The path of a file in a models folder, or of the mini model's.

    Raises:
        ValueError: the name is no text, as the app has it where a widget has lost its value.
        FileNotFoundError: there is none.
    """
    name = as_text(name, "The name of a model file")
    # A workflow saved on Windows.
    if os.sep == "/":
        name = name.replace("\\", "/")
    if name == MINI_NAME:
        return str(Path(__file__).parent.parent / "mini" / MINI[kind] / "model.safetensors")
    return folder_paths.get_full_path_or_raise(kind, name)


class Loader(io.ComfyNode):
    """A node that loads again when one of its files was written or replaced since."""

    FOLDERS = {"model_name": "diffusion_models", "text_encoder_name": "text_encoders", "vae_name": "vae"}

    @classmethod
    def check_names(cls, **names):
        # In place of newer versions' own check, to which a name written on another system is not in the list.
        for name, value in names.items():
            kind = cls.FOLDERS[name]
            try:
                # None comes from another node, which has not run.
                if value is not None:
                    model_path(kind, value)
            except FileNotFoundError:
                return f"'{plain(value)}' is not in models/{kind}: choose a file that is there, or put this one there."
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        names = {kind: inputs[name] for name, kind in cls.FOLDERS.items() if inputs.get(name)}
        files = [fingerprint(model_path(kind, name)) for kind, name in names.items()]
        # ComfyUI writes it into every file that it saves: a digest does not say where the user's files lie.
        return hashlib.sha256(repr(files).encode()).hexdigest()


class DashengModelLoader(Loader):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengModelLoader",
            display_name="Load Dasheng AudioGen",
            description="What makes the sound: loads the audio generator's transformer.",
            search_aliases=SOUND,
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_files("diffusion_models"),
                    tooltip="Checkpoint of mispeech/Dasheng-AudioGen or -Multilingual in models/diffusion_models: published, "
                    "repacked, or quantised (.gguf). dasheng-mini comes with the pack: a small model to try graphs with.",
                ),
                advanced(
                    io.Combo.Input(
                        "dtype",
                        options=list(DTYPE_CHOICES),
                        default="auto",
                        tooltip="Number format of the weights. auto lets ComfyUI choose for your hardware; bf16 and fp16 "
                        "take 4.4 GB, fp32 8.7 GB. Quantised weights stay as they are and are expanded to it at use.",
                    )
                ),
            ],
            outputs=[io.Model.Output(tooltip="For Dasheng Sampler, KSampler or any sampler of ComfyUI.")],
        )

    @classmethod
    def validate_inputs(cls, model_name):
        return cls.check_names(model_name=model_name)

    @classmethod
    def execute(cls, model_name, dtype) -> io.NodeOutput:
        path = model_path("diffusion_models", model_name)
        with name_taker(TAKERS):
            model = load_model_patcher(path, DTYPES.get(as_choice(dtype, "dtype", DTYPE_CHOICES)))
        text = f"{model.model_size() / 1e9:.2f} GB of weights in {str(model.model_dtype()).removeprefix('torch.')}"
        return io.NodeOutput(model, ui=said(text))


class DashengTextEncoderLoader(Loader):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengTextEncoderLoader",
            display_name="Load Dasheng Text Encoder",
            description="What reads the words: loads the T5 or mT5 text encoder together with the audio generator's "
            "content adapter.",
            search_aliases=["clip loader", "t5", "flan-t5", "mt5"],
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=model_files("text_encoders", gguf=False),
                    tooltip="flan-t5-large for the English model, mt5-large for the multilingual one, in "
                    "models/text_encoders, with its tokenizer.json (or spiece.model) beside it.",
                ),
                io.Combo.Input(
                    "model_name",
                    options=model_files("diffusion_models"),
                    tooltip="The same audio generator checkpoint as in Load Dasheng AudioGen: it holds the layers "
                    "between text encoder and transformer.",
                ),
            ],
            outputs=[io.Clip.Output(tooltip="For Dasheng Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name, model_name):
        return cls.check_names(text_encoder_name=text_encoder_name, model_name=model_name)

    @classmethod
    def execute(cls, text_encoder_name, model_name) -> io.NodeOutput:
        text_encoder = model_path("text_encoders", text_encoder_name)
        with name_taker(TAKERS):
            return io.NodeOutput(load_clip(text_encoder, model_path("diffusion_models", model_name)))


class DashengAudioTokenizerLoader(Loader):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="DashengAudioTokenizerLoader",
            display_name="Load Dasheng Audio Tokenizer",
            description="Loads the audio tokenizer that turns latents into sound and sound into latents.",
            search_aliases=["vae loader", "audio vae", "vocoder", "codec"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=model_files("vae"),
                    tooltip="Checkpoint of mispeech/dashengtokenizer in models/vae. Its encoder is read only when "
                    "audio is encoded.",
                ),
            ],
            outputs=[io.Vae.Output(tooltip="For Dasheng Decode and Dasheng Encode.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name):
        return cls.check_names(vae_name=vae_name)

    @classmethod
    def execute(cls, vae_name) -> io.NodeOutput:
        with name_taker(TAKERS):
            return io.NodeOutput(DashengVAE(model_path("vae", vae_name)))
