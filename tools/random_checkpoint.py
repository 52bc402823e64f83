#!/usr/bin/env python3
"""Write random checkpoints in the published layout: ``python -m tools.random_checkpoint OUT [--size tiny]``.

OUT gets the folders ``audiogen``, ``text_encoder`` and ``audio_tokenizer`` with the published tensor names and, at
full size, the published shapes. They sound like noise; they load, take memory and compute as the real ones do.
Names and shapes are those of this project's own modules, built without data on the meta device.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import T5Config

from dasheng_core import adapter, backbone, text_encoder
from dasheng_core.audio_tokenizer import decoder, encoder
from dasheng_core.duration import SAMPLES_PER_FRAME
from dasheng_core.prompt import SPECIAL_TOKENS
from dasheng_core.tensors import DTYPES
from dasheng_core.weights import published
from dasheng_core.weights.config import PUBLISHED_FORMS, AdapterConfig, BackboneConfig, DecoderConfig, EncoderConfig
from dasheng_core.weights.reading import Shapes

log = logging.getLogger("random_checkpoint")
PARTS = ("audiogen", "text_encoder", "audio_tokenizer")
MATRIX_STD, NORM_STD = 0.02, 0.05
# Different windows of one random buffer are different matrices; this many elements apart at most.
SLACK = 2**20
TYPICAL_SECONDS = 10.0


@dataclass(frozen=True)
class Sizes:
    """Every size that differs between checkpoints."""

    latent_dim: int
    embed_dim: int
    depth: int
    num_heads: int
    text_dim: int
    text_layers: int
    text_heads: int
    text_ff: int
    # The rows of T5's table, and of mT5's.
    table_rows: tuple[int, int]
    adapter_heads: int
    # With these two the content adapter has the published total of 11.0 M parameters.
    duration_channels: int
    duration_layers: int
    vit_depth: int
    vit_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_ff: int


FULL = Sizes(
    latent_dim=1280, embed_dim=1536, depth=32, num_heads=24,
    text_dim=1024, text_layers=24, text_heads=16, text_ff=2816, table_rows=(32128, 250112),
    adapter_heads=16, duration_channels=512, duration_layers=5,
    vit_depth=32, vit_heads=16, decoder_dim=1280, decoder_depth=12, decoder_ff=5120,
)  # fmt: skip
TINY = Sizes(
    latent_dim=32, embed_dim=48, depth=4, num_heads=4,
    text_dim=32, text_layers=2, text_heads=4, text_ff=64, table_rows=(128, 192),
    adapter_heads=4, duration_channels=16, duration_layers=2,
    vit_depth=2, vit_heads=4, decoder_dim=32, decoder_depth=2, decoder_ff=64,
)  # fmt: skip
SIZES = {"full": FULL, "tiny": TINY}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--multilingual", action="store_true", help="the mT5 form, with special tokens")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s, as published")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        write_checkpoints(args.out, SIZES[args.size], args.multilingual, DTYPES[args.dtype], args.seed)
    except (OSError, SafetensorError) as error:
        log.error("%s", error)
        return 1
    except KeyboardInterrupt:
        log.error("Stopped; nothing was left behind.")
        return 130
    return 0


def write_checkpoints(out: Path, sizes: Sizes, multilingual: bool, dtype: torch.dtype, seed: int, parts=PARTS) -> None:
    """Write ``parts`` into the new folder ``out``, whole or not at all.

    Raises:
        FileExistsError: ``out`` exists.
        OSError, SafetensorError: no room, or no right to write.
    """
    if out.exists():
        raise FileExistsError(f"{out} already there: choose another name, or move the old folder away.")
    configs = make_configs(sizes, multilingual)
    shapes = {part: tensor_shapes(part, configs) for part in parts}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as temporary:
        whole = Path(temporary) / out.name
        noise = Path(temporary) / "noise"
        generator = torch.Generator().manual_seed(seed)
        write_noise(noise, largest_matrix(*(shapes[part] for part in parts)) + SLACK, dtype, generator)

        def window(start: int, count: int) -> Tensor:
            # A mapping for each, or the library takes overlapping windows for one tensor under several names.
            return torch.from_file(str(noise), shared=True, size=start + count, dtype=dtype)[start:]

        for part in parts:
            log.info("%s: %d tensors, %s parameters", part, len(shapes[part]), f"{count_parameters(shapes[part]):,}")
            folder = whole / part
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(configs[part], indent=1) + "\n", "utf-8")
            if part == "text_encoder":
                make_tokenizer().save(str(folder / "tokenizer.json"))
            tensors = {
                name: random_tensor(name, shape, dtype, window, generator) for name, shape in shapes[part].items()
            }
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        whole.rename(out)


def write_noise(path: Path, count: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    """``count`` normal values in a file, which all matrices are windows of."""
    step = 2**24
    with open(path, "wb") as file:
        for start in range(0, count, step):
            values = torch.randn(min(step, count - start), generator=generator) * MATRIX_STD
            file.write(values.to(dtype).view(torch.uint8).numpy())


def largest_matrix(*shapes: Shapes) -> int:
    return max(math.prod(shape) for part in shapes for shape in part.values())


def random_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype, window: Callable, generator) -> Tensor:
    """A matrix N(0, 0.02), a window of noise; a norm's weight 1 +- 0.05; a bias N(0, 0.02); or what ``name`` demands."""
    if name.endswith("instruction_lengths"):
        return torch.tensor([INSTRUCTION_LENGTH])
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) > 1:
        return window(int(torch.randint(SLACK, (), generator=generator)), math.prod(shape)).view(shape)
    values = torch.randn(shape, generator=generator)
    if name.endswith("global_duration_mlp.3.bias"):
        values = values * MATRIX_STD + math.log(TYPICAL_SECONDS + 1)
    elif name.endswith((".weight", ".gamma", ".running_var")):
        values = values * NORM_STD + 1
    else:
        values = values * MATRIX_STD
    return values.to(dtype)


