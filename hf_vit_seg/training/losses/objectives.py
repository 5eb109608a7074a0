"""The training objective of each task, as sums over units that add up over batches and processes.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, T terms of the loss.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hf_vit_seg.training.recipe.schema import Recipe, Task

from .loss_registry import DEFAULT, LossSum

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


class LogitsObjective:
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


class ModelObjective:
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


class HeadObjective:
    """The loss of a head that predicts objects, in sums whose units the model counts.

    `model` is the model without wrappers.
    """

    def __init__(self, model: Any):
        self.model = model

    def units(self, batch: Batch) -> torch.Tensor:
        """Return the units of each term (T,), such as objects."""
        return self.model.loss_units(**batch_labels(batch))

    def totals(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return each term's sum (T,)."""
        return model(pixel_values=batch["pixel_values"], **batch_labels(batch), loss_reduction="sum").loss

    def combine(self, totals: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        """Return the sum of the terms' means."""
        return (totals / units.where(units > 0, 1)).sum()


def batch_labels(batch: Batch) -> Batch:
    """Return the labels of a batch by name."""
    return {name: value for name, value in batch.items() if name != "pixel_values"}


def has_own_loss(model: Any) -> bool:
    """Return whether a model computes its own loss, as heads that predict objects do."""
    return hasattr(model, "loss_units")


def build_logits_objective(
    recipe: Recipe, num_classes: int, ignore_index: int, frequencies: Sequence[float] | None, model: Any
) -> Objective:
    """Return the objective of the recipe's losses; the default is the loss of the head, if it has one."""
    if has_own_loss(model) and recipe.loss == DEFAULT:
        return HeadObjective(model)
    losses = LossSum.from_recipe(recipe.loss, recipe.task, num_classes, ignore_index, frequencies)
    return LogitsObjective(losses)


def build_model_objective(
    recipe: Recipe, num_classes: int, ignore_index: int, frequencies: Sequence[float] | None, model: Any
) -> Objective:
    """Return the objective of a model that computes its own loss."""
    return HeadObjective(model) if has_own_loss(model) else ModelObjective()


OBJECTIVES: dict[Task, Callable[[Recipe, int, int, Sequence[float] | None, Any], Objective]] = {
    "segmentation": build_logits_objective,
    "classification": build_logits_objective,
    "pose": build_model_objective,
    "instance": build_model_objective,
    "panoptic": build_model_objective,
}
