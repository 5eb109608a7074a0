"""Activation checkpointing for layers that hold BatchNorm.

The backward pass computes a checkpointed layer a second time, and BatchNorm would take the same batch into its
running statistics twice: another model than without checkpointing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FUNCTION = "_gradient_checkpointing_func"  # by which transformers gives a layer its checkpointing function


class CountedOnce:
    """A checkpointing function, such as `torch.utils.checkpoint.checkpoint`, under which a layer's norms count once."""

    def __init__(self, checkpoint: Callable[..., Any], layer: nn.Module):
        self.checkpoint, self.layer = checkpoint, layer

    def __call__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():  # which sees what is written, and writes it once
            return self.checkpoint(function, *inputs, **options)
        has_run = False

        def counted_once(*values: Any) -> Any:
            nonlocal has_run
            if not has_run:
                has_run = True
                return function(*values)
            with statistics_kept(self.layer):
                return function(*values)

        return self.checkpoint(counted_once, *inputs, **options)


@contextmanager
def statistics_kept(layer: nn.Module) -> Iterator[None]:
    """BatchNorm leaves its running statistics as they are. (Not to track them would save fewer tensors.)"""
    norms = [norm for norm in layer.modules() if isinstance(norm, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
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
            setattr(layer, FUNCTION, CountedOnce(checkpoint, layer))


__all__ = ["count_batches_once"]
