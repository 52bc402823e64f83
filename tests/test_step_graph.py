"""A step as a graph, by a stand-in that runs the captured call again on its buffers: what it gives is the plain step's, to the
last bit, whatever comes between two clips. What only a GPU can show, benchmarks/gpu_check.py asks."""

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.random_weights import backbone_config, random_backbone
from dasheng_core import step_graph
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise
from dasheng_core.step_graph import MOST_GRAPHS, CudaGraph, GraphedStep, StepGraphs, Watch, is_known
from dasheng_core.weights.quantized import QuantizedLinear, quantize_fp8
from graphs import ways_of
from tools.random_checkpoint import TINY

# The first of a new kind is watched; the second is replayed twice, to be compared.
STEPS = 6


class StandIn(CudaGraph):
    """Records a call as itself, and counts."""

    counts: Counter = Counter()

    @staticmethod
    def refusal(device) -> str:
        return ""

    def warm(self, run):
        return run()

    def record(self, run):
        run()
        self.counts["recorded"] += 1
        self.graph = SimpleNamespace(replay=run)

    def replay(self, given):
        self.counts["replayed"] += 1
        return super().replay(given)


@pytest.fixture(autouse=True)
def graphs(monkeypatch) -> StepGraphs:
    StandIn.counts.clear()
    made = StepGraphs(StandIn)
    monkeypatch.setattr(step_graph, "GRAPHS", made)
    return made


@pytest.fixture
def backbone():
    return random_backbone(backbone_config(TINY))


@torch.inference_mode()
def clip(backbone, seed=0, frames=30, graphs=True, callback=None, **options):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, backbone.config.latent_dim, frames, generator=generator)
    text = torch.randn(1, 7, backbone.config.context_dim, generator=generator)
    options = SamplingOptions(STEPS, graphs=graphs, **options)
    return denoise(backbone, noise, Branches(Branch(text)), options, callback=callback)


def check(backbone, recorded: int, replayed: int, **case):
    """The clip is the plain one, and its graphs did so much."""
    before = Counter(StandIn.counts)
    found = clip(backbone, **case)
    after = {name: StandIn.counts[name] - before[name] for name in ("recorded", "replayed")}
    assert torch.equal(found, clip(backbone, **case, graphs=False))
    assert after == {"recorded": recorded, "replayed": replayed}


def test_clips_of_any_order_and_length(backbone, graphs):
    check(backbone, 1, STEPS)
    check(backbone, 0, STEPS, seed=1)
    check(backbone, 1, STEPS, seed=2, frames=41)
    check(backbone, 0, STEPS, seed=3, frames=41)
    check(backbone, 0, STEPS, seed=4)
    # Guided and unguided steps are two graphs.
    check(backbone, 1, STEPS, guidance_interval=(0.9, 1.0))
    assert not graphs.off and len(graphs.kept) == 3


def test_all_graphs_go_at_once(backbone, graphs):
    for frames in range(20, 20 + MOST_GRAPHS + 1):
        check(backbone, 1, STEPS, frames=frames)
    assert len(graphs.kept) == 1
    check(backbone, 1, STEPS, frames=20)


@torch.no_grad()
@pytest.mark.parametrize("way", ["in place", "as another tensor"])
def test_a_lora_put_on_and_taken_off(backbone, way):
    layer = backbone.mid_block.attn.to_q
    original, difference = layer.weight.data.clone(), torch.ones_like(layer.weight) * 0.05
    check(backbone, 1, STEPS)
    plain = clip(backbone)
    for weight in (original + difference, original):
        if way == "in place":
            layer.weight.copy_(weight)
            check(backbone, 0, STEPS)
        else:
            layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
            check(backbone, 1, STEPS)
        assert torch.equal(clip(backbone), plain) == (weight is original)


def test_weights_that_were_moved(backbone):
    check(backbone, 1, STEPS)
    kept = [parameter.data for parameter in backbone.parameters()]
    for parameter in backbone.parameters():
        # As offloading does: the weights are elsewhere, and something else is where they were.
        parameter.data = parameter.data.clone()
    for tensor in kept:
        tensor.fill_(torch.nan)
    check(backbone, 1, STEPS)


