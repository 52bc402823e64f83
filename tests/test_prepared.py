"""The prepared state: equal to the straightforward baseline, cheaper by counts that do not depend on the machine, and
never older than what it answers for."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import straightforward
from benchmarks.random_weights import backbone_config, random_backbone
from benchmarks.straightforward import StraightforwardBackbone
from dasheng_core.backbone import Backbone, place
from dasheng_core.layers import MIN_STEPS_TO_PACK, RowsPackedLinear
from dasheng_core.prepared import Branch, PreparedBackbone, split_padded
from dasheng_core.sampling import SamplingOptions, denoise
from tools.random_checkpoint import FULL, TINY

T, S, GUIDANCE = 250, 64, 5.0
# The published depth, at a width that tests can afford.
DEEP = replace(TINY, embed_dim=128, num_heads=2, depth=32)
VIEWS = {
    "view", "_unsafe_view", "transpose", "t", "expand", "slice", "select", "unbind", "split", "unsqueeze", "squeeze",
    "permute", "as_strided", "detach", "alias", "unfold", "chunk", "split_with_sizes", "empty", "empty_like",
}  # fmt: skip
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique2"}


def baseline_of(backbone: Backbone) -> StraightforwardBackbone:
    net = StraightforwardBackbone(backbone.config, device="meta", dtype=backbone.dtype)
    net.load_state_dict(backbone.state_dict(), assign=True)
    return net


def inputs(config, items=2, frames=40, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(items, config.latent_dim, frames, generator=generator)
    return noise, torch.randn(items, tokens, config.context_dim, generator=generator)


def prepare(backbone: Backbone, context, items=1, timesteps=(500,), guided=True):
    prepared = PreparedBackbone(backbone, timesteps, context.device, backbone.dtype)
    time_aligned = backbone.dummy_ta_embed
    branches = [Branch([context], time_aligned)]
    if guided:
        branches.append(Branch([], torch.zeros_like(time_aligned)))
    return prepared, prepared.condition(branches, items)


def relative(actual, expected) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


# Equality


@pytest.fixture(scope="module")
def deep() -> Backbone:
    return random_backbone(backbone_config(DEEP))


@torch.inference_mode()
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_a_whole_call_of_33_blocks_equals_the_baseline(deep, scale, padded):
    noise, context = inputs(deep.config)
    masks = {}
    if padded:
        masks["context_mask"] = torch.arange(9) < torch.tensor([[9], [5]])
        masks["frame_mask"] = torch.arange(40) < torch.tensor([[31], [40]])
    options = SamplingOptions(4, scale)
    expected = straightforward.sample(baseline_of(deep), noise, context, 4, scale, **masks)
    assert relative(denoise(deep, noise, context, options, **masks), expected) <= 5e-6


@torch.inference_mode()
@pytest.mark.parametrize("steps", [1, 5], ids=["as stored", "packed"])
def test_bfloat16_is_within_two_percent(deep, steps):
    """Against float32 of the same weights; as a CPU lays them out for many steps, and as they are stored for few."""
    half = random_backbone(backbone_config(DEEP), dtype=torch.bfloat16)
    same = random_backbone(backbone_config(DEEP))
    same.load_state_dict(half.state_dict())
    noise, context = inputs(deep.config, items=1)
    net = baseline_of(same)
    masks = [torch.ones(1, n, dtype=torch.bool) for n in (9, 40)]
    expected = straightforward.evaluate(net, noise, torch.tensor(500.0), context, *masks, GUIDANCE)
    prepared, conditioning = prepare(half, context.bfloat16(), timesteps=range(500, 500 + steps))
    velocity = prepared.guided_velocity(noise.mT.bfloat16(), 500, conditioning, GUIDANCE)
    assert relative(velocity.mT, expected) <= 0.02


@torch.inference_mode()
@pytest.mark.parametrize("room", [True, False])
def test_float32_copies_for_a_cpu_change_no_number_and_need_room(monkeypatch, room):
    """Of products of other numbers of rows, too: a second length, and one branch where there were two."""
    backbone = random_backbone(backbone_config(TINY))
    monkeypatch.setattr("dasheng_core.layers.spare_memory", lambda: 10**9 if room else 0)
    ways = []
    for packs in (True, False):
        noise, context = inputs(backbone.config, items=1)
        prepared = PreparedBackbone(
            backbone, range(500, 500 + MIN_STEPS_TO_PACK[torch.float32]), context.device, backbone.dtype, packs=packs
        )
        copies = sum(isinstance(module, RowsPackedLinear) for module in prepared.modules())
        assert bool(copies) is (packs and room and hasattr(torch.ops.mkl, "_mkl_linear"))
        branches = [Branch([context], backbone.dummy_ta_embed), Branch([], torch.zeros_like(backbone.dummy_ta_embed))]
        made = []
        for frames, scale in ((40, GUIDANCE), (40, None), (23, GUIDANCE), (40, GUIDANCE)):
            conditioning = prepared.condition(branches if scale else branches[:1], 1)
            made.append(prepared(noise.mT[:, :frames], prepared.step(502), conditioning, scale))
        ways.append(made)
    assert all(torch.equal(one, other) for one, other in zip(*ways, strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_branches_of_any_number_and_order(deep, order):
    """Two prompts of different lengths and the unconditional branch, in the order that they are asked for."""
    noise, context = inputs(deep.config)
    texts = [context, inputs(deep.config, tokens=5, seed=1)[1], torch.zeros(2, 5, deep.config.context_dim)]
    time_aligned = [deep.dummy_ta_embed, deep.dummy_ta_embed, torch.zeros_like(deep.dummy_ta_embed)]
    branches = [Branch([texts[i]] if i < 2 else [], time_aligned[i]) for i in range(3)]
    prepared = PreparedBackbone(deep, [7], "cpu", torch.float32)
    conditioning = prepared.condition([branches[i] for i in order], 2)
    latent = torch.stack([noise + i for i in order])
    velocity = prepared.velocity(latent.mT, 7, conditioning).mT
    for i, found in zip(order, velocity, strict=True):
        expected = deep(noise + i, torch.tensor(7.0), texts[i], time_aligned[i].expand(2, 1, -1))
        assert relative(found, expected) <= 5e-6


@torch.inference_mode()
def test_one_text_for_all_items_and_a_timestep_that_was_not_foreseen(deep):
    noise, context = inputs(deep.config)
    prepared, conditioning = prepare(deep, context[:1], items=2, guided=False)
    velocity = prepared.velocity(noise.mT, 123, conditioning)[0].mT
    expected = deep(noise, torch.tensor(123.9), context[:1].expand(2, -1, -1), deep.dummy_ta_embed.expand(2, 1, -1))
    assert relative(velocity, expected) <= 5e-6


def test_padding_is_cut_away_and_equal_lengths_are_attended_to_together():
    context = torch.arange(24.0).view(4, 3, 2)
    mask = torch.tensor([[True, True, True], [True, True, False], [False, True, True], [True, False, False]])
    parts = split_padded(context, mask)
    assert [list(part.shape) for part in parts] == [[1, 3, 2], [2, 2, 2], [1, 1, 2]]
    assert torch.equal(parts[1][1], context[2, 1:])


# Counts


class Operations(TorchDispatchMode):
    """Names of the operations that compute, in order, and the storages of the tensors they read."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.read: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.names.append(name)
            for tensor in torch.utils._pytree.tree_leaves((args, kwargs)):
                # A packed copy has no storage to tell.
                if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn:
                    self.read[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("steps", [1, 6])
def test_the_loop_evaluates_once_a_step(deep, monkeypatch, steps):
    evaluations = []
    forward = PreparedBackbone.forward
    monkeypatch.setattr(PreparedBackbone, "forward", lambda *args: evaluations.append(1) or forward(*args))
    monkeypatch.setattr(Backbone, "forward", lambda *args: pytest.fail("not the plain network"))
    with torch.inference_mode():
        denoise(deep, *inputs(deep.config, items=1), SamplingOptions(steps))
    assert len(evaluations) == steps


def at_full_depth(few: float, more: float) -> float:
    """What 32 + 1 blocks come to, from networks of 2 + 1 and of 4 + 1."""
    return few + (32 - 2) / 2 * (more - few)


@torch.inference_mode()
def test_an_evaluation_needs_88_percent_of_the_arithmetic():
    """Counted at the published sizes, 10 s and 64 tokens, on a device that computes nothing."""
    ours, baseline = [], []
    for depth in (2, 4):
        config = backbone_config(replace(FULL, depth=depth))
        backbone, net = Backbone(config, device="meta"), StraightforwardBackbone(config, device="meta")
        context, latent = torch.empty(1, S, 1024, device="meta"), torch.empty(1, 1280, T, device="meta")
        masks = [torch.empty(1, n, dtype=torch.bool, device="meta") for n in (S, T)]
        timestep = torch.tensor(500.0, device="meta")
        prepared, conditioning = prepare(backbone, context)
        with FlopCounterMode(display=False) as counter:
            prepared.guided_velocity(latent.mT, 500, conditioning, GUIDANCE)
        ours.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            straightforward.evaluate(net, latent, timestep, context, *masks, GUIDANCE)
        baseline.append(counter.get_total_flops())
    assert at_full_depth(*baseline) / 1e9 == pytest.approx(1612.3, rel=0.002)
    assert at_full_depth(*ours) <= 0.886 * at_full_depth(*baseline)


@torch.inference_mode()
@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 43), (torch.float32, 43)], ids=str)
def test_operations_of_a_block(dtype, most):
    """What a block adds to an evaluation, in the half without and in the half with a skip connection."""
    counts = []
    for depth in (2, 4):
        backbone = random_backbone(backbone_config(replace(TINY, depth=depth)), dtype=dtype)
        noise, context = inputs(backbone.config, items=1)
        prepared, conditioning = prepare(backbone, context.to(dtype))
        latent, step = noise.mT.to(dtype).contiguous(), prepared.step(500)
        prepared.rotary(latent.shape[1])
        with Operations() as operations:
            prepared(latent, step, conditioning, GUIDANCE)
        counts.append(len(operations.names))
    assert 10 < (counts[1] - counts[0]) / 2 <= most, operations.names


