"""Float8 products, as far as a CPU can tell: what they compute, how far off, and that they are left alone where they are not."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.random_weights import backbone_config, random_backbone
from dasheng_core import fp8
from dasheng_core.fp8 import Fp8Layers, Fp8Linear, has_fp8, multiply, way_to_multiply
from dasheng_core.layers import Layers
from dasheng_core.prepared import PreparedBackbone
from dasheng_core.quantized import QuantizedLinear, quantize_fp8
from dasheng_core.sampling import SamplingOptions, denoise
from test_graphs import Scene, latents
from tools.random_checkpoint import TINY

CPU = torch.device("cpu")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scales_rows():
    """CPUs multiply with one scale a matrix, so this is the way with rows scaled afterwards."""
    way = way_to_multiply(CPU)
    if way is None:
        pytest.skip("this PyTorch has no float8 products on a CPU")
    return way


def test_each_row_has_a_scale_of_its_own_and_a_sixteenth_of_error():
    x = random(40, 64) * torch.logspace(-6, 6, 40)[:, None]
    x[7] = 0
    stored = quantize_fp8(x)
    error = (stored.to(torch.float32) - x).abs()
    # Half a step of a 3-bit mantissa; below the smallest normal number, 2^-6 of 448 parts, half a step of 2^-9.
    assert (error <= torch.maximum(x.abs() / 16, stored.scale[:, None] * 2**-10) * 1.001).all()
    assert (
        stored.values.abs().float().amax(1)[torch.arange(40) != 7].eq(448).all()
        and not stored.to(torch.float32)[7].any()
    )


def test_a_product_is_that_of_the_stored_numbers(scales_rows):
    a, b = quantize_fp8(random(50, 64)), quantize_fp8(random(32, 64, seed=1))
    expected = a.to(torch.float32) @ b.to(torch.float32).T
    found = multiply(a, b, torch.float32, scales_rows)
    assert (found - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_near_the_exact_one_whatever_its_rows_sizes(scales_rows, dtype):
    weight, bias = random(48, 128), random(48, seed=2)
    weight, bias = weight * torch.logspace(-2, 2, 48)[:, None], bias.to(dtype)
    x = (random(2, 3, 20, 128, seed=1) * torch.logspace(-2, 2, 20)[:, None]).to(dtype)
    found = Fp8Linear(quantize_fp8(weight), bias, scales_rows)(x)
    assert found.shape == (2, 3, 20, 48) and found.dtype == dtype
    expected = F.linear(x.float(), weight, bias.float())
    # By rows and columns, of which the least must not drown in the largest.
    for dim in ((0, 1, 3), (0, 1, 2)):
        difference, size = (torch.linalg.vector_norm(x, dim=dim) for x in (found - expected, expected))
        assert (difference / size).max() < 0.1


SMALL = replace(TINY, embed_dim=128, num_heads=2, depth=8)


@pytest.fixture(scope="module")
def backbone():
    return random_backbone(backbone_config(SMALL))


def fp8_layers(backbone) -> dict[int, int]:
    """Block -> how many of its layers are float8's."""
    prepared = PreparedBackbone(backbone, [500], CPU, torch.float32, inner_layers=Fp8Layers)
    assert not isinstance(prepared.final_linear, Fp8Linear) and not isinstance(prepared.patch_embed, Fp8Linear)
    skips = [block.skip_linear for block in prepared.blocks if hasattr(block, "skip_linear")]
    assert len(skips) == 4 and not [layer for layer in skips if isinstance(layer, Fp8Linear)]
    return {i: sum(isinstance(x, Fp8Linear) for x in block.modules()) for i, block in enumerate(prepared.blocks)}


def test_inner_blocks_alone_and_not_what_joins_them(backbone, scales_rows):
    assert fp8_layers(backbone) == {0: 0, **dict.fromkeys(range(1, 8), 6), 8: 0}


