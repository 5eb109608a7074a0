"""The training objective of each task, as sums over units that add up over batches and processes.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, T terms of the loss.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hf_vit_seg.training.recipe.schema import Recipe, Task

from .registry import LossSum

Batch = dict[str, Any]


class Objective(Protocol):
    """A loss as sums over units, which can be added over batches and processes."""

    def units(self, batch: Batch) -> torch.Tensor:
        """Return the number of units of a batch for each term (T,)."""
        ...

    def totals(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Run the model and return each term's sum over the units of a batch (T,)."""
        ...

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the loss from sums (T,) and numbers of units (T,); linear in `totals`."""
        ...


class LossOfLogits:
    """The recipe's losses on logits (B, K, h, w) or (B, K)."""

    def __init__(self, losses: LossSum):
        self.losses = losses

    def units(self, batch: Batch) -> torch.Tensor:
        """Return the units of each term (T,)."""
        return self.losses.units(batch["labels"])

    def totals(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return each term's sum (T,)."""
        logits = model(pixel_values=batch["pixel_values"]).logits
        return self.losses.to(logits.device).totals(logits, batch["labels"])

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the terms' means."""
        return self.losses.combine(totals, units)


class LossOfModel:
    """The loss that the model itself computes, a mean over images: one term whose units are images."""

    def units(self, batch: Batch) -> torch.Tensor:
        """Return the number of images (1,)."""
        pixels = batch["pixel_values"]
        return torch.tensor([len(pixels)], device=pixels.device)

    def totals(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss, summed over images (1,)."""
        return model(**batch).loss[None] * len(batch["pixel_values"])

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the mean over images."""
        return (totals / units.clamp(min=1)).sum()


def loss_of_logits(
    recipe: Recipe, num_classes: int, ignore_index: int, frequencies: Sequence[float] | None
) -> Objective:
    """Build the objective from the recipe's losses."""
    losses = LossSum.from_recipe(recipe.loss, recipe.task, num_classes, ignore_index, frequencies)
    return LossOfLogits(losses)


def loss_of_model(
    recipe: Recipe, num_classes: int, ignore_index: int, frequencies: Sequence[float] | None
) -> Objective:
    """Return the objective of a model that computes its own loss."""
    return LossOfModel()


OBJECTIVES: dict[Task, Callable[[Recipe, int, int, Sequence[float] | None], Objective]] = {
    "segmentation": loss_of_logits,
    "classification": loss_of_logits,
    "pose": loss_of_model,
    "instance": loss_of_model,
    "panoptic": loss_of_model,
}