# What the three config.json say

INSTRUCTION_LENGTH = 14


def make_configs(sizes: Sizes, multilingual: bool) -> dict[str, dict]:
    """The ``config.json`` of each part, with the published keys that have an effect."""
    text = sizes.text_dim
    audiogen = {
        **PUBLISHED_FORMS,
        "model_type": "dasheng_audiogen",
        "text_encoder_name": "google/mt5-large" if multilingual else "google/flan-t5-large",
        "tokenizer_name": "mispeech/dashengtokenizer",
        "tokenizer_max_length": 512,
        "special_tokens": list(SPECIAL_TOKENS) if multilingual else [],
        "use_zero_instruction": False,
        "instruction_seq_len": INSTRUCTION_LENGTH,
        "task_instruction_dim": text,
        "content_dim": text,
        "duration_offset": 1.0,
        "latent_dim": sizes.latent_dim,
        "dit_in_chans": sizes.latent_dim,
        "dit_out_chans": sizes.latent_dim,
        "dit_embed_dim": sizes.embed_dim,
        "dit_depth": sizes.depth,
        "dit_num_heads": sizes.num_heads,
        "dit_mlp_ratio": 4.0,
        "dit_context_dim": text,
        "dit_ta_context_dim": text,
        "adapter_num_heads": sizes.adapter_heads,
        "duration_predictor_filter_channels": sizes.duration_channels,
        "duration_predictor_n_layers": sizes.duration_layers,
        "duration_predictor_kernel_size": 3,
    }
    text_encoder = {
        "model_type": "mt5" if multilingual else "t5",
        "architectures": ["MT5EncoderModel" if multilingual else "T5EncoderModel"],
        "vocab_size": sizes.table_rows[multilingual],
        "d_model": text,
        "d_kv": text // sizes.text_heads,
        "d_ff": sizes.text_ff,
        "num_layers": sizes.text_layers,
        "num_heads": sizes.text_heads,
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    }
    audio_tokenizer = {
        "model_type": "dashengtokenizer",
        "embed_dim": sizes.latent_dim,
        "depth": sizes.vit_depth,
        "num_heads": sizes.vit_heads,
        "decoder_embed_dim": sizes.decoder_dim,
        "decoder_depth": sizes.decoder_depth,
        "decoder_intermediate_size": sizes.decoder_ff,
        "istft_n_fft": 1280,
        "istft_hop": 320,
        "upsample_tokens": 2,
        "n_mels_patch": 128,
        "hop_length": 160,
    }
    return dict(zip(PARTS, (audiogen, text_encoder, audio_tokenizer), strict=True))