def test_a_layer_put_in_between_two_clips(backbone, caplog):
    check(backbone, 1, STEPS)

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 1.5

    layer = backbone.mid_block.attn.to_q
    backbone.mid_block.attn.to_q = Adapted(layer.in_features, layer.out_features, bias=False).requires_grad_(False)
    with caplog.at_level("INFO"):
        check(backbone, 0, 0)
    assert "Adapted is changed, or none that is known" in caplog.text
    backbone.mid_block.attn.to_q = layer
    check(backbone, 0, STEPS)


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_an_interrupt_between_two_steps(backbone, graphs, at):
    def stop(step, steps):
        if step == at:
            raise Stopped

    with pytest.raises(Stopped):
        clip(backbone, callback=stop)
    check(backbone, int(at == 1), STEPS + (at == 1), seed=1)
    assert not graphs.off and not graphs.lock.locked()


def broken(monkeypatch, backbone, call: int, error: BaseException):
    """The network's end raises at its so manieth call."""
    calls, forward = [], type(backbone.final_block).forward

    def end(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            raise error
        return forward(self, *arguments)

    monkeypatch.setattr(type(backbone.final_block), "forward", end)


# Of calls of the network: the second step's plain one, its captured one, and one of those that are compared.
@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_an_interrupt_within_a_step(backbone, graphs, monkeypatch, call):
    broken(monkeypatch, backbone, call, Stopped())
    with pytest.raises(Stopped):
        clip(backbone)
    check(backbone, 1, STEPS + (call > 1), seed=1)
    assert not graphs.off and not graphs.lock.locked()


def test_an_error_in_the_captured_call_ends_graphs_and_not_the_clip(backbone, graphs, monkeypatch, caplog):
    broken(monkeypatch, backbone, 3, RuntimeError("operation not permitted when stream is capturing\x1b[31m"))
    check(backbone, 0, 0)
    check(backbone, 0, 0, seed=1)
    assert "a capture failed: operation not permitted" in caplog.text and "\x1b" not in caplog.text
    assert graphs.off and not graphs.kept and not graphs.lock.locked()


# Latent, modulation, both of rotary; constant, keys and values of the prompt; the constant without one.
@pytest.mark.parametrize("stale", range(8))
def test_a_graph_that_reads_a_stale_input_ends_graphs_and_not_the_clip(backbone, graphs, monkeypatch, stale, caplog):
    capture = StandIn.capture

    def capture_apart(self, step, given, like):
        capture(self, lambda read: step([*read[:stale], given[stale], *read[stale + 1 :]]), given, like)

    monkeypatch.setattr(StandIn, "capture", capture_apart)
    check(backbone, 1, 2)
    check(backbone, 0, 0, seed=1)
    assert graphs.off and "what a graph computed was not what the step did" in caplog.text


def test_two_threads(backbone):
    """The one that comes while the other is in a step computes its own plainly, and both are right."""
    check(backbone, 1, STEPS)
    expected = [clip(backbone, seed, graphs=False) for seed in range(2)]
    found, inside, go_on = [None, None], threading.Event(), threading.Event()
    replay = StandIn.replay

    def slow(self, given):
        inside.set()
        assert go_on.wait(60)
        return replay(self, given)

    def first():
        found[0] = clip(backbone, 0)

    StandIn.replay, thread = slow, threading.Thread(target=first)
    try:
        thread.start()
        assert inside.wait(60)
        before = Counter(StandIn.counts)
        found[1] = clip(backbone, 1)
        assert StandIn.counts == before
        go_on.set()
        thread.join(60)
    finally:
        StandIn.replay = replay
        go_on.set()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_graph_made_under_inference_mode_answers_outside_of_it(backbone):
    check(backbone, 1, STEPS)
    inside = clip.__wrapped__
    with torch.no_grad():
        assert torch.equal(inside(backbone, 1), inside(backbone, 1, graphs=False))
    assert StandIn.counts["recorded"] == 1


@torch.no_grad()
def test_it_steps_aside(backbone, graphs):
    """For all that was not compared; each gives what the network gives."""
    noise = torch.randn(2, backbone.config.latent_dim, 20)
    time_aligned = backbone.dummy_ta_embed[None, None]
    condition = backbone.condition(torch.randn(2, 5, backbone.config.context_dim), time_aligned)
    modulation, rotary = backbone.modulation(torch.tensor([500])), backbone.rotary(20, "cpu")
    masked = condition._replace(frames=torch.ones(2, 1, 1, 5, dtype=torch.bool))
    timeline = condition._replace(entries=torch.ones(1, 20, 1))

    def attend(q, k, v, mask):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)

    step = GraphedStep(backbone)
    for arguments in (
        ([condition], torch.ones(2, 20, dtype=torch.bool), rotary),
        ([masked], None, rotary),
        ([timeline], None, rotary),
        ([condition], None, None),
        ([condition], None, rotary, attend),
    ):
        assert torch.equal(step(noise, modulation, *arguments), backbone.step(noise, modulation, *arguments))
        assert not graphs.kept
    with torch.enable_grad():
        step(noise, modulation, [condition], None, rotary)
    assert not graphs.kept
    step(noise, modulation, [condition], None, rotary)
    assert len(graphs.kept) == 1
    StandIn.counts.clear()
    clip(backbone, window=0.8)
    assert not StandIn.counts["replayed"]


