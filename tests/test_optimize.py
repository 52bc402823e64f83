"""Compiled blocks and graphs: what they give, when graphs are made, kept, refreshed and given up.

A machine without a GPU has nothing to capture with: a stand-in for the two methods of the capture computes anew from
the captured tensors at each replay, so that all that is decided around them is tested here.
"""

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.random_weights import backbone_config, random_backbone
from conftest import GOLDEN
from dasheng_core import optimize
from dasheng_core.__main__ import main
from dasheng_core.optimize import KEPT_GRAPHS, Optimizer
from dasheng_core.sampling import SamplingOptions, denoise
from dev import ROOT
from test_prepared import inputs, relative
from tools.random_checkpoint import TINY

OPTIONS = SamplingOptions(5)


class Capture:
    """In place of :class:`dasheng_core.optimize.CudaCapture`."""

    made: list["Capture"] = []

    def __init__(self):
        self.replays = 0
        Capture.made.append(self)

    def capture(self, function):
        self.function, self.output = function, function()
        return self.output

    def replay(self):
        self.replays += 1
        outputs, computed = ((x if isinstance(x, tuple) else (x,)) for x in (self.output, self.function()))
        for output, tensor in zip(outputs, computed, strict=True):
            output.copy_(tensor)


@pytest.fixture
def graphs(monkeypatch) -> Optimizer:
    # Where graphs are made nothing is packed: a packed copy is a CPU's, and no replay brings it up to date.
    monkeypatch.setattr("dasheng_core.layers.spare_memory", lambda: 0)
    Capture.made = []
    return Optimizer("graph", Capture)


@pytest.fixture
def backbone():
    return random_backbone(backbone_config(TINY))


def sample(backbone, optimizer=None, options=OPTIONS, **shape):
    with torch.inference_mode():
        return denoise(backbone, *inputs(backbone.config, **{"items": 1, **shape}), options, optimizer=optimizer)


def replays() -> list[int]:
    return [capture.replays for capture in Capture.made]


def test_one_graph_serves_all_steps_and_later_calls(backbone, graphs):
    """Another prompt, schedule and noise of the same shapes: the same graph, with their numbers."""
    assert torch.equal(sample(backbone, graphs), sample(backbone))
    assert replays() == [5]
    for seed, options in ((1, OPTIONS), (2, SamplingOptions(7, sway_sampling_coef=0.4))):
        assert torch.equal(sample(backbone, graphs, options, seed=seed), sample(backbone, options=options, seed=seed))
    assert replays() == [5 + 5 + 7]


def test_skip_cache_is_two_graphs_one_of_them_short(backbone, graphs):
    options = SamplingOptions(8, skip_cache=1)
    for seed in (0, 1):
        expected = sample(backbone, options=options, seed=seed)
        assert torch.equal(sample(backbone, graphs, options, seed=seed), expected)
        assert not torch.equal(expected, sample(backbone, options=SamplingOptions(8), seed=seed))
    assert replays() == [2 * 6, 2 * 2]


def test_weights_changed_in_place_are_the_graphs_too(backbone, graphs):
    """As a LoRA does it: also those that are copied side by side, and those that tables are computed from."""
    before = sample(backbone, graphs)
    block = backbone.mid_block
    for layer in (block.attn.to_q, block.adaln.time_ada, block.cross_attn.to_v, block.mlp.net[2]):
        layer.weight.data.mul_(1.5)
    after = sample(backbone, graphs)
    assert replays() == [10] and torch.equal(after, sample(backbone)) and not torch.equal(after, before)


def test_weights_that_moved_have_another_graph(backbone, graphs):
    sample(backbone, graphs)
    backbone.mid_block.mlp.net[2].weight = torch.nn.Parameter(2 * backbone.mid_block.mlp.net[2].weight)
    assert torch.equal(sample(backbone, graphs), sample(backbone))
    assert replays() == [5, 5] and len(graphs._graphs) == 1, "the first reads weights that are gone"


@pytest.mark.parametrize("change", [{"frames": 41}, {"tokens": 8}, {"items": 2}, {"options": SamplingOptions(5, 2.0)}])
def test_another_shape_has_another_graph(backbone, graphs, change):
    sample(backbone, graphs)
    assert torch.equal(sample(backbone, graphs, **change), sample(backbone, **change))
    sample(backbone, graphs)
    assert replays() == [10, 5]


def test_few_graphs_are_kept_the_least_used_one_goes(backbone, graphs):
    first, *others = range(30, 30 + KEPT_GRAPHS + 1)
    for frames in (first, *others[:-1], first, others[-1], first):
        sample(backbone, graphs, frames=frames)
    assert len(graphs._graphs) == KEPT_GRAPHS and replays()[0] == 15
    graphs.free()
    sample(backbone, graphs, frames=first)
    assert replays() == [15] + [5] * (KEPT_GRAPHS + 1)


