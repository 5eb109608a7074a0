"""Base classes of losses: the record of a recipe's row, and the term that it builds.

A term returns a sum over units (pixels or images) and the number of units, so that the mean over an accumulation window
and all processes is the sum of sums divided by the sum of units. Ignored units contribute to neither; if all units are
ignored, the term and its gradient are 0, never NaN.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from hf_vit_seg.records import Factor, Record, RecordError
from hf_vit_seg.training.recipe.schema import Task


class LossTerm(nn.Module):
    """A sum over units, and their number.

    Logits are (B, K, h, w), of any size, with labels (B, H, W) int64, or (B, K) with classes (B,) int64; some terms
    accept soft labels (B, K) instead of classes. A single output (K = 1) is binary: labels 0 and 1.
    """

    def __init__(self, ignore_index: int):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum over units, a scalar in float32 or float64."""
        raise NotImplementedError

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of units, a scalar: by default of valid pixels (images of a classifier)."""
        return (labels != self.ignore_index).sum()


class PerImage(LossTerm):
    """A term whose units are images with at least one valid pixel."""

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of images with valid pixels."""
        return (labels != self.ignore_index).flatten(1).any(1).sum()


class Loss(Record):
    """A term of a recipe's loss."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    multi_label: ClassVar[bool] = False  # whether it accepts several classes of an image
    soft_labels: ClassVar[bool] = False  # whether it accepts shares of classes, which batch transforms produce

    weight: Factor = 1.0  # weight of this term in the sum

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build the term for a model with `num_classes` outputs."""
        raise NotImplementedError

    def check(self, task: Task, num_classes: int) -> None:
        """Raise RecordError if the loss does not support the task or the number of outputs."""
        self.check_task(task)

    def check_task(self, task: Task) -> None:
        """Raise RecordError if the loss does not support the task."""
        if task not in self.tasks:
            raise RecordError(f"this loss supports {' and '.join(self.tasks)}, but the recipe's task is {task}")


def number_of_labels(num_classes: int) -> int:
    """Return the number of labels: two for a model with one output."""
    return max(num_classes, 2)


def as_maps(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Reshape a classifier's logits (B, K) and classes (B,) to maps of one pixel; return maps unchanged."""
    if logits.ndim == 4:
        return logits, labels
    return logits[:, :, None, None], labels[:, None, None]


__all__ = ["Loss", "LossTerm", "PerImage", "as_maps", "number_of_labels"]
