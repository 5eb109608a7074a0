"""Activation checkpointing for layers that hold BatchNorm.

The backward pass computes a checkpointed layer a second time, and BatchNorm would take the same batch into its
running statistics twice: another model than without checkpointing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FUNCTION = "_gradient_checkpointing_func"  # by which transformers gives a layer its checkpointing function


class CountedOnce:
    """A checkpointing function, such as `torch.utils.checkpoint.checkpoint`, under which a layer's norms count once."""

    def __init__(self, checkpoint: Callable[..., Any]):
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        layer = layer_of(function)
        if layer is None or torch.compiler.is_compiling():  # compilers see what is written, and write it once
            return self.checkpoint(function, *inputs, **options)
        has_run = False

        def counted_once(*values: Any) -> Any:
            nonlocal has_run
            if not has_run:
                has_run = True
                return function(*values)
            with statistics_kept(layer):
                return function(*values)

        return self.checkpoint(counted_once, *inputs, **options)


def layer_of(function: Callable[..., Any]) -> nn.Module | None:
    """The layer whose method a function is, or of which it is a part; replicas of a layer have their own."""
    bound = function.args[:1] if isinstance(function, partial) else ()
    method = function.func if isinstance(function, partial) else function
    owners = (getattr(method, "__self__", None), *bound)
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


@contextmanager
def statistics_kept(layer: nn.Module) -> Iterator[None]:
    """BatchNorm leaves its running statistics as they are. (Not to track them would save fewer tensors.)

    Its count of batches goes on in a copy: SyncBatchNorm does not do without one.
    """
    norms = [norm for norm in layer.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        count = norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def count_batches_once(model: nn.Module) -> None:
    """Have the checkpointed layers of a model, after checkpointing was switched on, count each batch once."""
    for layer in model.modules():
        checkpoint = getattr(layer, FUNCTION, None)
        if checkpoint is not None and not isinstance(checkpoint, CountedOnce):
            setattr(layer, FUNCTION, CountedOnce(checkpoint))


__all__ = ["count_batches_once"]