def test_two_calls_at_once_do_not_mix(backbone, graphs):
    """The second starts, and ends, inside the first."""
    inner = []

    def callback(done, total):
        if done == 2:
            inner.append(sample(backbone, graphs, seed=8))

    with torch.inference_mode():
        outer = denoise(backbone, *inputs(backbone.config, items=1), OPTIONS, callback=callback, optimizer=graphs)
    assert torch.equal(outer, sample(backbone)) and torch.equal(inner[0], sample(backbone, seed=8))


def test_a_capture_that_fails_is_said_once_and_done_without(backbone, caplog):
    class Failing(Capture):
        def capture(self, function):
            raise RuntimeError("out of memory\nmore")

    optimizer = Optimizer("graph", Failing)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert torch.equal(sample(backbone, optimizer), sample(backbone))
    assert [record.getMessage() for record in caplog.records] == [
        "No graph could be captured (out of memory): evaluations run without one."
    ]


def test_weights_that_are_streamed_are_not_captured(backbone, graphs, monkeypatch, caplog):
    expected = sample(backbone)
    monkeypatch.setattr(type(backbone), "is_resident", lambda *args: False)
    with caplog.at_level(logging.INFO):
        sample(backbone, graphs)
        assert relative(sample(backbone, graphs), expected) < 1e-6
    assert replays() == [] and len(caplog.records) == 1 and "moved or expanded" in caplog.text


def test_without_cuda_graphs_are_not_tried(backbone, caplog):
    with caplog.at_level(logging.INFO):
        for mode in ("graph", "auto"):
            optimizer = Optimizer(mode)
            assert torch.equal(sample(backbone, optimizer), sample(backbone))
            sample(backbone, optimizer)
    assert [record.getMessage() for record in caplog.records] == [
        "Graphs need CUDA: evaluations run one operation at a time."
    ]


def test_graphs_are_chosen_where_they_pay(backbone):
    """Of few evaluations, making one costs more than it saves."""
    Capture.made = []
    automatic = Optimizer("auto", Capture)
    for steps in (3, 5):
        sample(backbone, automatic, SamplingOptions(steps))
    assert replays() == [5]


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="Optimization 'fast': expected one of auto, off, compile"):
        Optimizer("fast")


def test_the_command_line_says_how(tmp_path, caplog):
    folder, sounds = GOLDEN / "tiny", []
    models = ("--audiogen", "audiogen"), ("--text-encoder", "text_encoder"), ("--audio-tokenizer", "audio_tokenizer")
    files = [word for option, name in models for word in (option, str(folder / name))]
    caplog.set_level(logging.INFO)
    for mode in ("off", "graph"):
        out = tmp_path / f"{mode}.wav"
        options = ["--caption", "Rain.", "--seed", "1", "--seconds", "0.4", "--steps", "4", "--optimize", mode]
        assert main(["generate", *options, *files, "-o", str(out)]) == 0
        sounds.append(out.read_bytes())
    assert sounds[0] == sounds[1] and caplog.text.count("Graphs need CUDA") == 1


@pytest.fixture
def eager_compiler(monkeypatch):
    """What is traced and when, without the minutes that generating code takes."""
    torch._dynamo.reset()
    compiled = torch.compile(optimize.PreparedBlock.forward, dynamic=True, backend="eager")
    monkeypatch.setattr(optimize, "compiled_block", lambda: compiled)
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_a_compiled_block_is_compiled_once_for_all_durations(backbone, eager_compiler):
    optimizer = Optimizer("compile")
    assert relative(sample(backbone, optimizer), sample(backbone)) < 1e-6
    sample(backbone, optimizer, frames=52, tokens=7)
    made = eager_compiler["stats"]["unique_graphs"]
    for frames, tokens in ((64, 11), (30, 5), (200, 40)):
        optimized = sample(backbone, optimizer, frames=frames, tokens=tokens)
        assert relative(optimized, sample(backbone, frames=frames, tokens=tokens)) < 1e-6
    assert 0 < eager_compiler["stats"]["unique_graphs"] == made <= 4
    assert not eager_compiler["graph_break"]


def test_graphs_live_as_long_as_comfyui_leaves_the_model_its_memory():
    """Asked for again, ComfyUI detaches the model with its weights in place, and the graphs stay."""
    if "COMFYUI_PATH" not in os.environ:
        pytest.skip("COMFYUI_PATH is not set: run the tests by python3 dev.py test")
    script, model = ROOT / "tests" / "graphs_and_memory.py", GOLDEN / "tiny" / "audiogen" / "model.safetensors"
    run = subprocess.run([sys.executable, str(script), str(model)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == [1, 1, 1, 0]
