"""Strict loading: every tensor must match the model; errors give names in the source."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_vit_seg.errors import error_sentence

from .errors import ConversionError, first_few

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def shape_conflicts(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name_of: Callable[[str], str]
) -> list[str]:
    """List tensors with another shape than the model's, with both shapes."""
    return [
        f"{name_of(name)}: found {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]


def check_state_dict(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name_of: Callable[[str], str]
) -> None:
    """Raise ConversionError for tensors that are missing, unexpected, or of another shape."""
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


def check_values(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], name_of: Callable[[str], str]) -> None:
    """Raise ConversionError for tensors of a different kind of dtype than the model's, and for NaN and infinity."""
    kinds = [
        f"{name_of(name)}: found {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in expected.items()
        if not same_kind(state[name].dtype, tensor.dtype)
    ]
    if kinds:
        raise ConversionError(f"types differ for {first_few(kinds, 3)}; save the weights as float32")
    broken = [name_of(name) for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ConversionError(
            f"{first_few(broken)} {'contains' if len(broken) == 1 else 'contain'} NaN or infinite values; the training "
            "diverged, or the file is damaged: use an earlier checkpoint"
        )


def same_kind(found: torch.dtype, expected: torch.dtype) -> bool:
    """Return whether weights of a dtype can be used: floating point (16 bits or more), or integers, as the model's."""
    return found in FLOATS if expected.is_floating_point else found in INTEGERS


def as_expected(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cast integer buffers to the model's dtype; weights keep theirs."""
    return {
        name: tensor if tensor.is_floating_point() else tensor.to(expected[name].dtype)
        for name, tensor in state.items()
    }


def float_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of the first floating-point tensor."""
    return next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)


def load_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str] = str,
) -> PreTrainedModel:
    """Build a model from exactly these tensors, with their dtype; `name_of` returns a tensor's name in the source."""
    model = build_model(model_class, config, state, name_of)
    expected = model.state_dict()
    check_values(expected, state, name_of)
    model.load_state_dict(as_expected(expected, state), strict=True, assign=True)
    return model


def build_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str] = str,
) -> PreTrainedModel:
    """Build a model on the meta device; ConversionError if it does not have exactly these tensors by name and shape."""
    config.dtype = float_dtype(state)
    try:
        with torch.device("meta"):
            model: Any = model_class(config)
    except (
        ArithmeticError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # invalid values in a config.json
        reason = error_sentence(error, short=True)
        raise ConversionError(
            f"{model_class.__name__} cannot be built from the checkpoint's shapes and config ({type(error).__name__}: "
            f"{reason}); correct config.json, or pass overrides"
        ) from error
    check_state_dict(model.state_dict(), state, name_of)
    return model
