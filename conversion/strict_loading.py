"""Strict loading: every tensor must match the model; errors give names in the source."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import ConversionError, first_few


def shape_conflicts(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name_of: Callable[[str], str]
) -> list[str]:
    """List tensors with another shape than the model's, with both shapes."""
    return [
        f"{name_of(name)}: found {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name_of: Callable[[str], str]) -> None:
    """ConversionError for tensors that are missing, unexpected, or of another shape."""
    missing = [name_of(name) for name in expected if name not in state]
    if missing:
        raise ConversionError(f"the checkpoint lacks {first_few(missing)}; it is incomplete: get the complete file")
    surplus = [name_of(name) for name in state if name not in expected]
    if surplus:
        raise ConversionError(
            f"the model does not have {first_few(surplus)}; the checkpoint does not match its config (or overrides)"
        )
    conflicts = shape_conflicts(expected, state, name_of)
    if conflicts:
        raise ConversionError(
            f"shapes differ for {first_few(conflicts, 3)}; the checkpoint does not match its config (or overrides)"
        )


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of the first floating-point tensor."""
    return next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)


def load_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str] = str,
) -> PreTrainedModel:
    """Build a model from exactly these tensors, with their dtype; `name_of` returns a tensor's name in the source."""
    config.dtype = dtype_of(state)
    with torch.device("meta"):
        model: Any = model_class(config)
    check(model.state_dict(), state, name_of)
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model
