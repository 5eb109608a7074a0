"""Checks of loaded weights."""

import pytest
import torch

from hf_vit_seg.inference.loading import is_finite

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite_is_found(dtype, value):
    tensor = torch.randn(7, 5).to(dtype)
    assert is_finite(tensor)
    tensor[3, 2] = value
    assert not is_finite(tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0, 3),
        torch.tensor(3),
        torch.tensor([True, False]),
        torch.zeros(2, 2, dtype=torch.float8_e4m3fn),
        torch.full((2,), torch.finfo(torch.float16).max, dtype=torch.float16),
    ],
)
def test_empty_integer_and_8_bit_tensors_are_finite(tensor):
    assert is_finite(tensor)


def test_8_bit_nan_is_found():
    assert not is_finite(torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
