"""Stopping: between pieces of every kind of file, between layers of every stage; and what runs afterwards is right."""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import soak
from conftest import GOLDEN, deviation
from dasheng_core.audio_tokenizer import decoder
from dasheng_core.audio_tokenizer.decoder import load_decoder
from dasheng_core.weights import reading
from dasheng_core.weights.checkpoint import open_checkpoint
from dasheng_core.weights.config import AUDIO_TOKENIZER_TYPES
from tools.comfyui import run_in_comfyui, small_disk
from tools.write_gguf import write_gguf

PUBLISHED = GOLDEN / "tiny" / "audio_tokenizer"
PIECE = 4096


class Stopped(Exception):
    """What a program raises to stop."""


@pytest.fixture(scope="module", params=["safetensors", "zip", "legacy", "gguf"])
def file(request, tmp_path_factory) -> Path:
    """An audio tokenizer in each form that is read."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gguf":
        write_gguf(open_checkpoint(PUBLISHED, AUDIO_TOKENIZER_TYPES), folder / "model.gguf", "F16")
        return folder / "model.gguf"
    shutil.copytree(PUBLISHED, folder, dirs_exist_ok=True)
    if request.param == "safetensors":
        return folder / "model.safetensors"
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "model.bin", _use_new_zipfile_serialization=request.param == "zip")
    return folder / "model.bin"


def load(file, poll):
    return load_decoder(open_checkpoint(file, AUDIO_TOKENIZER_TYPES, poll))


def test_a_poll_stops_the_reading_of_every_kind_of_file(file, monkeypatch):
    """It is called for each piece, what it raises comes out as it is, and the next load is whole."""
    monkeypatch.setattr(reading, "READ_BYTES", PIECE)
    plain = load(file, reading.never_stop).state_dict()
    polls = 0

    def poll():
        nonlocal polls
        polls += 1
        if polls == stop_at:
            raise Stopped("here")

    stop_at = None
    polled = load(file, poll).state_dict()
    assert all(torch.equal(polled[name], tensor) for name, tensor in plain.items())
    assert polls >= sum(-(-tensor.nbytes // (2 * PIECE)) for tensor in plain.values())
    for stop_at in (1, polls // 2, polls):
        polls = 0
        with pytest.raises(Stopped, match="here"):
            load(file, poll)
        assert polls == stop_at


@torch.inference_mode()
@pytest.mark.parametrize("clips, frames", [(1, 135), (5, 22)])
def test_pieces_decode_as_the_whole(tiny, monkeypatch, clips, frames):
    """One long clip, and a batch of short ones; a piece is the most that a layer is given."""
    latent = torch.randn(clips, tiny.latent_channels, frames, generator=torch.Generator().manual_seed(0))
    whole, blocks, rows = tiny.decoder(latent), tiny.decoder.decoder["backbone"].convnext, []
    reach = decoder.KERNEL // 2 * (1 + len(blocks))
    with contextlib.ExitStack() as stack:
        for block in blocks:
            hook = block.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:2].numel()))
            stack.callback(hook.remove)
        monkeypatch.setattr(decoder, "PIECE_FRAMES", 100)
        pieces = tiny.decoder(latent)
    assert deviation(pieces, whole) <= 1e-5
    assert len(rows) > len(blocks) and max(rows) <= 100 + 2 * reach


def needs_comfyui() -> Path:
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    return Path(os.environ["COMFYUI_PATH"])


def test_every_stage_stops_where_it_is_and_runs_again():
    needs_comfyui()
    script = Path(__file__).with_name("stages_stopped.py")
    done = run_in_comfyui(script, GOLDEN / "tiny", stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    stages, counts = found["stages"], found["counts"]
    for name, stage in stages.items():
        assert stage["stopped"] == [True] * 3 and stage["same"], (name, stage)
    looks = dict(load_clip="clip", load_model="model", load_vae="decoder", encode="encoder", read="blocks")
    assert all(stages[stage]["looks"] >= counts[part] for stage, part in looks.items())


@pytest.mark.full
def test_a_short_soak(tmp_path):
    """Results stay right between interrupts, refusals and freed memory; the long form watches memory too."""
    found = soak.soak(needs_comfyui(), tmp_path / "soak", 30)
    assert found.wrong == []
    assert (found.right, found.interrupted, found.refused, found.freed) == (30, 3, 3, 2)
    assert found.again >= 5 and found.memory[30] > 0


@pytest.mark.full
def test_what_was_finished_outlives_a_kill_and_a_full_disk(tmp_path):
    comfyui = needs_comfyui()
    with small_disk(tmp_path / "base" / "output", soak.DISK) as disk:
        found = soak.mishaps(comfyui, tmp_path / "base", disk)
    assert found.wrong == []
    assert found.right == (8 if disk else 7) and found.refused == bool(disk)
