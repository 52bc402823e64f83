"""Checkpoints of the published sizes: what the tool writes, and the memory that loading takes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conftest import GOLDEN, load_model
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from tools.comfyui import ROOT
from tools.random_checkpoint import (
    FULL,
    PARTS,
    count_parameters,
    main,
    make_configs,
    tensor_shapes,
    write_checkpoints,
)

PROMPT = "<|caption|> Rain on a tin roof."
MEDIUM = replace(FULL, embed_dim=768, num_heads=12, depth=4)


@pytest.mark.parametrize("multilingual", [False, True], ids=["english", "multilingual"])
def test_full_size_has_the_published_number_of_parameters(multilingual):
    configs = make_configs(FULL, multilingual)
    shapes = {part: tensor_shapes(part, configs) for part in PARTS}

    def millions(part, *prefixes):
        return round(count_parameters({n: s for n, s in shapes[part].items() if n.startswith(prefixes or "")}) / 1e6)

    backbone = {n: s for n, s in shapes["audiogen"].items() if n.startswith("backbone.") and "inv_freq" not in n}
    assert count_parameters(backbone) == 2_173_419_520
    assert millions("audiogen", "content_adapter.", "instruction_embedding") == 11
    assert (millions("audiogen"), len(shapes["audiogen"])) == ((2186, 1311) if multilingual else (2186, 1310))
    assert millions("text_encoder") == (564 if multilingual else 341)
    assert millions("audio_tokenizer") == 805
    assert millions("audio_tokenizer", "encoder.") == 631
    assert millions("audio_tokenizer", "decoder.", "upsampler.") == 174


@pytest.mark.parametrize("published", ["tiny", "tiny_multilingual"])
def test_names_and_shapes_are_the_published_ones(published):
    """For the sizes of a checkpoint written by the published model itself."""
    folder = GOLDEN / published
    configs = {part: json.loads((folder / part / "config.json").read_text("utf-8")) for part in PARTS}
    for part in PARTS:
        expected = open_checkpoint(folder / part / "model.safetensors", ()).shapes
        assert tensor_shapes(part, configs) == expected


@pytest.mark.parametrize("options", [("--multilingual",), ("--dtype", "bf16")], ids=str)
def test_what_the_tool_writes_loads_and_sounds(tmp_path, options):
    out = tmp_path / "random"
    assert main([str(out), "--size", "tiny", *options]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["random"]
    model = load_model(out, dtype=torch.bfloat16 if "bf16" in options else torch.float32)
    audio = model.generate(PROMPT, num_steps=2, seed=1, duration=0.4)
    assert audio.shape == (1, 6400) and audio.isfinite().all() and audio.std() > 1e-4
    other = model.generate(PROMPT.replace("tin", "tile"), num_steps=2, seed=1, duration=0.4)
    assert not torch.equal(audio, other), "the prompt is heard"
    assert 200 <= model.encode_text(PROMPT)[2] <= 300, "the estimate is about 10 s"
    assert model.encode(audio).isfinite().all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_never_held_twice(tmp_path):
    """They are read, and converted to bfloat16, one by one."""
    medium = tmp_path / "out"
    write_checkpoints(medium, MEDIUM, multilingual=False, dtype=torch.float32, seed=0, parts=("audiogen",))
    command = [sys.executable, "-m", "benchmarks.load", str(medium), "--part", "backbone", "--dtype", "bf16"]
    # What the system takes from a process before and gives back while it loads counts as a peak, in some runs.
    runs = [json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout) for _ in range(3)]
    found = min(runs, key=lambda run: run["peak"])
    shapes = open_checkpoint(medium / "audiogen", AUDIOGEN_TYPES).shapes
    backbone = {n: s for n, s in shapes.items() if n.startswith("backbone.") and "inv_freq" not in n}
    assert found["kept"] >= count_parameters(backbone) * 2
    assert found["peak"] <= 1.15 * found["kept"]
