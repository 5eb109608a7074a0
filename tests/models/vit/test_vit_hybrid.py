"""The hybrid's stem: TensorFlow's padding, standardized kernels that are computed once and never stale."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given
from hypothesis import strategies as st
from random_weights import CHANGES, randomize_weights
from torch.nn.functional import conv2d, group_norm, pad

from hf_vit_seg.models.configuration_vit import VisionTransformerConfig
from hf_vit_seg.models.modeling_vit import PatchEmbeddings
from hf_vit_seg.models.resnetv2 import ChannelNorm, ResNetV2Stem, StandardizedConv2d, StemNumerics, same_padding

FLAX = StemNumerics("same", "std_plus_eps", 1e-5, 1e-6)
TIMM = StemNumerics("same", "sqrt_var_plus_eps", 1e-8, 1e-5)
JEONSWORLD = StemNumerics("symmetric", "sqrt_var_plus_eps", 1e-5, 1e-6, "channel", 1e-5, pool_padding=False)


def stem(numerics: StemNumerics = FLAX, dtype: torch.dtype = torch.float64) -> ResNetV2Stem:
    return randomize_weights(ResNetV2Stem(3, (1, 2), 0.5, numerics)).to(dtype).eval()


def run_uncached(module: ResNetV2Stem, pixel_values: torch.Tensor) -> torch.Tensor:
    """The same stem with autograd, which disables the cache."""
    with torch.enable_grad():
        return module(pixel_values).detach()


@given(st.integers(1, 300), st.sampled_from([1, 3, 7]), st.sampled_from([1, 2]))
def test_same_padding_matches_tensorflow(size, kernel, stride):
    """tensorflow/core/framework/common_shape_fns.cc: output is ceil(size / stride), extra padding at the end."""
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["std_plus_eps", "sqrt_var_plus_eps"])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(7, 2, 20), (3, 2, 8), (3, 2, 9), (3, 1, 8), (1, 2, 8), (1, 1, 5)]
)
def test_convolution_matches_the_reference_formula(mode, kernel, stride, size):
    convolution = randomize_weights(
        StandardizedConv2d(4, 6, kernel, stride, StemNumerics("same", mode, 1e-3, 1e-6))
    ).double()
    weight = convolution.weight
    mean = weight.mean((1, 2, 3), keepdim=True)
    variance = (weight - mean).square().mean((1, 2, 3), keepdim=True)
    deviation = variance.sqrt() + 1e-3 if mode == "std_plus_eps" else (variance + 1e-3).sqrt()
    feature_map = torch.randn(2, 4, size, size, dtype=torch.float64)
    padding = same_padding(size, kernel, stride)
    expected = conv2d(pad(feature_map, padding * 2), (weight - mean) / deviation, stride=stride)
    torch.testing.assert_close(convolution(feature_map), expected, rtol=1e-10, atol=1e-10)


def change_one_number(module):
    module.stages[1].layers[1].conv2.weight.data[3, 4, 1, 2] += 1
    return module


def change_by_training(module):
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1)
    with torch.enable_grad():
        module(torch.randn(1, 3, 16, 16, dtype=next(module.parameters()).dtype)).square().mean().backward()
    optimizer.step()
    return module.eval()


def change_dtype_and_back(module):
    return module.bfloat16().to(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "change",
    [*CHANGES, change_one_number, change_by_training, change_dtype_and_back],
    ids=lambda change: change.__name__,
)
@torch.no_grad()
def test_standardized_kernels_are_never_stale(change, dtype):
    module, pixel_values = stem(dtype=dtype), torch.randn(1, 3, 32, 48, dtype=dtype)
    before = module(pixel_values)
    changed = change(module)
    changed_pixels = pixel_values.to(next(changed.parameters()).dtype)
    after = changed(changed_pixels)
    tolerance = 1e-10 if after.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(after, run_uncached(changed, changed_pixels), rtol=tolerance, atol=tolerance)
    assert not torch.equal(after, before)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_standardized_kernels_are_cached(dtype):
    module, pixel_values = stem(dtype=dtype), torch.randn(1, 3, 32, 48, dtype=dtype)
    module(pixel_values)
    first = module.stages[0].layers[0].conv2.kernels.entry.result
    module(pixel_values)
    assert first is not None and module.stages[0].layers[0].conv2.kernels.entry.result is first
    assert set(module.state_dict()) == set(stem().state_dict())
    assert copy.deepcopy(module).conv.kernels.entry is None


@torch.no_grad()
def test_packed_kernels_accept_any_size_and_memory_format():
    module = stem(dtype=torch.float32)
    for shape in ((1, 3, 32, 48), (3, 3, 64, 64), (1, 3, 32, 48), (2, 3, 48, 40), (1, 3, 33, 47)):
        pixel_values = torch.randn(*shape)
        expected = run_uncached(module, pixel_values)
        torch.testing.assert_close(module(pixel_values), expected, rtol=1e-4, atol=1e-4)
        with torch.inference_mode():
            torch.testing.assert_close(module(pixel_values), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_gradients_flow_after_inference():
    module, pixel_values = stem(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    with torch.inference_mode():
        module(pixel_values)
    with torch.enable_grad():
        module(pixel_values).sin().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


@torch.no_grad()
def test_autocast_and_compiled_stems_use_updated_weights():
    torch._dynamo.reset()
    module, pixel_values = stem(dtype=torch.float32), torch.randn(1, 3, 32, 32)
    module(pixel_values)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        randomize_weights(module, seed)
        expected = run_uncached(module, pixel_values)
        torch.testing.assert_close(compiled(pixel_values), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (module(pixel_values).float() - expected).abs().mean() < 0.05 * expected.std()


def test_numerics_modes_differ():
    pixel_values = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    modes = (FLAX, TIMM, FLAX._replace(padding="symmetric"), JEONSWORLD)
    assert len({float(stem(numerics)(pixel_values).detach().sum()) for numerics in modes}) == len(modes)


@torch.no_grad()
def test_norm_of_channels_is_group_norm():
    """`nn.GroupNorm` raises for one map with a single cell, whose norm is its bias."""
    norm = randomize_weights(ChannelNorm(6, eps=1e-3)).double()
    feature_map = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(feature_map), group_norm(feature_map, 6, norm.weight, norm.bias, 1e-3))
    torch.testing.assert_close(norm(torch.randn(1, 6, 1, 1, dtype=torch.float64)).flatten(), norm.bias)


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (64, 48), (61, 45), (1, 7)])
def test_pooling_without_padding_keeps_the_grid(size):
    """The stem with three stages returns as many cells as the config says, for images of any size."""
    config = VisionTransformerConfig(
        stem="resnetv2",
        stem_depths=(1, 1, 1),
        stem_width_factor=0.5,
        stem_padding="symmetric",
        stem_pool_padding=False,
        stem_shortcut_norm="channel",
        patch_size=1,
        hidden_size=32,
        num_attention_heads=2,
    )
    patches = randomize_weights(PatchEmbeddings(config))(torch.randn(1, 3, *size))
    assert tuple(patches.shape[-2:]) == config.token_grid(*size)


def test_pooling_without_padding_requires_two_stages():
    with pytest.raises(StrictDataclassClassValidationError, match="stem_pool_padding"):
        VisionTransformerConfig(stem="resnetv2", stem_depths=(1,), stem_pool_padding=False)
