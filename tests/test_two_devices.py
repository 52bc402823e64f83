"""Partial loading between a CPU and a GPU that is not there: which layers stay off it, and that the rest reach them.

See fake_gpu.py. What it cannot show: the numbers (test_small_memory.py does), streams, and pinned memory.
"""

import json
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dasheng_core.repack import repack_checkpoint
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIOGEN_TYPES
from tools.comfyui import ROOT, run_in_comfyui
from tools.random_checkpoint import TINY, write_checkpoints
from tools.write_gguf import write_gguf


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    out = tmp_path_factory.mktemp("two_devices") / "out"
    write_checkpoints(out, replace(TINY, embed_dim=64), multilingual=False, dtype=torch.float32, seed=0)
    repack_checkpoint(out / "audiogen", out / "fp8.safetensors", "fp8")
    write_gguf(open_checkpoint(out / "audiogen", AUDIOGEN_TYPES), out / "Q8_0.gguf", "Q8_0")
    lora = {"lora_up.weight": torch.randn(64, 4), "lora_down.weight": torch.randn(4, 64)}
    keys = ("in_blocks.1.attn.to_q", "out_blocks.0.cross_attn.proj", "mid_block.attn.proj")
    save_file(
        {f"diffusion_model.{key}.{n}": t.clone() for key in keys for n, t in lora.items()}, out / "lora.safetensors"
    )
    return out


def on_fake_gpu(part: str, *files: Path, fractions=(2.0, 0.5, 0.0)) -> list[dict]:
    """For each fraction of the weights that may be loaded, where the result and the parameters were."""
    script, parts = ROOT / "tests" / "fake_gpu.py", ",".join(map(str, fractions))
    run = run_in_comfyui(script, part, parts, *files, capture_output=True)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize(
    "file, lora",
    [
        ("fp8.safetensors", True),
        *(
            pytest.param(file, lora, marks=pytest.mark.full)
            for file, lora in product(("audiogen/model.safetensors", "fp8.safetensors", "Q8_0.gguf"), (False, True))
            if (file, lora) != ("fp8.safetensors", True)
        ),
    ],
)
def test_layers_left_off_the_gpu_compute_on_it(out, file, lora):
    files = [out / file] + ([out / "lora.safetensors"] if lora else [])
    whole, half, nothing = on_fake_gpu("model", *files)
    assert {state["result"] for state in (whole, half, nothing)} == {"cuda:0"}
    assert whole.get("cpu", 0) == 0 and whole["cuda:0"] > 100
    assert half["cpu"] > 0 and half["cuda:0"] > 0
    assert nothing["cpu"] == whole["cuda:0"]


def test_the_decoder_is_loaded_in_part(out):
    states = on_fake_gpu("decoder", out / "audio_tokenizer" / "model.safetensors", fractions=(2.0, 0.9, 0.0))
    assert {state["result"] for state in states} == {"cuda:0"}
    assert "cpu" not in states[0] and "cuda:0" not in states[2]


def test_the_text_encoder_is_loaded_whole(out):
    states = on_fake_gpu("clip", out / "text_encoder" / "model.safetensors", out / "audiogen" / "model.safetensors")
    assert {state["result"] for state in states} == {"cuda:0"}
    assert [state.get("cpu", 0) for state in states] == [0, 0, 0]
