"""The mini model: the published architecture at small sizes, its tokenizer, and its three checkpoint folders.

Everything is the project's own modules; what is here are sizes, first values, and the way back to published names.
"""

import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import T5Config

from dasheng_core.adapter import ContentAdapter
from dasheng_core.audio_tokenizer.decoder import Decoder
from dasheng_core.audio_tokenizer.encoder import Encoder
from dasheng_core.backbone import Backbone
from dasheng_core.duration import SAMPLE_RATE
from dasheng_core.prompt import SPECIAL_TOKENS
from dasheng_core.text_encoder import TextEncoder
from dasheng_core.weights.config import AdapterConfig, BackboneConfig, DecoderConfig, EncoderConfig
from mini.sounds import GRID
from mini.vocabulary import LICENSE
from mini.world import MOST_WORDS, WORD_LABELS
from tools.random_checkpoint import published_tensors

LATENT, WIDTH, TEXT_SIZES = 48, 160, 128
BACKBONE = BackboneConfig(
    latent_dim=LATENT,
    embed_dim=WIDTH,
    depth=6,
    num_heads=5,
    mlp_dim=2 * WIDTH,
    context_dim=TEXT_SIZES,
    ta_context_dim=TEXT_SIZES,
)
ADAPTER = AdapterConfig(
    content_dim=TEXT_SIZES,
    num_heads=4,
    instruction_seq_len=4,
    use_zero_instruction=False,
    duration_offset=1.0,
    max_tokens=512,
    special_tokens=(),
)
DECODER = DecoderConfig(latent_dim=LATENT, dim=144, depth=5, intermediate_dim=432, n_fft=1280, hop_length=320)
ENCODER_SIZES = EncoderConfig(
    embed_dim=LATENT,
    depth=2,
    num_heads=4,
    mlp_dim=4 * LATENT,
    semantic_mels=64,
    acoustic_mels=128,
    patch_frames=4,
    window_patches=252,
    hop_length=160,
)
BINS = DECODER.n_fft // 2 + 1
VOCABULARY = 768
# Heads of the text encoder that begin with a look at an earlier token.
LOOKING_BACK = 3
T5 = dict(
    d_model=TEXT_SIZES,
    d_ff=2 * TEXT_SIZES,
    d_kv=32,
    num_heads=4,
    num_layers=2,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
)


@dataclass
class AudioTokenizer:
    encoder: Encoder
    decoder: Decoder

    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.decoder])


@dataclass
class Generator:
    """The heads help in training only.

    ``word_head`` reads from the backbone's middle which word each frame speaks, ``order_head`` from the adapter's content
    which word of the transcript a token is.
    """

    text_encoder: TextEncoder
    adapter: ContentAdapter
    backbone: Backbone
    word_head: nn.Linear
    order_head: nn.Linear

    def modules(self) -> nn.ModuleList:
        return nn.ModuleList([self.text_encoder, self.adapter, self.backbone, self.word_head, self.order_head])


def new_audio_tokenizer() -> AudioTokenizer:
    encoder, decoder = Encoder(ENCODER_SIZES), Decoder(DECODER)
    with torch.no_grad():
        for name, tensor in encoder.model.init_bn[1].named_buffers():
            tensor.fill_({"weight": 1, "bias": 0, "running_mean": -20, "running_var": 400}[name])
        for position in (encoder.model.time_pos_embed, encoder.model.freq_pos_embed):
            position.normal_(std=0.02)
        for block in decoder.decoder["backbone"].convnext:
            block.gamma.fill_(1 / DECODER.depth)
        decoder.decoder["head"].out.weight.mul_(0.3)
        decoder.decoder["head"].out.bias.copy_(torch.cat([torch.full((BINS,), -3.0), grid_phases()]))
    return AudioTokenizer(encoder, decoder)


def grid_phases() -> Tensor:
    """Phase of each bin of the inverse STFT for a tone of the world's grid next to it: sines that are 0 at whole hops."""
    n_fft, hop = DECODER.n_fft, DECODER.hop_length
    period = SAMPLE_RATE // GRID
    per_tone = n_fft // period
    tones = torch.round(torch.arange(BINS) / per_tone).long()
    time = torch.arange(n_fft) - (n_fft - hop) // 2
    window = torch.hann_window(n_fft)
    return torch.stack(
        [
            torch.fft.rfft(window * torch.sin(2 * math.pi * tone / period * time))[bin].angle()
            for bin, tone in enumerate(tones.tolist())
        ]
    )


