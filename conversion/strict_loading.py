"""Strict loading: every tensor finds its place in a model, or an error tells its name in the source."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from .errors import ConversionError, first_few


def shape_conflicts(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], named: Callable[[str], str]
) -> list[str]:
    """Tensors of another shape than the model's, each with both shapes."""
    return [
        f"{named(name)}: found {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def check(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], named: Callable[[str], str]) -> None:
    """Refuse tensors that are missing, that the model has no place for, or that have another shape."""
    missing = [named(name) for name in expected if name not in state]
    if missing:
        raise ConversionError(f"the checkpoint lacks {first_few(missing)}; it is incomplete: get the whole file")
    surplus = [named(name) for name in state if name not in expected]
    if surplus:
        raise ConversionError(
            f"the model has no place for {first_few(surplus)}; the checkpoint and its config (or "
            "overrides) do not belong together"
        )
    conflicts = shape_conflicts(expected, state, named)
    if conflicts:
        raise ConversionError(
            f"shapes conflict in {first_few(conflicts, 3)}; the checkpoint and its config (or overrides) "
            "do not belong together"
        )


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """The type of the first floating point tensor."""
    return next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)


def loaded(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    named: Callable[[str], str] = str,
) -> PreTrainedModel:
    """A model with exactly these tensors, in their own type; `named` tells a tensor's name in the source."""
    config.dtype = dtype_of(state)
    with torch.device("meta"):
        model: Any = model_class(config)
    check(model.state_dict(), state, named)
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model
