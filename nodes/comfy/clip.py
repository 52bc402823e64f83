"""CLIP: text encoder, projection and content adapter as ComfyUI's text model."""

from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from torch import nn

from ...dasheng_core.adapter import ContentAdapter, frames_from_duration, load_adapter
from ...dasheng_core.backbone import check_audiogen
from ...dasheng_core.control.listening import prompt_parts
from ...dasheng_core.duration import FRAME_RATE
from ...dasheng_core.prompt import first_words, parse_prompt, spoken_words
from ...dasheng_core.quoting import plain
from ...dasheng_core.text_encoder import TextEncoder, load_text_encoder
from ...dasheng_core.tokenizer import SceneTokenizer
from ...dasheng_core.weights.config import AUDIOGEN_TYPES, TEXT_ENCODER_TYPES, AdapterConfig
from ..muted import switched_off
from ..node_text import plain_errors
from .patcher import WholePatcher, open_interruptible
from .scene import NAME, PARTS, PROMPT_TEXT

# What Dasheng Text Encode has where nothing is connected, and core's CLIPTextEncode.
NO_PROMPT = (
    "The prompt is empty, expected <|caption|> and what the whole scene sounds like in one English sentence: write it, or connect "
    "Dasheng Scene Prompt, which gives nothing while it is bypassed or muted. To have no negative prompt, connect "
    "ConditioningZeroOut to negative, or leave that open where a node allows it."
)


def check_written(prompt: str, hidden=None) -> None:
    """Raise ValueError for a prompt of nothing, or of its first tag alone; ``hidden``: the hidden inputs of its node."""
    if not prompt.replace("<|caption|>", "").strip():
        if off := switched_off(hidden, "prompt"):
            raise ValueError(f"The prompt is empty, because {plain(off)}: switch it on.")
        raise ValueError(NO_PROMPT)


T5_TOKENIZER = Path(comfy.sd.__file__).parent / "text_encoders" / "t5_tokenizer" / "tokenizer.json"
# What ComfyUI's CLIPSave puts before T5's published names.
SAVED_PREFIX = "text_encoder.t5."


class DashengTokens:
    """Tokenizer of a CLIP object: no weights, no embeddings, a bracket is spoken text."""

    def __init__(self, tokenizer: SceneTokenizer):
        self.tokenizer = tokenizer

    @plain_errors
    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs):
        check_written(text)
        ids, _ = self.tokenizer([text])
        parts = [prompt_parts(self.tokenizer.file.encode, text, words) for words in (False, True)]
        return {
            "dasheng": [[(token, 1.0) for token in ids[0].tolist()]],
            "spoken_words": spoken_words(text),
            NAME: first_words(parse_prompt(text)["caption"]),
            PROMPT_TEXT: text,
            PARTS: parts,
        }

    def state_dict(self):
        return {}


class DashengTextModel(nn.Module):
    """Text encoder, projection and content adapter as one text model: tokens -> context ``[1, S, X]`` and seconds."""

    def __init__(self, text_encoder: TextEncoder, adapter: ContentAdapter):
        super().__init__()
        self.text_encoder = text_encoder
        self.adapter = adapter
        self.dtypes = {text_encoder.proj.weight.dtype, adapter.dtype}
        self.register_state_dict_post_hook(_once)
        for block in text_encoder.t5.encoder.block:
            # Layers of ComfyUI check for an interrupt themselves; transformers' do not.
            block.register_forward_pre_hook(lambda *_: mm.throw_exception_if_processing_interrupted())

    def encode_token_weights(self, tokens):
        device = self.text_encoder.proj.weight.device
        ids = torch.tensor([[token for token, _ in tokens["dasheng"][0]]], device=device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        _, features = self.text_encoder(ids, mask)
        content, duration = self.adapter(features, mask)
        frames = frames_from_duration(duration, self.adapter.config.duration_offset, FRAME_RATE)
        extra = {
            "seconds": frames.item() / FRAME_RATE,
            "spoken_words": tokens.get("spoken_words", 0),
            NAME: tokens.get(NAME, ""),
            PROMPT_TEXT: tokens.get(PROMPT_TEXT, ""),
            PARTS: tokens.get(PARTS),
        }
        return content.float().to(mm.intermediate_device()), None, extra

    def set_clip_options(self, options):
        if options.get("layer") is not None:
            raise ValueError("CLIP Set Last Layer has no meaning for Dasheng's text encoder: remove that node.")

    def reset_clip_options(self):
        pass


def _once(module: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    """T5's table of tokens goes by two names; a file that CLIPSave writes may hold a tensor once."""
    state.pop(f"{prefix}{SAVED_PREFIX}shared.weight")


def load_clip(text_encoder_path: str, audiogen_path: str, disable_dynamic: bool = False):
    """CLIP from a T5 or mT5 checkpoint and the projection and adapter of an audio generator."""
    audiogen = open_interruptible(audiogen_path, AUDIOGEN_TYPES)
    check_audiogen(audiogen)
    config = AdapterConfig.from_checkpoint(audiogen)
    encoder = open_interruptible(text_encoder_path, TEXT_ENCODER_TYPES).renamed(
        lambda name: name.removeprefix(SAVED_PREFIX)
    )
    tokenizer, text_encoder = load_text_encoder(encoder, audiogen, config, fallback_tokenizer=T5_TOKENIZER)
    model = DashengTextModel(text_encoder, load_adapter(audiogen, config))
    # Newer versions read it before they make the patcher.
    model.disable_offload = disable_dynamic
    target = comfy.supported_models_base.ClipTarget(lambda **_: DashengTokens(tokenizer), lambda **_: model)
    # A name is equal to no device: a patcher that is replaced must not be loaded at once.
    clip = comfy.sd.CLIP(target, model_options={"initial_device": "cpu"})
    # Newer versions may make a dynamic patcher, which handles such layers.
    if type(clip.patcher) is comfy.model_patcher.ModelPatcher:
        clip.patcher = WholePatcher.in_place_of(clip.patcher)
    paths = text_encoder_path, audiogen_path
    clip.patcher.cached_patcher_init = (lambda disable_dynamic=False: load_clip(*paths, disable_dynamic).patcher, ())
    return clip