# Tensor.tolist is none of them on a processor; of a GPU it copies first, which is seen as a second device.
WAITING = {
    "item": torch.Tensor.item,
    "bool": bool,
    "nonzero": torch.nonzero,
    "mask": lambda tensor: tensor[tensor > 0],
    "equal": lambda tensor: torch.equal(tensor, tensor),
    "allclose": lambda tensor: torch.allclose(tensor, tensor),
}


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("way", WAITING)
def test_a_step_that_waits_for_the_device_is_not_captured(way, mode):
    with mode(), Watch(torch.device("cpu")) as watch:
        WAITING[way](torch.ones(1))
    assert "waits for cpu" in watch.found


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_step_on_two_devices_is_not_captured(mode):
    here, there = torch.ones(2, device="meta"), torch.ones(2)
    for run in (lambda: there.to("meta"), lambda: here.copy_(there), lambda: torch.ones(2), lambda: here * there.sum()):
        with mode(), Watch(torch.device("meta")) as watch:
            run()
        assert watch.found
    with mode(), Watch(torch.device("meta")) as watch:
        torch.nn.functional.layer_norm(here * 2 + 1, (2,))
    assert not watch.found


def test_a_step_that_is_refused_is_looked_at_once(backbone, monkeypatch, caplog):
    """A weight that is read back, as layers of other packs do."""
    forward = type(backbone.final_block).forward

    def end(self, x, *arguments):
        x.sum().item()
        return forward(self, x, *arguments)

    monkeypatch.setattr(type(backbone.final_block), "forward", end)
    with caplog.at_level("INFO"):
        check(backbone, 0, 0)
        check(backbone, 0, 0, seed=1)
    assert caplog.text.count("No CUDA graph of this step") == 1


def test_layers_that_are_known():
    backbone = random_backbone(backbone_config(TINY))
    assert all(map(is_known, backbone.modules()))
    layer = backbone.mid_block.attn.to_q
    handle = layer.register_forward_pre_hook(lambda *_: None)
    assert not is_known(layer)
    handle.remove()
    layer.forward = layer.forward
    assert not is_known(layer)
    backbone.step = backbone.step
    assert not is_known(backbone)


def test_without_a_gpu_the_option_says_so_and_changes_nothing(backbone, monkeypatch, caplog):
    monkeypatch.setattr(step_graph, "GRAPHS", StepGraphs())
    with caplog.at_level("INFO"):
        assert torch.equal(clip(backbone), clip(backbone, graphs=False))
    assert "No CUDA graphs: they need an NVIDIA GPU." in caplog.text


def test_quantised_weights(backbone):
    attention = backbone.mid_block.attn
    attention.to_q = QuantizedLinear(quantize_fp8(attention.to_q.weight), None)
    check(backbone, 1, STEPS)


def test_in_bfloat16():
    net = random_backbone(replace(backbone_config(TINY)), dtype=torch.bfloat16)
    check(net, 1, STEPS)


# Under ComfyUI


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> dict[str, dict]:
    """What optimized_steps.py found, by way."""
    return ways_of("optimized_steps.py", tmp_path_factory.mktemp("quantised"))[0]


# Way -> how often a step is recorded and replayed.
UNDER_COMFYUI = {
    "first": (1, STEPS),
    "another prompt": (0, STEPS),
    "lora": (1, STEPS),
    # The weights are again where they were.
    "lora taken off": (0, STEPS),
    "after an interrupt": (0, STEPS),
    # The other branch alone.
    "hooks on one branch": (1, STEPS),
    "windows": (0, 0),
    "several GPUs": (0, 0),
    "quantised": (1, STEPS),
    # Added to the expanded weight at each use.
    "quantised, lora": (0, 0),
}


@pytest.mark.parametrize("way", UNDER_COMFYUI)
def test_the_optimize_node_gives_the_plain_latent(ways, way):
    found = ways[way]
    assert found["equal"] and not found["off"]
    assert (found.get("recorded", 0), found.get("replayed", 0)) == UNDER_COMFYUI[way]


def test_under_comfyui_an_interrupt_stops_before_the_next_replay_and_unloading_drops_all(ways):
    assert ways["interrupted"] == {"way": "interrupted", "steps": 1, "replayed": 1}
    assert ways["unloaded"]["kept"] == 0
