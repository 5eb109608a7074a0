"""Freeze parameters, and keep frozen BatchNorms and frozen encoders in evaluation mode."""

import re
from functools import partial
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_vit_seg.records import RecordError, shorten

from .parameter_names import encoder_prefix, plain_model, plain_name

M = TypeVar("M", bound=nn.Module)


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze every parameter whose name matches one of the regular expressions (`re.search`).

    RecordError if an expression matches no parameter, or if no trainable parameter remains.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for pattern in patterns:
        found = [parameter for name, parameter in parameters.items() if compile_pattern(pattern).search(name)]
        if not found:
            parts = sorted({".".join(name.split(".")[:2]) for name in parameters})
            raise RecordError(f"model.freeze: '{pattern}' matches no parameter; found {shorten(parts, 400)}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RecordError("model.freeze: no trainable parameters remain")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression; RecordError if it is invalid."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecordError(f"'{pattern}' is not a valid regular expression: {error}") from None


def hold_frozen_norms(model: nn.Module) -> int:
    """Keep BatchNorms whose parameters are all frozen in evaluation mode, and return their number.

    Otherwise the running statistics of a frozen encoder would still change. `train` is replaced on the instance: the
    fast paths check the layer's type, which stays the same, and copies of the model behave the same.
    """
    held = 0
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _NormBase) and own and not any(parameter.requires_grad for parameter in own):
            keep_in_evaluation(module)
            held += 1
    return held


def hold_frozen_encoder(model: nn.Module) -> bool:
    """Keep a completely frozen encoder in evaluation mode; return whether it is.

    Otherwise dropout and stochastic depth would add noise to the features, although the encoder is not trained.
    """
    name = encoder_prefix(model).removesuffix(".")
    encoder = plain_model(model).get_submodule(name)
    if not name or any(parameter.requires_grad for parameter in encoder.parameters()):
        return False
    keep_in_evaluation(encoder)
    return True


def keep_in_evaluation(module: nn.Module) -> None:
    """Set a module and its children to evaluation mode, and make `train` ineffective."""
    module.eval()
    module.train = partial(remain_in_evaluation, module)


def remain_in_evaluation(module: M, mode: bool = True) -> M:
    """Replace `train` of a module that stays in evaluation mode."""
    module.training = False
    return module
