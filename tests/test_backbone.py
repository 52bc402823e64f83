"""The two phases of the backbone: equal to ``forward``, cheaper by counts that do not depend on the machine, and never
older than what they answer for."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.random_weights import backbone_config, random_backbone
from dasheng_core.backbone import Backbone, Frames
from dasheng_core.guidance import guide
from dasheng_core.options import SamplingOptions
from dasheng_core.sampling import Branch, Branches, denoise
from dasheng_core.schedule import make_sigmas
from tools.random_checkpoint import TINY

GUIDANCE = 5.0
# The published depth, at a width that tests can afford.
DEEP = replace(TINY, embed_dim=128, num_heads=2, depth=32)
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique2"}


def inputs(config, items=2, frames=40, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(items, config.latent_dim, frames, generator=generator)
    return noise, torch.randn(items, tokens, config.context_dim, generator=generator)


def relative(actual, expected) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@torch.inference_mode()
def by_forward(backbone, noise, context, steps=4, scale=GUIDANCE, sway=-1.0, **masks) -> torch.Tensor:
    """A sampling call that holds nothing: the whole network at every step, branch by branch, the state in float32."""
    sigmas, latent, dtype = make_sigmas(steps, sway), noise, backbone.dtype
    context, time_aligned = context.to(dtype), backbone.dummy_ta_embed.expand(len(noise), noise.shape[-1], -1)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = backbone(latent.to(dtype), sigma * 1000, context, time_aligned, **masks).float()
        if scale > 1:
            silence = [torch.zeros_like(tensor) for tensor in (context, time_aligned)]
            velocity = guide(velocity, backbone(latent.to(dtype), sigma * 1000, *silence, **masks).float(), scale)
        latent = latent + (following - sigma) * velocity
    return latent


def held(backbone, context, guided=True):
    """Modulation of timestep 500, and the conditions of a guided step."""
    time_aligned = backbone.dummy_ta_embed[None, None]
    conditions = [backbone.condition(context, time_aligned), backbone.condition(None, torch.zeros_like(time_aligned))]
    modulation = backbone.modulation(torch.tensor(500, device=context.device))
    return modulation, conditions if guided else conditions[:1]


@pytest.fixture(scope="module")
def deep() -> Backbone:
    return random_backbone(backbone_config(DEEP))


# Equality


@torch.inference_mode()
def test_a_long_clip_goes_through_in_parts_and_gives_the_same(deep, monkeypatch):
    """So that who calls the network can stop between two layers, however long the clip is."""
    noise, context = inputs(deep.config)
    arguments = noise, torch.tensor(500), context, deep.dummy_ta_embed[None, None].expand(2, -1, -1)
    frame_mask = torch.arange(40) < torch.tensor([[31], [40]])
    expected = deep(*arguments, frame_mask=frame_mask)
    # One prompt up to frame 20, and another from there on.
    entries = (torch.arange(40)[:, None] < 20).float() * torch.tensor([1.0, -1.0]) + torch.tensor([0.0, 1.0])
    timeline = deep.condition(context, arguments[3])._replace(entries=entries[None])
    modulation = deep.modulation(torch.tensor([500]))
    apart = deep.step(noise, modulation, [timeline], frame_mask)
    rows = []
    for layer in (deep.mid_block.attn.proj, deep.mid_block.mlp.net[0].proj):
        layer.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[1]))
    monkeypatch.setattr("dasheng_core.backbone.FRAMES_AT_ONCE", 16)
    try:
        assert relative(deep(*arguments, frame_mask=frame_mask), expected) < 1e-5
        assert relative(deep.step(noise, modulation, [timeline], frame_mask), apart) < 1e-5 < relative(apart, expected)
    finally:
        for layer in (deep.mid_block.attn.proj, deep.mid_block.mlp.net[0].proj):
            layer._forward_pre_hooks.clear()
    assert rows == [16, 16, 8] * 4


@torch.inference_mode()
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_a_whole_call_of_33_blocks_equals_the_network_at_every_step(deep, scale, padded):
    noise, context = inputs(deep.config)
    context_mask = frame_mask = None
    if padded:
        context_mask = torch.arange(9) < torch.tensor([[9], [5]])
        frame_mask = torch.arange(40) < torch.tensor([[31], [40]])
    expected = by_forward(deep, noise, context, 4, scale, context_mask=context_mask, frame_mask=frame_mask)
    read = Branches(Branch(context, context_mask))
    assert relative(denoise(deep, noise, read, SamplingOptions(4, scale), frame_mask=frame_mask), expected) <= 5e-6


@torch.inference_mode()
def test_bfloat16_is_within_two_percent():
    """Against float32 of the same weights."""
    half, same = (random_backbone(backbone_config(DEEP), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    same.load_state_dict(half.state_dict())
    noise, context = inputs(same.config, items=1)
    velocities = []
    for net in (half, same):
        modulation, conditions = held(net, context.to(net.dtype))
        velocity = net.step(noise.to(net.dtype).repeat(2, 1, 1), modulation, conditions).float()
        velocities.append(guide(*velocity.chunk(2), GUIDANCE))
    assert relative(*velocities) <= 0.02


@torch.inference_mode()
def test_frames_read_the_tokens_of_their_own_prompt():
    """Two texts side by side. In a single block each frame gives what it gives with its own text alone."""
    backbone = random_backbone(backbone_config(TINY))
    noise, context = inputs(backbone.config, items=1, tokens=5)
    other, time_aligned = inputs(backbone.config, items=1, tokens=3, seed=1)[1], backbone.dummy_ta_embed[None, None]
    reads = (torch.arange(40)[:, None] < 25) == (torch.arange(8) < 5)
    scores = torch.zeros(reads.shape).masked_fill(~reads, -torch.inf)
    block, modulation = backbone.mid_block, backbone.modulation(torch.tensor(500))[:, 12:18, None].unbind(1)
    positions = Frames(backbone.rotary(40, "cpu"))
    x = backbone.patch_embed(noise)

    def run(text, frames=None):
        condition = backbone.condition(text, time_aligned, frames)
        return block(x, modulation, condition.constant[2], [(slice(0, 1), [condition.text(2)])], positions)

    both = torch.cat([context, other], dim=1)
    for frames in (reads, scores):
        together = run(both, frames)
        assert relative(together[:, :25], run(context)[:, :25]) <= 5e-6
        assert relative(together[:, 25:], run(other)[:, 25:]) <= 5e-6
    assert relative(run(both)[:, :25], run(context)[:, :25]) > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("order", [(2, 0, 1), (0,), (2,)], ids=str)
def test_branches_of_any_number_and_order(deep, order):
    """Two prompts of different lengths and the unconditional branch, in the order that they are asked for."""
    noise, context = inputs(deep.config)
    texts = [context, inputs(deep.config, tokens=5, seed=1)[1], torch.zeros(2, 5, deep.config.context_dim)]
    time_aligned = [deep.dummy_ta_embed[None, None] * (i < 2) for i in range(3)]
    conditions = [deep.condition(texts[i] if i < 2 else None, time_aligned[i]) for i in order]
    latent = torch.cat([noise + i for i in order])
    found = deep.step(latent, deep.modulation(torch.tensor(7)), conditions).chunk(len(order))
    for i, velocity in zip(order, found, strict=True):
        expected = deep(noise + i, torch.tensor(7.0), texts[i], time_aligned[i].expand(2, 1, -1))
        assert relative(velocity, expected) <= 5e-6


# Counts


class Operations(TorchDispatchMode):
    """Names of operations in order."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_nothing_in_the_loop_waits_for_the_device(deep, scale):
    """From the first step's report to the last's: a batch of two texts of unlike lengths and clips of unlike lengths."""
    noise, context = inputs(deep.config)
    read = Branches(Branch(context, torch.arange(9) < torch.tensor([[9], [5]])))
    frame_mask = torch.arange(40) < torch.tensor([[31], [40]])
    marks, options = [], SamplingOptions(4, scale)
    with Operations() as operations:
        denoise(
            deep,
            noise,
            read,
            options,
            frame_mask=frame_mask,
            callback=lambda *_: marks.append(len(operations.names)),
        )
    loop = operations.names[marks[0] : marks[-1]]
    assert len(loop) > 3 * 33 * 10 and not SYNCHRONISING & set(loop)


