"""Parameters that are not trained, and what stays in evaluation because its are not: BatchNorms, whole encoders."""

import re
from functools import partial
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_vit_seg.records import RecordError, shortened

from .parameter_names import encoder_prefix, plain_model, plain_name

M = TypeVar("M", bound=nn.Module)


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Take every parameter whose name one of the regular expressions finds out of training.

    RecordError for an expression that finds nothing, and where nothing is left to train.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for pattern in patterns:
        found = [parameter for name, parameter in parameters.items() if compiled(pattern).search(name)]
        if not found:
            parts = sorted({".".join(name.split(".")[:2]) for name in parameters})
            raise RecordError(f"model.freeze: '{pattern}' finds no parameter; there are {shortened(parts, 400)}")
        for parameter in found:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise RecordError("model.freeze: nothing is left to train")


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression; RecordError if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecordError(f"'{pattern}' is no regular expression: {error}") from None


def hold_frozen_norms(model: nn.Module) -> int:
    """Keep the BatchNorms whose parameters are all frozen in evaluation, whatever `train` is told; their number.

    Else a frozen encoder would still drift, by its running statistics. The method is replaced in the instance, so
    that the layer's type, which the fast paths ask for, stays, and copies of the model do the same.
    """
    held = 0
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _NormBase) and own and not any(parameter.requires_grad for parameter in own):
            hold(module)
            held += 1
    return held


def hold_frozen_encoder(model: nn.Module) -> bool:
    """Keep an encoder that is frozen as a whole in evaluation, as `hold_frozen_norms` does; whether it is.

    Else dropout and stochastic depth, which serve to train it, would only blur what the head learns from.
    """
    name = encoder_prefix(model).removesuffix(".")
    encoder = plain_model(model).get_submodule(name)
    if not name or any(parameter.requires_grad for parameter in encoder.parameters()):
        return False
    hold(encoder)
    return True


def hold(module: nn.Module) -> None:
    """Put a module and what is in it into evaluation for good."""
    module.eval()
    module.train = partial(remain_in_evaluation, module)


def remain_in_evaluation(module: M, mode: bool = True) -> M:
    """Stands in for a held module's `train`."""
    module.training = False
    return module
