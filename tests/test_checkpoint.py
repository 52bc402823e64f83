"""Checkpoints on disk: every layout loads the same, and nothing wrong is loaded quietly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, deviation, load_model, same_weights
from dasheng_core import CheckpointError, DashengAudioGen
from dasheng_core.weights.checkpoint import Checkpoint, open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES

PROMPT = "<|caption|> A cat meowing softly."


@pytest.fixture
def copy(tmp_path):
    """A copy of the small English checkpoint to damage."""
    shutil.copytree(GOLDEN / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_model(a: DashengAudioGen, b: DashengAudioGen) -> bool:
    sound, other = (model.generate(PROMPT, num_steps=2, seed=1) for model in (a, b))
    return same_weights(a, b) and deviation(sound, other) <= 1e-5


def as_sharded(folder):
    tensors = load_file(folder / "model.safetensors")
    names = list(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("convert", [as_sharded, as_pickle])
def test_other_published_layouts_load_the_same(copy, tiny, convert):
    for folder in copy.iterdir():
        if folder.is_dir():
            convert(folder)
    assert same_model(load_model(copy), tiny)


def test_one_shard_stands_for_all(copy, tiny):
    as_sharded(copy / "audiogen")
    shard = copy / "audiogen" / "model-00002-of-00002.safetensors"
    model = DashengAudioGen.from_pretrained(shard, copy / "text_encoder", copy / "audio_tokenizer")
    assert same_model(model, tiny)
    (copy / "audiogen" / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors, not found beside it"):
        open_checkpoint(shard, AUDIOGEN_TYPES)


def test_sizes_and_backbone_heads_are_read_off_a_lone_file(copy):
    from dasheng_core.backbone import load_backbone

    expected = load_backbone(open_checkpoint(copy / "audiogen", AUDIOGEN_TYPES)).config
    lone = copy / "audiogen" / "model.safetensors"
    (copy / "audiogen" / "config.json").unlink()
    checkpoint = open_checkpoint(lone, AUDIOGEN_TYPES)
    assert checkpoint.config is None and load_backbone(checkpoint).config == expected


def test_head_counts_that_tensors_do_not_tell_are_not_guessed(copy):
    (copy / "audiogen" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="tensors of width 32 do not give adapter_num_heads: put config.json"):
        load_model(copy)


def test_a_config_of_another_model_beside_a_lone_file_is_not_used(copy):
    (copy / "audiogen" / "config.json").write_text(json.dumps({"model_type": "flux", "dit_depth": 99}))
    assert open_checkpoint(copy / "audiogen" / "model.safetensors", AUDIOGEN_TYPES).config is None
    with pytest.raises(CheckpointError, match="model_type is 'flux', expected dasheng_audiogen"):
        open_checkpoint(copy / "audiogen", AUDIOGEN_TYPES)


def test_side_files_can_be_named_after_a_lone_file(copy, tiny):
    """Flat folders, as ComfyUI's are: each file has its own config and tokenizer beside it."""
    flat = copy.parent / "flat"
    flat.mkdir()
    for part in ("audiogen", "text_encoder", "audio_tokenizer"):
        shutil.copy(copy / part / "model.safetensors", flat / f"{part}.safetensors")
        shutil.copy(copy / part / "config.json", flat / f"{part}.config.json")
    shutil.copy(copy / "text_encoder" / "tokenizer.json", flat / "text_encoder.tokenizer.json")
    (flat / "config.json").write_text("{}")
    (flat / "tokenizer.json").write_text("another model's")
    parts = (flat / f"{part}.safetensors" for part in ("audiogen", "text_encoder", "audio_tokenizer"))
    assert same_model(DashengAudioGen.from_pretrained(*parts), tiny)


