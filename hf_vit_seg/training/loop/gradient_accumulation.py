"""The accumulation window: the forward and backward passes that make one step of the optimizer.

The gradient of a step is that of the mean over all units (valid pixels, images) of the whole window on all processes,
however they are spread: the units are counted before the first backward pass. Means of means would give a pixel of a
batch with many ignored pixels more weight than others (transformers' and accelerate's well-known accumulation trap).

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, T terms of the loss.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

Batch = dict[str, Any]


class Objective(Protocol):
    """A loss as sums over units, so that it can be added up over batches and processes."""

    def units(self, batch: Batch) -> torch.Tensor:
        """How many units a batch has for each term: (T,)."""
        ...

    def totals(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Each term, summed over the units of a batch: (T,); runs the model."""
        ...

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """The loss of sums (T,) over so many units (T,); linear in `totals`."""
        ...


def windows(loader: Any, accumulation: int) -> Iterator[list[Batch]]:
    """The loader's batches, `accumulation` at a time; what is left at the end makes no window."""
    window: list[Batch] = []
    for batch in loader:
        window.append(batch)
        if len(window) == accumulation:
            yield window
            window = []


def accumulate(accelerator: Accelerator, model: nn.Module, objective: Objective, window: list[Batch]) -> torch.Tensor:
    """Add the gradient of a window's loss to the parameters; the loss of this process's part, detached.

    The sum of what all processes get is the loss. DDP takes the mean of the processes' gradients and `backward`
    divides by the number of batches in a window: both are undone.
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