@torch.inference_mode()
def test_a_step_reads_two_thirds_of_the_weights():
    """Storages that an evaluation reads, at the published sizes."""
    touched, total = [], []
    for depth in (2, 4):
        config = backbone_config(replace(FULL, depth=depth))
        backbone = Backbone(config, device="meta", dtype=torch.bfloat16).to_empty(device="cpu")
        noise, context = inputs(backbone.config, items=1, frames=4)
        prepared, conditioning = prepare(backbone, context.bfloat16())
        with Operations() as operations:
            prepared.guided_velocity(noise.mT.bfloat16(), 500, conditioning, GUIDANCE)
        weights = {t.untyped_storage().data_ptr() for t in (*backbone.parameters(), *prepared.buffers())}
        touched.append(sum(nbytes for pointer, nbytes in operations.read.items() if pointer in weights))
        total.append(sum(parameter.nbytes for parameter in backbone.parameters()))
    ours, baseline = at_full_depth(*touched), at_full_depth(*total)
    assert baseline == pytest.approx(2 * 2_173_419_520, rel=0.001)
    assert 0.5 < ours / baseline <= 0.69


@torch.inference_mode()
@pytest.mark.parametrize("scale", [1.0, GUIDANCE])
def test_nothing_in_the_loop_waits_for_the_device(deep, scale):
    """From the first step's report to the last's: a batch of two texts of unlike lengths and clips of unlike lengths."""
    noise, context = inputs(deep.config)
    masks = (torch.arange(9) < torch.tensor([[9], [5]]), torch.arange(40) < torch.tensor([[31], [40]]))
    marks = []
    with Operations() as operations:
        denoise(
            deep,
            noise,
            context,
            SamplingOptions(4, scale),
            *masks,
            callback=lambda *_: marks.append(len(operations.names)),
        )
    loop = operations.names[marks[0] : marks[-1]]
    assert len(loop) > 3 * 33 * 10 and not SYNCHRONISING & set(loop)
    assert SYNCHRONISING & set(operations.names[: marks[0]]), (
        "the preparation reads what it must, so that the loop need not"
    )


