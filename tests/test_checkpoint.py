"""Checkpoints on disk: every layout loads the same, what may be absent may, and nothing wrong is loaded quietly."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, SETS, deviation, load_model, same_weights
from dasheng_core import CheckpointError, DashengAudioGen
from dasheng_core.backbone import load_backbone
from dasheng_core.weights.checkpoint import Checkpoint, open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from dasheng_core.weights.published import AUDIO_TOKENIZER, AUDIOGEN, TEXT_ENCODER
from mutations import FORMS, PARTS, make_forms

PROMPT = "<|caption|> A cat meowing softly."
TABLES = {"audiogen": AUDIOGEN, "text_encoder": TEXT_ENCODER, "audio_tokenizer": AUDIO_TOKENIZER}


@pytest.fixture
def copy(tmp_path):
    """A copy of the small English checkpoint to damage."""
    shutil.copytree(GOLDEN / "tiny", tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The small checkpoint's parts in every form that is read."""
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder)
    return folder


def change_tensors(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def same_model(a: DashengAudioGen, b: DashengAudioGen) -> bool:
    sound, other = (model.generate(PROMPT, num_steps=2, seed=1, duration=0.4) for model in (a, b))
    return same_weights(a, b) and deviation(sound, other) <= 1e-5


@pytest.mark.parametrize("part, form", [key for key in FORMS if key[1] in ("zip", "legacy", "sharded")])
def test_other_published_layouts_load_the_same(copy, tiny, forms, part, form):
    paths = {name: copy / name for name in PARTS} | {part: forms / f"{part}-{form}"}
    assert same_model(DashengAudioGen.from_pretrained(*paths.values()), tiny)


def test_one_shard_stands_for_all(copy, tiny, forms):
    shutil.copytree(forms / "audiogen-sharded", copy / "sharded")
    first, second = sorted((copy / "sharded").glob("model-*.safetensors"))
    assert same_model(DashengAudioGen.from_pretrained(second, copy / "text_encoder", copy / "audio_tokenizer"), tiny)
    first.unlink()
    with pytest.raises(FileNotFoundError, match=f"{first.name}, not found beside it"):
        open_checkpoint(second, AUDIOGEN_TYPES)


def test_sizes_and_backbone_heads_are_read_off_a_lone_file(copy):
    expected = load_backbone(open_checkpoint(copy / "audiogen", AUDIOGEN_TYPES)).config
    (copy / "audiogen" / "config.json").unlink()
    checkpoint = open_checkpoint(copy / "audiogen" / "model.safetensors", AUDIOGEN_TYPES)
    assert checkpoint.config is None and load_backbone(checkpoint).config == expected
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
    for part in PARTS:
        for name in ("safetensors", "config.json", "tokenizer.json"):
            source = copy / part / ("model.safetensors" if name == "safetensors" else name)
            if source.exists():
                shutil.copy(source, flat / f"{part}.{name}")
    (flat / "config.json").write_text("{}")
    (flat / "tokenizer.json").write_text("another model's")
    assert same_model(DashengAudioGen.from_pretrained(*(flat / f"{part}.safetensors" for part in PARTS)), tiny)


@pytest.mark.parametrize(
    "part, changes, sentence",
    [
        ("audiogen", {"dit_num_heads": 8}, "dit_num_heads is 8 in config.json, but the tensors say 4"),
        ("audiogen", {"instruction_seq_len": 3}, "instruction_seq_len is 3 in config.json, but the tensors say 14"),
        ("audiogen", {"special_tokens": ["<|caption|>"]}, "special_tokens has 1 entries"),
        ("audiogen", {"dit_act_layer": "gelu"}, "dit_act_layer is 'gelu' in config.json; only 'geglu'"),
        ("audiogen", {"adapter_num_heads": 5}, "adapter_num_heads 5 does not divide the width 32"),
        ("text_encoder", {"num_heads": 2}, "num_heads is 2 in config.json, but the tensors say 4"),
        ("audio_tokenizer", {"decoder_depth": 7}, "decoder_depth is 7 in config.json, but the tensors say 2"),
        ("audio_tokenizer", {"istft_hop": 160}, "istft_hop 160 x upsample_tokens 2 is not the 640 samples"),
        # Of another type.
        ("audiogen", {"special_tokens": "abc"}, "special_tokens is .* expected a list of different texts"),
        ("audiogen", {"tokenizer_max_length": 1}, "tokenizer_max_length is 1 .* expected a whole number from 2"),
        ("audiogen", {"duration_offset": float("nan")}, "duration_offset is nan in config.json, expected a number"),
        ("audiogen", {"use_zero_instruction": 1}, "use_zero_instruction is 1 .* expected true or false"),
        ("text_encoder", {"layer_norm_epsilon": []}, "layer_norm_epsilon is .* expected a number"),
        ("audio_tokenizer", {"istft_hop": "320"}, "istft_hop is '320' in config.json, expected a whole number"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_tensors_is_refused(copy, part, changes, sentence):
    path = copy / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=f"{part}: {sentence}"):
        load_model(copy)


def test_a_null_in_a_config_is_no_value(copy):
    path = copy / "audiogen" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_max_length": None, "dit_depth": None}))
    assert load_model(copy).tokenizer.max_tokens == 512


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("backbone.in_blocks.1.norm1.weight", lambda tensor: tensor[:1], r"has shape \[1\], expected \[48\]"),
        ("backbone.mid_block.extra", lambda tensor: torch.zeros(2), "unexpected mid_block.extra"),
        ("unet.extra", lambda tensor: torch.zeros(2), "holds tensors this model does not have: unet.extra"),
        ("backbone.time_ada_final.bias", torch.Tensor.long, "is torch.int64, expected torch.float32"),
    ],
)
def test_unexpected_and_misshapen_tensors_are_named(copy, name, change, sentence):
    path = copy / "audiogen" / "model.safetensors"
    change_tensors(path, lambda tensors: tensors.update({name: change(tensors.get(name)).clone()}))
    with pytest.raises(CheckpointError, match=sentence):
        load_model(copy)


@pytest.mark.parametrize("part, names", [(part, names) for part, table in TABLES.items() for names in table], ids=str)
def test_what_may_be_absent_may_and_nothing_else(copy, tiny, part, names):
    """By the table of published names, one entry after the other."""

    def drop(tensors):
        if names.prefix == "shared." and "encoder.embed_tokens.weight" not in tensors:
            tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
        for name in [name for name in tensors if name.startswith(names.prefix)]:
            del tensors[name]

    change_tensors(copy / part / "model.safetensors", drop)
    if names.absent is None:
        with pytest.raises(CheckpointError, match=str(copy / part)):
            load_model(copy)
        return
    lacking, options = load_model(copy), dict(num_steps=1, seed=1, duration=0.4)
    assert deviation(lacking.generate(PROMPT, **options), tiny.generate(PROMPT, **options)) < 1e-5
    if (part, names.prefix) == ("audio_tokenizer", "encoder."):
        with pytest.raises(CheckpointError, match="holds a decoder only"):
            lacking.encode(torch.zeros(1, 16000))


@pytest.mark.parametrize("golden", SETS)
def test_every_tensor_of_a_published_file_is_in_the_table(golden):
    for part, table in TABLES.items():
        known = tuple(names.prefix for names in table)
        tensors = load_file(GOLDEN / golden / part / "model.safetensors")
        assert not [name for name in tensors if not name.startswith(known)]


def test_text_to_audio_reads_neither_t5_decoder_nor_audio_encoder(copy, tiny, monkeypatch):
    more = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(3), "lm_head.weight": torch.zeros(3)}
    change_tensors(copy / "text_encoder" / "model.safetensors", lambda tensors: tensors.update(more))
    read, original = [], Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: read.append(name) or original(self, name))
    model = load_model(copy)
    assert same_model(model, tiny)
    assert not [name for name in read if name in more or name.startswith(("encoder.model", "encoder.patch_embed"))]
    model.encode(torch.zeros(1, 16000))
    assert [name for name in read if name.startswith("encoder.model")]


