"""Find the encoder and its layers in any transformers model, and parameter names without wrapper prefixes.

The encoder is the module named by `base_model_prefix`; its layers are transformers' GradientCheckpointingLayers in the
order of construction. Everything else is the head.
"""

import re
from typing import Any, cast

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

# Prefixes and infixes that data parallelism, torch.compile and adapters add to parameter names.
WRAPPERS = re.compile(
    r"^(?:(?:module|_orig_mod|base_model\.model)\.)+|\.(?:base_layer|original_module|modules_to_save\.\w+)(?=\.)"
)

SAVED_ADAPTERS = "saved_adapters"  # attribute of a pretrained model: the adapters of its checkpoint, to train further
INITIALIZED = "initialized_tensors"  # attribute of a pretrained model: tensors that its checkpoint lacks, as adapted


def plain_name(name: str) -> str:
    """Return a parameter's name without the additions of wrappers."""
    return WRAPPERS.sub("", name)


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside accelerate's and torch's wrappers; adapters stay."""
    return cast(nn.Module, extract_model_from_parallel(model, keep_torch_compile=False))


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model is wrapped by peft."""
    return hasattr(unwrap_model(model), "get_base_model")


def plain_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside all wrappers, including peft's."""
    inner: Any = unwrap_model(model)
    return inner.get_base_model() if has_adapters(inner) else inner


def encoder_prefix(model: nn.Module) -> str:
    """Return the prefix of the encoder's parameter names, such as "vit."; "" if the whole model is an encoder.

    Models with a backbone of another architecture (UperNet) have no base model; the prefix is "backbone.".
    """
    plain = plain_model(model)
    for name in (plain.base_model_prefix, "backbone"):
        if name and isinstance(getattr(plain, name, None), nn.Module):
            return f"{name}."
    return ""


def encoder_layers(model: nn.Module) -> list[str]:
    """Return the names of the encoder's layers in order; of nested layers only the innermost."""
    prefix = encoder_prefix(model)
    names = [
        name
        for name, module in plain_model(model).named_modules()
        if isinstance(module, GradientCheckpointingLayer) and name.startswith(prefix)
    ]
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