@pytest.mark.parametrize(
    "part, changes, sentence",
    [
        ("audiogen", {"dit_depth": 6}, "dit_depth is 6 in config.json, but the tensors say 4"),
        ("audiogen", {"dit_num_heads": 8}, "dit_num_heads is 8 in config.json, but the tensors say 4"),
        ("audiogen", {"instruction_seq_len": 3}, "instruction_seq_len is 3 in config.json, but the tensors say 14"),
        ("audiogen", {"special_tokens": ["<|caption|>"]}, "special_tokens has 1 entries"),
        ("audiogen", {"dit_act_layer": "gelu"}, "dit_act_layer is 'gelu' in config.json; only 'geglu'"),
        ("audiogen", {"adapter_num_heads": 5}, "adapter_num_heads 5 does not divide the width 32"),
        ("text_encoder", {"num_heads": 2}, "num_heads is 2 in config.json, but the tensors say 4"),
        ("audio_tokenizer", {"decoder_depth": 7}, "decoder_depth is 7 in config.json, but the tensors say 2"),
        ("audio_tokenizer", {"istft_hop": 160}, "istft_hop 160 x upsample_tokens 2 is not the 640 samples"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_tensors_is_refused(copy, part, changes, sentence):
    edit_config(copy / part, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(copy)


@pytest.mark.parametrize(
    "part, name, change, sentence",
    [
        ("audiogen", "backbone.time_ada_final.bias", "drop", "missing time_ada_final.bias"),
        ("audiogen", "dummy_ta_embed", "drop", "missing dummy_ta_embed"),
        ("audiogen", "backbone.in_blocks.1.norm1.weight", "cut", r"has shape \[1\], expected \[48\]"),
        ("audiogen", "backbone.mid_block.extra", "add", "unexpected mid_block.extra"),
        ("audiogen", "unet.extra", "add", "holds tensors this model does not have: unet.extra"),
        ("audiogen", "content_adapter.attn.in_proj_bias", "drop", "missing attn.to_q.bias"),
        ("text_encoder", "encoder.final_layer_norm.weight", "cut", r"final_layer_norm.weight has shape \[1\]"),
        ("audio_tokenizer", "decoder.head.out.bias", "drop", "missing decoder.head.out.bias"),
    ],
    ids=str,
)
def test_missing_unexpected_and_misshapen_tensors_are_named(copy, part, name, change, sentence):
    path = copy / part / "model.safetensors"
    tensors = load_file(path)
    if change == "drop":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:1].clone() if change == "cut" else torch.zeros(2)
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(copy)


def test_text_to_audio_reads_neither_t5_decoder_nor_audio_encoder(copy, tiny, monkeypatch):
    path = copy / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    save_file(
        {**tensors, "decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(3), "lm_head.weight": torch.zeros(3)},
        path,
    )
    read = []
    original = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or original(self, name))
    model = load_model(copy)
    assert same_model(model, tiny)
    assert not [
        name for name in read if name.startswith(("decoder.block", "lm_head", "encoder.model", "encoder.patch_embed"))
    ]
    model.encode(torch.zeros(1, 16000))
    assert [name for name in read if name.startswith("encoder.model")]


def test_only_spiece_model_beside_the_text_encoder(copy, tmp_path):
    """mT5 publishes its tokenizer as a sentencepiece model alone: prompts must become the same pieces."""
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("rain on a tin roof\na cat meows softly\nthunder in the distance\n" * 50)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spiece"), vocab_size=60, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    (copy / "text_encoder" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"put tokenizer.json \(or spiece.model\) beside it"):
        load_model(copy)
    shutil.copy(tmp_path / "spiece.model", copy / "text_encoder")
    tokenizer = load_model(copy).tokenizer
    texts = ["<|caption|> rain on a tin roof", "<|caption|> thunder"]
    ids, mask = tokenizer(texts)
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
    assert ids[0].tolist() == pieces.encode(texts[0]) + [1]
    short = pieces.encode(texts[1]) + [1]
    assert ids[1].tolist() == short + [0] * (ids.shape[1] - len(short)) and mask[1].sum() == len(short)


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(copy):
    path = copy / "text_encoder" / "tokenizer.json"
    tokenizer = json.loads(path.read_text("utf-8"))
    tokenizer["model"]["vocab"] += [[f"extra{i}", -9.0] for i in range(10)]
    path.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(CheckpointError, match="more than the 152 of .*: it belongs to another text encoder"):
        load_model(copy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_sensitive_parts_in_float32(dtype, tiny, bfloat16_everywhere):
    model = load_model(GOLDEN / "tiny", dtype=dtype)
    assert {p.dtype for p in model.backbone.parameters()} == {dtype}
    assert {p.dtype for p in model.decoder.decoder["backbone"].parameters()} == {dtype}
    assert {p.dtype for p in model.decoder.decoder["head"].parameters()} == {torch.float32}
    assert {p.dtype for p in model.text_encoder.parameters()} == {torch.float32}
    content, mask, frames = model.encode_text(PROMPT)
    latent = model.sample(content, mask, frames, seed=3, num_steps=4)
    expected = tiny.sample(*tiny.encode_text(PROMPT), seed=3, num_steps=4)
    assert latent.dtype == model.decode(latent).dtype == torch.float32
    assert (latent - expected).norm() / expected.norm() < 0.05
    assert not torch.equal(latent, latent.to(dtype).float()), "the latent state was rounded to half precision"


def test_the_text_encoder_runs_in_bfloat16_when_its_weights_are_and_never_in_float16(copy):
    path = copy / "text_encoder" / "model.safetensors"
    for stored, run in ((torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)):
        tensors = load_file(path)
        path.unlink()
        save_file({name: tensor.to(stored) for name, tensor in tensors.items()}, path)
        assert {p.dtype for p in load_model(copy).text_encoder.parameters()} == {run}


def test_layers_come_from_the_operations_handed_in():
    from dasheng_core.adapter import load_adapter
    from dasheng_core.audio_tokenizer.decoder import load_decoder
    from dasheng_core.audio_tokenizer.encoder import load_encoder
    from dasheng_core.backbone import load_backbone
    from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES, AdapterConfig

    kinds = ("Linear", "Conv1d", "Conv2d", "ConvTranspose1d", "LayerNorm")
    operations = type("Operations", (), {kind: type(kind, (getattr(torch.nn, kind),), {}) for kind in kinds})
    audiogen = open_checkpoint(GOLDEN / "tiny" / "audiogen", AUDIOGEN_TYPES)
    codec = open_checkpoint(GOLDEN / "tiny" / "audio_tokenizer", AUDIO_TOKENIZER_TYPES)
    adapter = AdapterConfig.from_checkpoint(audiogen)
    modules = [
        load_backbone(audiogen, operations),
        load_adapter(audiogen, adapter, operations),
        load_decoder(codec, operations),
        load_encoder(codec, operations),
    ]
    for module in modules:
        layers = [
            layer for layer in module.modules() if isinstance(layer, tuple(getattr(torch.nn, kind) for kind in kinds))
        ]
        assert layers and all(isinstance(layer, tuple(getattr(operations, kind) for kind in kinds)) for layer in layers)
        assert not any(isinstance(layer, torch.nn.MultiheadAttention) for layer in module.modules())