def test_only_spiece_model_beside_the_text_encoder(copy, forms):
    """mT5 publishes its tokenizer as a sentencepiece model alone: prompts must become the same pieces."""
    import sentencepiece

    (copy / "text_encoder" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"put tokenizer.json \(or spiece.model\) beside it"):
        load_model(copy)
    shutil.copy(forms / "text_encoder-spiece" / "spiece.model", copy / "text_encoder")
    texts = ["<|caption|> rain on a tin roof", "<|caption|> thunder"]
    ids, mask = load_model(copy).tokenizer(texts)
    pieces = sentencepiece.SentencePieceProcessor(str(copy / "text_encoder" / "spiece.model"))
    first, short = (pieces.encode(text) + [1] for text in texts)
    assert ids[0].tolist() == first
    assert ids[1].tolist() == short + [0] * (len(first) - len(short)) and mask[1].sum() == len(short)


def test_a_text_encoder_of_another_width_is_refused():
    parts = (
        GOLDEN / "tiny" / "audiogen",
        GOLDEN / "tiny_multilingual" / "text_encoder",
        GOLDEN / "tiny" / "audio_tokenizer",
    )
    with pytest.raises(
        CheckpointError, match="this text encoder is 48 wide, .* width 32: use the one its config.json na"
    ):
        DashengAudioGen.from_pretrained(*parts)


def test_a_lone_file_of_another_part_is_said_to_be_that(copy):
    with pytest.raises(CheckpointError, match="is an audio tokenizer, expected another part of the model"):
        load_backbone(open_checkpoint(copy / "audio_tokenizer" / "model.safetensors", AUDIOGEN_TYPES))


def test_a_tokenizer_of_another_text_encoder_is_refused(copy):
    path = copy / "text_encoder" / "tokenizer.json"
    text = path.read_text("utf-8")
    tokenizer = json.loads(text)
    tokenizer["model"]["vocab"] += [[f"extra{i}", -9.0] for i in range(10)]
    path.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(CheckpointError, match="more than the 152 of .*: it belongs to another text encoder"):
        load_model(copy)
    tokenizer = json.loads(text)
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [5000]
    path.write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(CheckpointError, match="tokenizer.json makes token 5000 .* text encoder has 152 tokens"):
        load_model(copy).encode_text(PROMPT)


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


@pytest.mark.parametrize("stored, run", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)])
def test_the_text_encoder_runs_in_bfloat16_when_its_weights_are_and_never_in_float16(copy, stored, run):
    path = copy / "text_encoder" / "model.safetensors"
    change_tensors(path, lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    assert {p.dtype for p in load_model(copy).text_encoder.parameters()} == {run}