# Names and shapes

MELS, WINDOW_PATCHES, PATCH_FRAMES = 64, 252, 4


def tensor_shapes(part: str, configs: dict[str, dict]) -> Shapes:
    """The tensors of one part by their published names."""
    return {"audiogen": audiogen_shapes, "text_encoder": t5_shapes, "audio_tokenizer": audio_tokenizer_shapes}[part](
        configs
    )


def count_parameters(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def audiogen_shapes(configs: dict[str, dict]) -> Shapes:
    net = make_backbone(configs)
    tensors = published_tensors(net, make_adapter(configs), make_text_encoder(configs))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Derived constants, which no loader reads: noise in them has no effect.
    for name in [name for name in shapes if name.endswith(".attn.to_q.weight")]:
        shapes[name.replace("to_q.weight", "rotary.inv_freq")] = (net.config.head_dim // 2,)
    content = configs["audiogen"]["content_dim"]
    return shapes | local_duration_shapes(configs["audiogen"]) | {"dummy_nta_embed": (content,)}


def published_tensors(net: nn.Module, side: nn.Module, text: nn.Module) -> dict[str, Tensor]:
    """Backbone, adapter and text encoder by the names of an audio generator's file."""
    tensors = {published.BACKBONE + name: tensor for name, tensor in net.state_dict().items()}
    tensors["dummy_ta_embed"] = tensors.pop(published.BACKBONE + "dummy_ta_embed")
    adapted = side.state_dict()
    tensors |= {name: adapted.pop(name) for name in (published.INSTRUCTION, published.INSTRUCTION_LENGTHS)}
    # Published stacked.
    for kind in ("weight", "bias"):
        parts = [adapted.pop(f"attn.to_{name}.{kind}") for name in "qkv"]
        adapted[f"attn.in_proj_{kind}"] = torch.cat(parts)
    tensors |= {published.ADAPTER + name: tensor for name, tensor in adapted.items()}
    of_text = {name: tensor for name, tensor in text.state_dict().items() if name[:3] != "t5." and tensor.numel()}
    return tensors | {published.PROJECTION + name: tensor for name, tensor in of_text.items()}


def local_duration_shapes(config: dict) -> Shapes:
    """Of the predictor of local durations, which is published and which no text-to-audio path reads."""
    width, kernel = config["duration_predictor_filter_channels"], config["duration_predictor_kernel_size"]
    shapes: Shapes = {"linear.weight": (1, width), "linear.bias": (1,)}
    for layer in range(config["duration_predictor_n_layers"]):
        shapes[f"conv.{layer}.1.weight"] = (width, width if layer else config["content_dim"], kernel)
        shapes |= {f"conv.{layer}.{name}": (width,) for name in ("1.bias", "3.weight", "3.bias")}
    return {published.LOCAL_DURATIONS + name: shape for name, shape in shapes.items()}


def t5_shapes(configs: dict[str, dict]) -> Shapes:
    shapes = {name.removeprefix("t5."): shape for name, shape in _shapes(make_text_encoder(configs)).items()}
    return {
        name: shape for name, shape in shapes.items() if name.startswith(("shared.", "encoder.block.", "encoder.f"))
    }


def audio_tokenizer_shapes(configs: dict[str, dict]) -> Shapes:
    config = configs["audio_tokenizer"]
    width, n_fft = config["embed_dim"], config["istft_n_fft"]
    vit = encoder.Encoder(
        EncoderConfig(
            embed_dim=width,
            depth=config["depth"],
            num_heads=config["num_heads"],
            mlp_dim=4 * width,
            semantic_mels=MELS,
            acoustic_mels=config["n_mels_patch"],
            patch_frames=PATCH_FRAMES,
            window_patches=WINDOW_PATCHES,
            hop_length=SAMPLES_PER_FRAME // PATCH_FRAMES,
        ),
        device="meta",
    )
    derived = {
        "decoder.head.istft.window": (n_fft,),
        "encoder.front_end.mel_spec.mel_scale.fb": (513, config["n_mels_patch"]),
        "encoder.front_end.mel_spec.spectrogram.window": (1024,),
        "encoder.model.front_end.0.mel_scale.fb": (257, MELS),
        "encoder.model.front_end.0.spectrogram.window": (512,),
        "encoder.model.init_bn.1.num_batches_tracked": (),
    }
    return (
        _shapes(make_decoder(configs))
        | {published.ENCODER + name: shape for name, shape in _shapes(vit).items()}
        | derived
    )


# The modules those are read off, on the meta device


def make_backbone(configs: dict[str, dict], dtype=torch.float32) -> backbone.Backbone:
    config = configs["audiogen"]
    sizes = BackboneConfig(
        latent_dim=config["latent_dim"],
        embed_dim=config["dit_embed_dim"],
        depth=config["dit_depth"],
        num_heads=config["dit_num_heads"],
        mlp_dim=int(config["dit_embed_dim"] * config["dit_mlp_ratio"]),
        context_dim=config["dit_context_dim"],
        ta_context_dim=config["dit_ta_context_dim"],
    )
    return backbone.Backbone(sizes, device="meta", dtype=dtype)


def make_adapter(configs: dict[str, dict], dtype=torch.float32) -> adapter.ContentAdapter:
    config = configs["audiogen"]
    sizes = AdapterConfig(
        content_dim=config["content_dim"],
        num_heads=config["adapter_num_heads"],
        instruction_seq_len=config["instruction_seq_len"],
        use_zero_instruction=config["use_zero_instruction"],
        duration_offset=config["duration_offset"],
        max_tokens=config["tokenizer_max_length"],
        special_tokens=tuple(config["special_tokens"]),
    )
    return adapter.ContentAdapter(sizes, device="meta", dtype=dtype)


def make_text_encoder(configs: dict[str, dict], dtype=torch.float32) -> text_encoder.TextEncoder:
    audiogen, config = configs["audiogen"], T5Config(**configs["text_encoder"])
    special_token_ids = list(range(len(audiogen["special_tokens"])))
    return text_encoder.TextEncoder(config, audiogen["content_dim"], special_token_ids, device="meta", dtype=dtype)


def make_decoder(configs: dict[str, dict], dtype=torch.float32) -> decoder.Decoder:
    config = configs["audio_tokenizer"]
    sizes = DecoderConfig(
        latent_dim=config["embed_dim"],
        dim=config["decoder_embed_dim"],
        depth=config["decoder_depth"],
        intermediate_dim=config["decoder_intermediate_size"],
        n_fft=config["istft_n_fft"],
        hop_length=config["istft_hop"],
    )
    return decoder.Decoder(sizes, device="meta", dtype=dtype)


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def make_tokenizer() -> Tokenizer:
    """One token per character: T5's three first tokens, then printable ASCII."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*special, "▁", *(chr(code) for code in range(ord("!"), ord("~") + 1))]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i > 2)) for i, piece in enumerate(pieces)], unk_id=2))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


if __name__ == "__main__":
    sys.exit(main())
