"""Freeze parameters and count them, and keep frozen BatchNorms and frozen encoders in evaluation mode."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from hf_vit_seg.records import RecordError, shorten

from .parameter_names import encoder_prefix, plain_model, plain_name

M = TypeVar("M", bound=nn.Module)


def matching_parameters(model: nn.Module, patterns: tuple[str, ...]) -> dict[str, list[nn.Parameter]]:
    """Return the parameters whose names match each of the regular expressions (`re.search`).

    RecordError if an expression matches no parameter.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    matches = {}
    for pattern in patterns:
        expression = compile_pattern(pattern)
        matches[pattern] = [parameter for name, parameter in parameters.items() if expression.search(name)]
        if not matches[pattern]:
            parts = sorted({".".join(name.split(".")[:2]) for name in parameters})
            raise RecordError(f"model.freeze: '{pattern}' matches no parameter; found {shorten(parts, 400)}")
    return matches


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Freeze every parameter whose name matches one of the regular expressions (`re.search`).

    RecordError if an expression matches no parameter, or if no trainable parameter remains.
    """
    for parameters in matching_parameters(model, patterns).values():
        for parameter in parameters:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecordError("model.freeze: no trainable parameters remain")


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of a prepared model's parameters, and of the tensors that each rule of `model.freeze` matches."""

    trainable: int
    frozen: int
    freeze: Mapping[str, int]

    @property
    def total(self) -> int:
        """All parameters, including those of adapters."""
        return self.trainable + self.frozen

    def details(self) -> dict[str, Any]:
        """Return the entry of metrics.json."""
        counts = {"trainable": self.trainable, "frozen": self.frozen, "total": self.total}
        return counts | {"freeze": dict(self.freeze)}

    def notes(self) -> list[str]:
        """Describe the counts for the log, with a line for each rule."""
        rules = [f"model.freeze '{pattern}' matches {tensors} tensors" for pattern, tensors in self.freeze.items()]
        return [*rules, f"parameters: {self.trainable:,} trainable, {self.frozen:,} frozen, {self.total:,} in total"]


def count_parameters(model: nn.Module, patterns: tuple[str, ...]) -> ParameterCounts:
    """Count the parameters of a prepared model, before it is sharded, and the tensors that each rule matches."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    matched = {pattern: len(matches) for pattern, matches in matching_parameters(model, patterns).items()}
    return ParameterCounts(counts[True], counts[False], matched)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a regular expression; RecordError if it is invalid."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise RecordError(f"'{pattern}' is not a valid regular expression: {error}") from None


def lock_frozen_norms(model: nn.Module) -> int:
    """Keep BatchNorms whose parameters are all frozen in evaluation mode, and return their number.

    Otherwise the running statistics of a frozen encoder would still change. `train` is replaced on the instance: the
    fast paths check the layer's type, which stays the same, and copies of the model behave the same.
    """
    held = 0
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _NormBase) and own and not any(parameter.requires_grad for parameter in own):
            lock_eval_mode(module)
            held += 1
    return held


def lock_frozen_encoder(model: nn.Module) -> bool:
    """Keep a completely frozen encoder in evaluation mode; return whether it is.

    Otherwise dropout and stochastic depth would add noise to the features, although the encoder is not trained.
    """
    name = encoder_prefix(model).removesuffix(".")
    encoder = plain_model(model).get_submodule(name)
    if not name or any(parameter.requires_grad for parameter in encoder.parameters()):
        return False
    lock_eval_mode(encoder)
    return True


def lock_eval_mode(module: nn.Module) -> None:
    """Set a module and its children to evaluation mode, and make `train` ineffective."""
    module.eval()
    module.train = partial(ignore_train_mode, module)


def ignore_train_mode(module: M, mode: bool = True) -> M:
    """Replace `train` of a module that stays in evaluation mode."""
    module.training = False
    return module