def test_a_compiler_takes_a_step_whole_and_one_program_for_all_lengths():
    """Tracing alone, without generating code."""
    backbone = random_backbone(backbone_config(TINY))
    torch._dynamo.reset()
    compiled = torch.compile(backbone.step, fullgraph=True, dynamic=True, backend="eager")
    counters = torch._dynamo.utils.counters
    counters.clear()
    try:
        for frames, tokens in ((40, 9), (30, 5)):
            noise, context = inputs(backbone.config, 1, frames, tokens)
            modulation, conditions = held(backbone, context)
            given = noise.repeat(2, 1, 1), modulation, conditions
            with torch.inference_mode():
                assert relative(compiled(*given), backbone.step(*given)) < 1e-6
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    finally:
        torch._dynamo.reset()


# Staleness and memory


@torch.inference_mode()
@pytest.mark.parametrize("change", ["prompt", "steps", "weights", "dtype", "length"])
def test_the_next_call_answers_for_itself(change):
    """A call after another that differs in one thing equals the network at every step of its own."""
    backbone = random_backbone(backbone_config(TINY), seed=4)
    noise, context = inputs(backbone.config, items=1)
    options = dict(steps=3, scale=GUIDANCE, sway=-1.0)
    before = denoise(backbone, noise, Branches(Branch(context)), SamplingOptions(3, GUIDANCE, -1.0))
    tolerance = 5e-6
    if change == "prompt":
        context = context.flip(1) * 1.1
    elif change == "steps":
        options["steps"] = 5
    elif change == "length":
        noise = noise[..., :33]
    elif change == "weights":
        # In place, as a LoRA is applied: the tensors remain the same objects.
        block = backbone.mid_block
        for layer in (block.adaln.time_ada, block.attn.to_q, block.cross_attn.to_k):
            layer.weight.mul_(1.5)
    else:
        backbone, tolerance = backbone.to(torch.bfloat16), 0.1
        backbone.dtype = torch.bfloat16
    now = denoise(backbone, noise, Branches(Branch(context)), SamplingOptions(*options.values()))
    assert relative(now, by_forward(backbone, noise, context, **options)) <= tolerance
    if now.shape == before.shape:
        assert not torch.equal(now, before)


@torch.inference_mode()
def test_nothing_outlives_the_call(deep, monkeypatch):
    made, condition, modulation = [], Backbone.condition, Backbone.modulation

    def remembered(tensors):
        made.extend(weakref.ref(tensor) for tensor in tensors if tensor is not None)
        return tensors

    monkeypatch.setattr(Backbone, "condition", lambda *args, **kwargs: remembered(condition(*args, **kwargs)))
    monkeypatch.setattr(Backbone, "modulation", lambda *args: remembered([modulation(*args)])[0])
    noise, context = inputs(deep.config, items=1)
    denoise(deep, noise, Branches(Branch(context)), SamplingOptions(2))
    gc.collect()
    assert len(made) == 5 and not [tensor for tensor in made if tensor() is not None]