@torch.inference_mode()
def test_what_is_read_before_the_first_step_alone_can_stay_off_a_small_device():
    """A device that holds no numbers in place of a GPU; on one device, the same numbers."""
    noise, context = inputs(backbone_config(TINY), items=1)
    here = place(random_backbone(backbone_config(TINY)), torch.device("cpu"), roomy=False)
    expected = denoise(random_backbone(backbone_config(TINY)), noise, context, SamplingOptions(2))
    assert torch.equal(denoise(here, noise, context, SamplingOptions(2)), expected)

    there = place(random_backbone(backbone_config(TINY)), torch.device("meta"), roomy=False)
    stayed = {name for name, parameter in there.named_parameters() if parameter.device.type == "cpu"}
    assert {name.rpartition(".")[0] for name in stayed} == set(there.preparation_layers())
    assert denoise(there, noise.to("meta"), context.to("meta"), SamplingOptions(2)).device.type == "meta"
    share = sum(there.get_parameter(name).nbytes for name in stayed) / sum(p.nbytes for p in there.parameters())
    assert share > 0.25


# Staleness and memory


@torch.inference_mode()
def test_nothing_outlives_the_call(deep):
    made = []
    init = PreparedBackbone.__init__

    def remembered(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreparedBackbone, "__init__", remembered)
        denoise(deep, *inputs(deep.config, items=1), SamplingOptions(2))
    gc.collect()
    assert len(made) == 1 and made[0]() is None


