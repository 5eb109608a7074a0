"""What training must know of any transformers model: its encoder, the layers of that, and plain parameter names.

Nothing here names an architecture. The encoder is what the model's `base_model_prefix` says, its layers are
transformers' GradientCheckpointingLayers in the order in which they were built; everything else is the head.
"""

import re
from typing import Any, cast

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

# What wrappers put before and into the names of parameters: data parallelism, the compiler, adapters.
WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|base_model\.model)\.)+|\.base_layer(?=\.)")


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers have added."""
    return WRAPPERS.sub("", name)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside accelerate's and torch's wrappers; adapters stay."""
    return cast(nn.Module, extract_model_from_parallel(model, keep_torch_compile=False))


def has_adapters(model: nn.Module) -> bool:
    """Whether the model is peft's."""
    return hasattr(unwrapped(model), "get_base_model")


def plain_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside all wrappers; with adapters, the one that they have been put into."""
    inner: Any = unwrapped(model)
    return inner.get_base_model() if has_adapters(inner) else inner


def encoder_prefix(model: nn.Module) -> str:
    """What the names of the encoder's parameters begin with, such as "vit."; "" where all of the model is encoder.

    Models that wear a backbone of another architecture (UperNet) have no base model, but call it `backbone`.
    """
    plain = plain_model(model)
    for name in (plain.base_model_prefix, "backbone"):
        if name and isinstance(getattr(plain, name, None), nn.Module):
            return f"{name}."
    return ""


def encoder_layers(model: nn.Module) -> list[str]:
    """The names of the encoder's layers, first to last; of nested ones the inner."""
    prefix = encoder_prefix(model)
    found = [
        name
        for name, module in plain_model(model).named_modules()
        if isinstance(module, GradientCheckpointingLayer) and name.startswith(prefix)
    ]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