def test_weights_that_are_stored_in_float8_are_used_as_they_are(backbone, scales_rows):
    stored = copy.deepcopy(backbone)
    for block in (stored.in_blocks[1], stored.mid_block):
        for name in ("to_q", "to_k", "to_v", "proj"):
            layer = getattr(block.attn, name)
            setattr(block.attn, name, QuantizedLinear(quantize_fp8(layer.weight), layer.bias))
    made, rounded = (
        PreparedBackbone(net, [500], CPU, torch.float32, inner_layers=Fp8Layers) for net in (stored, backbone)
    )
    for i in (1, 4):
        for name in ("qkv", "proj"):
            as_stored, once = getattr(made.blocks[i], name), getattr(rounded.blocks[i], name)
            assert isinstance(as_stored, Fp8Linear)
            assert torch.equal(as_stored.weight.float(), once.weight.float())
            assert torch.equal(as_stored.weight_scale, once.weight_scale)


def test_weights_that_are_elsewhere_or_of_odd_sizes_are_left_alone(scales_rows):
    """As a model has them that does not fit into the GPU's memory; and the golden model's width of 48, but 3 x 8."""
    backbone = random_backbone(backbone_config(SMALL))
    backbone.in_blocks[2].attn.to_k.to(torch.bfloat16)
    backbone.out_blocks[0].mlp.net[2].to(torch.bfloat16)
    assert fp8_layers(backbone) == {0: 0, 1: 6, 2: 5, 3: 6, 4: 6, 5: 5, 6: 6, 7: 6, 8: 0}
    layers = Fp8Layers(backbone, CPU, torch.float32, joins=True, packs=False)
    assert not isinstance(layers.linear(torch.nn.Linear(128, 24)), Fp8Linear)
    assert isinstance(layers.linear(torch.nn.Linear(128, 32)), Fp8Linear)
    no_copies = Fp8Layers(backbone, CPU, torch.float32, joins=False, packs=False)
    assert not isinstance(no_copies.linear(torch.nn.Linear(128, 32)), Fp8Linear)


@torch.inference_mode()
def test_sampling_in_float8_is_near_the_exact_result_and_off_unless_asked_for(backbone, scales_rows, monkeypatch):
    config = backbone.config
    # Few rows: on a CPU these products are slow.
    noise, context = random(1, config.latent_dim, 6), random(1, 9, config.context_dim, seed=1)
    exact = denoise(backbone, noise, context, SamplingOptions(2))
    assert torch.equal(denoise(backbone, noise, context, SamplingOptions(2, fp8=True)), exact), "a CPU has none"
    monkeypatch.setattr(fp8, "layers_for", lambda device: Fp8Layers)
    near = denoise(backbone, noise, context, SamplingOptions(2, fp8=True))
    assert 1e-3 < (near - exact).norm() / exact.norm() < 0.1
    assert torch.equal(denoise(backbone, noise, context, SamplingOptions(2)), exact)


def test_a_device_without_it_says_so_once(caplog):
    fp8.layers_for.cache_clear()
    assert [fp8.layers_for(CPU) for _ in range(3)] == [Layers] * 3
    assert caplog.text.count("fp8 asks for an NVIDIA GPU of compute capability 8.9 or newer") == 1


def test_a_graph_on_a_device_without_it_gives_the_same_and_says_so(server):
    scene = Scene()
    asked, exact = (scene.add("DashengOptimize", model=scene.model, mode="off", fp8=fp8) for fp8 in (True, False))
    for_fp8, without = latents(server, scene, scene.ours(model=asked), scene.ours(model=exact))
    assert torch.equal(for_fp8, without)
    assert server.log.read_text("utf-8", "replace").count("fp8 asks for an NVIDIA GPU") == 1


def test_a_way_that_gives_wrong_numbers_is_not_taken(monkeypatch):
    monkeypatch.setattr(fp8, "multiply", lambda a, b, dtype, scales_rows: 2 * a.to(dtype) @ b.to(dtype).T)
    assert way_to_multiply.__wrapped__(CPU) is None


def test_a_cpu_has_no_fast_float8():
    assert not has_fp8(CPU)
