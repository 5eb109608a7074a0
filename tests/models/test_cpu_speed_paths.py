"""CPU optimizations do not change results: oneDNN for linear layers, row strips."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_weights import randomize_weights

from hf_vit_seg.models import cpu_kernels
from hf_vit_seg.models.configuration_segformer import SegFormerConfig
from hf_vit_seg.models.cpu_kernels import apply_linear, row_strips, use_row_strips
from hf_vit_seg.models.modeling_segformer import MixFFN


@pytest.mark.parametrize("shape", [(9000, 32), (3, 2500, 32), (2, 16, 250, 32), (32,), (0, 32), (40, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_apply_linear_matches_linear(shape, bias):
    layer = randomize_weights(torch.nn.Linear(32, 48, bias=bias))
    tokens = torch.randn(shape)
    outputs = []
    for module in (partial(apply_linear, layer), layer):
        layer.zero_grad()
        inputs = tokens.clone().requires_grad_()
        output = module(inputs)
        output.square().sum().backward()
        outputs.append((output, inputs.grad, *(p.grad for p in layer.parameters())))
        with torch.no_grad():
            torch.testing.assert_close(module(tokens), output, rtol=1e-4, atol=1e-4)
            turned = torch.randn(5, 300, 7, 32).transpose(1, 2)
            torch.testing.assert_close(module(turned), module(turned.contiguous()), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-2)


@pytest.mark.parametrize("function", ["onednn_linear", "linear_by_convolution"])
def test_every_onednn_path_matches_linear(function):
    way = getattr(cpu_kernels, function)
    if way is None:
        pytest.skip("this build of torch has no fused linear layer")
    extra = ("none", [], "") if function == "onednn_linear" else ()
    tokens, weight = torch.randn(4, 300, 64), torch.randn(96, 64)
    for bias in (torch.randn(96), None):
        expected = torch.nn.functional.linear(tokens, weight, bias)
        torch.testing.assert_close(way(tokens, weight, bias, *extra), expected, rtol=1e-4, atol=1e-4)


def test_onednn_requires_plain_float_tensors():
    tokens, weight = torch.randn(1000, 64), torch.nn.Parameter(torch.randn(8, 64))
    assert cpu_kernels.is_plain_float32(tokens, weight)
    assert not cpu_kernels.is_plain_float32(tokens.double(), weight.double())
    with torch.autocast("cpu"):
        assert not cpu_kernels.is_plain_float32(tokens, weight)


def test_row_strips_are_for_inference_only():
    tensor = torch.zeros(1)
    assert not use_row_strips(tensor)
    with torch.no_grad():
        assert use_row_strips(tensor)
    with torch.inference_mode():
        assert use_row_strips(tensor)


@given(st.integers(1, 500), st.integers(1, 10**6), st.integers(0, 10**8))
def test_row_strips_cover_all_rows_once_within_the_budget(height, row_bytes, budget):
    strips = row_strips(height, row_bytes, budget)
    assert [row for first, last in strips for row in range(first, last)] == list(range(height))
    assert all((last - first) * row_bytes <= max(budget, row_bytes) for first, last in strips)


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 700, 5000, 10**9]))
def test_mix_ffn_in_row_strips_matches_mix_ffn(height, width, batch, strip_bytes):
    layer = randomize_weights(
        MixFFN(SegFormerConfig(hidden_sizes=(8, 16, 24, 32), num_attention_heads=(1, 2, 3, 4)), 0)
    ).double()
    hidden_states = torch.randn(batch, height, width, 8, dtype=torch.float64)
    expected = layer(hidden_states).detach()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("hf_vit_seg.models.cpu_kernels.STRIP_BYTES", strip_bytes)
        torch.testing.assert_close(layer(hidden_states), expected, rtol=1e-10, atol=1e-10)
