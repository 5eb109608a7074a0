"""Activation checkpointing of layers with BatchNorm.

The backward pass computes a checkpointed layer a second time, and BatchNorm would add the same batch to its running
statistics twice, which gives another model than without checkpointing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

FUNCTION = "_gradient_checkpointing_func"  # the attribute where transformers stores it
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class SingleUpdate:
    """A checkpointing function (`torch.utils.checkpoint.checkpoint`) that updates running statistics only once."""

    def __init__(self, checkpoint: Callable[..., Any]):
        self.checkpoint = checkpoint

    def __call__(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        layer = owning_layer(function)
        if layer is None or torch.compiler.is_compiling():  # compilers trace the update once
            return self.checkpoint(function, *inputs, **options)
        has_run = False

        def run_layer(*values: Any) -> Any:
            nonlocal has_run
            if not has_run:
                has_run = True
                return function(*values)
            with frozen_statistics(layer):
                return function(*values)

        return self.checkpoint(run_layer, *inputs, **options)


def owning_layer(function: Callable[..., Any]) -> nn.Module | None:
    """Return the layer that a (partial) function is a method of, or has as its first argument; each replica has its
    own.
    """
    bound = function.args[:1] if isinstance(function, partial) else ()
    method = function.func if isinstance(function, partial) else function
    owners = (getattr(method, "__self__", None), *bound)
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


@contextmanager
def frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Do not update the running statistics of BatchNorm. (Without tracking, other tensors would be saved.)

    The count of batches is updated in a copy, because SyncBatchNorm requires one.
    """
    norms = [norm for norm in layer.modules() if isinstance(norm, BATCH_NORMS)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        count = norm.num_batches_tracked
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def update_statistics_once(model: nn.Module) -> None:
    """Update running statistics once per batch in a model with activation checkpointing enabled."""
    for layer in model.modules():
        checkpoint = getattr(layer, FUNCTION, None)
        if checkpoint is not None and not isinstance(checkpoint, SingleUpdate):
            setattr(layer, FUNCTION, SingleUpdate(checkpoint))


__all__ = ["update_statistics_once"]
