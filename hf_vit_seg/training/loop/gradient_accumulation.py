"""Gradient accumulation: the forward and backward passes of one optimizer step, a window of batches.

The gradient of a step is that of the mean over all units (valid pixels, images) of the window on all processes; units
are counted before the first backward pass. A mean of means would give more weight to pixels of batches with many
ignored pixels, a known bug of accumulation in transformers and accelerate.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, T terms of the loss.
"""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_vit_seg.training.losses.objectives import Batch, Objective


def windows(loader: Any, accumulation: int) -> Iterator[list[Batch]]:
    """Yield the loader's batches, `accumulation` at a time; an incomplete last window is dropped."""
    window: list[Batch] = []
    for batch in loader:
        window.append(batch)
        if len(window) == accumulation:
            yield window
            window = []


def accumulate(accelerator: Accelerator, model: nn.Module, objective: Objective, window: list[Batch]) -> torch.Tensor:
    """Add the gradient of a window's loss to the parameters; return this process's part of the loss, detached.

    The sum over all processes is the loss. DDP averages gradients over processes, and `backward` divides by the
    number of batches in a window; both are undone.
    """
    units: Any = accelerator.reduce(torch.stack([objective.units(batch) for batch in window]).sum(0), "sum")
    undone = accelerator.num_processes * accelerator.gradient_accumulation_steps
    parts = []
    for batch in window:
        with accelerator.accumulate(model):
            part = objective.combine(objective.totals(model, batch), units)
            accelerator.backward(part * undone)
        parts.append(part.detach())
    return torch.stack(parts).sum()