@torch.inference_mode()
@pytest.mark.parametrize("change", ["prompt", "steps", "sway", "weights", "dtype", "length", "guidance"])
def test_the_next_call_answers_for_itself(change):
    """A call after another that differs in one thing equals the baseline of its own."""
    backbone = random_backbone(backbone_config(TINY), seed=4)
    noise, context = inputs(backbone.config, items=1)
    options = dict(num_steps=3, guidance_scale=GUIDANCE, sway=-1.0)
    before = denoise(backbone, noise, context, SamplingOptions(3, GUIDANCE, -1.0))
    tolerance = 5e-6
    if change == "prompt":
        context = context.flip(1) * 1.1
    elif change == "steps":
        options["num_steps"] = 5
    elif change == "sway":
        options["sway"] = 0.4
    elif change == "guidance":
        options["guidance_scale"] = 2.0
    elif change == "length":
        noise = noise[..., :33]
    elif change == "weights":
        # In place, as a LoRA is applied: the tensors remain the same objects.
        for layer in (
            backbone.mid_block.adaln.time_ada,
            backbone.mid_block.attn.to_q,
            backbone.mid_block.cross_attn.to_k,
        ):
            layer.weight.mul_(1.5)
    else:
        backbone, tolerance = backbone.to(torch.bfloat16), 0.1
        backbone.dtype = torch.bfloat16
    now = denoise(
        backbone, noise, context, SamplingOptions(options["num_steps"], options["guidance_scale"], options["sway"])
    )
    expected = straightforward.sample(baseline_of(backbone), noise, context, **options)
    assert relative(now, expected) <= tolerance
    if now.shape == before.shape:
        assert not torch.equal(now, before)
