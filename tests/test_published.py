"""The table of published names says what a file may lack, and is right."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from conftest import GOLDEN, load_model
from dasheng_core import CheckpointError
from dasheng_core.weights.published import AUDIO_TOKENIZER, AUDIOGEN, TEXT_ENCODER, Names

PROMPT = "<|caption|> Rain."
TABLES = {"audiogen": AUDIOGEN, "text_encoder": TEXT_ENCODER, "audio_tokenizer": AUDIO_TOKENIZER}
ENTRIES = [(part, names) for part, table in TABLES.items() for names in table]


@pytest.fixture(params=ENTRIES, ids=lambda entry: f"{entry[0]}-{entry[1].prefix}")
def without(request, tmp_path) -> tuple:
    """The golden checkpoints without the tensors of one entry of the table; and that entry."""
    part, names = request.param
    # The multilingual one has special tokens, the other has none.
    shutil.copytree(GOLDEN / "tiny", tmp_path, dirs_exist_ok=True)
    file = tmp_path / part / "model.safetensors"
    tensors = load_file(file)
    if names.prefix == "shared." and "encoder.embed_tokens.weight" not in tensors:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    save_file({name: t for name, t in tensors.items() if not name.startswith(names.prefix)}, file, {"format": "pt"})
    return tmp_path, part, names


def test_what_may_be_absent_may_and_nothing_else(without):
    folder, part, names = without
    if names.absent is None:
        with pytest.raises(CheckpointError, match=str(folder / part)):
            load_model(folder)
        return
    whole, lacking = load_model(GOLDEN / "tiny"), load_model(folder)
    arguments = dict(num_steps=1, seed=1, duration=0.4)
    assert (whole.generate(PROMPT, **arguments) - lacking.generate(PROMPT, **arguments)).abs().max() < 1e-5
    if (part, names.prefix) == ("audio_tokenizer", "encoder."):
        with pytest.raises(CheckpointError, match="holds a decoder only"):
            lacking.encode(whole.generate(PROMPT, **arguments))


def test_every_tensor_of_a_published_file_is_in_the_table():
    for golden in ("tiny", "tiny_multilingual"):
        for part, table in TABLES.items():
            known = tuple(names.prefix for names in table)
            names = load_file(GOLDEN / golden / part / "model.safetensors")
            assert isinstance(table[0], Names) and not [name for name in names if not name.startswith(known)]