def new_generator() -> Generator:
    """First values that let conditioning act from the first step: gates open, output small, an order in the text."""
    text_encoder = TextEncoder(T5Config(vocab_size=VOCABULARY, **t5_fixed(), **T5), TEXT_SIZES, [], dtype=torch.float32)
    adapter, backbone = ContentAdapter(ADAPTER), Backbone(BACKBONE)
    with torch.no_grad():
        # Heads that look one, two and three tokens back. T5 knows places by these biases alone, and from zeros they hardly
        # grow: "one two" and "two one" stay the same to it.
        attention = text_encoder.t5.encoder.block[0].layer[0].SelfAttention
        for head in range(LOOKING_BACK):
            attention.relative_attention_bias.weight[1 + head, head] = 4.0
        adapter.instruction_embedding.normal_()
        adapter.instruction_lengths.fill_(ADAPTER.instruction_seq_len)
        adapter.global_duration_mlp[3].bias.fill_(math.log(4.0))
        backbone.dummy_ta_embed.normal_()
        for module in backbone.modules():
            if hasattr(module, "time_ada"):
                # Gates are tanh(1 - g) and 1 - g: zeros leave them open.
                module.time_ada.weight.mul_(0.1)
                module.time_ada.bias.zero_()
        backbone.time_ada_final.weight.mul_(0.1)
        backbone.time_ada_final.bias.zero_()
        backbone.final_block.final_layer.weight.mul_(0.1)
    return Generator(text_encoder, adapter, backbone, nn.Linear(WIDTH, WORD_LABELS), nn.Linear(TEXT_SIZES, MOST_WORDS))


def t5_fixed() -> dict:
    return dict(feed_forward_proj="gated-gelu", dropout_rate=0.0, layer_norm_epsilon=1e-6, use_cache=False)


def train_tokenizer(prompts: list[str]) -> Tokenizer:
    """Byte pairs: the world's few words become one piece each, a strange one is spelled. Tags are pieces of their own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", *SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(prompts, trainer)
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return tokenizer


def export(folder: Path, tokenizer: AudioTokenizer, generator: Generator, text_tokenizer: Tokenizer) -> None:
    """Write the three checkpoint folders in the published layout, float16, all at once or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        tensors = published_tensors(generator.backbone, generator.adapter, generator.text_encoder)
        _write(temporary / "audiogen", _audiogen_config(), tensors)
        _write(temporary / "text_encoder", _t5_config(), _t5_tensors(generator.text_encoder))
        _write(temporary / "audio_tokenizer", _audio_tokenizer_config(), _audio_tokenizer_tensors(tokenizer))
        text_tokenizer.save(str(temporary / "text_encoder" / "tokenizer.json"))
        for part in ("audiogen", "text_encoder", "audio_tokenizer"):
            if (folder / part).exists():
                shutil.rmtree(folder / part)
            folder.mkdir(exist_ok=True)
            os.replace(temporary / part, folder / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    stored = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in stored.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt", "license": LICENSE})


def _t5_tensors(text_encoder: TextEncoder) -> dict[str, Tensor]:
    tensors = text_encoder.t5.state_dict()
    # The same table by its other name.
    tensors.pop("encoder.embed_tokens.weight")
    return tensors


def _audio_tokenizer_tensors(tokenizer: AudioTokenizer) -> dict[str, Tensor]:
    encoder = {f"encoder.{name}": tensor for name, tensor in tokenizer.encoder.state_dict().items()}
    return encoder | tokenizer.decoder.state_dict()


def _sizes(config) -> dict:
    """The keys of config.json that a config's fields name."""
    return {key: getattr(config, size.name) for size in fields(config) for key in size.metadata.get("keys", ())}


def _audiogen_config() -> dict:
    return {
        "model_type": "dasheng_audiogen",
        "architectures": ["DashengAudioGenModel"],
        "sample_rate": 16000,
        "downsampling_ratio": 640,
        **_sizes(BACKBONE),
        **_sizes(ADAPTER),
        "use_zero_instruction": ADAPTER.use_zero_instruction,
        "duration_offset": ADAPTER.duration_offset,
        "tokenizer_max_length": ADAPTER.max_tokens,
        "dit_num_heads": BACKBONE.num_heads,
        "dit_mlp_ratio": BACKBONE.mlp_dim / BACKBONE.embed_dim,
        "adapter_num_heads": ADAPTER.num_heads,
        "special_tokens": [],
    }


def _t5_config() -> dict:
    fixed = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "vocab_size": VOCABULARY,
        "is_encoder_decoder": False,
    }
    return {**fixed, **T5, **t5_fixed()}


def _audio_tokenizer_config() -> dict:
    return {
        "model_type": "dashengtokenizer",
        **_sizes(DECODER),
        **_sizes(ENCODER_SIZES),
        "num_heads": ENCODER_SIZES.num_heads,
        "istft_hop": DECODER.hop_length,
        "upsample_tokens": 2,
    }
