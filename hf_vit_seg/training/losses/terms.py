"""What a loss is: a row of a table, and the term that it builds.

A term gives sums over units (pixels or images) and the number of units, so that the mean over an accumulation window
and all processes is the sum of sums by the sum of units. Units that do not count give neither, so that where nothing
counts a term is 0 and its gradient too, never NaN.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from hf_vit_seg.records import Record, RecordError
from hf_vit_seg.training.recipe.schema import Task


class LossTerm(nn.Module):
    """A sum over units, and their number.

    Logits are (B, K, h, w), of any size, with labels (B, H, W) int64, or (B, K) with classes (B,) int64; terms that say
    so take shares (B, K) in place of classes. A single output (K = 1) is binary: labels 0 and 1.
    """

    def __init__(self, ignore_index: int):
        """`ignore_index` is the label of pixels that do not count."""
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum over units, a scalar in float32 or float64."""
        raise NotImplementedError

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """The number of units, a scalar: here of pixels (images of a classifier) that count."""
        return (labels != self.ignore_index).sum()


class PerImage(LossTerm):
    """A term whose units are images that have a pixel that counts."""

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """The number of such images."""
        return (labels != self.ignore_index).flatten(1).any(1).sum()


class Loss(Record):
    """A term of a recipe's loss."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)

    weight: float = Field(default=1.0, gt=0)  # of this term in the sum

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """The term for a model of `num_classes` outputs."""
        raise NotImplementedError

    def check(self, task: Task, num_classes: int) -> None:
        """RecordError where the loss does not suit the task."""
        if task not in self.tasks:
            raise RecordError(f"a loss for {' and '.join(self.tasks)}, while the recipe's task is {task}")


def number_of_labels(num_classes: int) -> int:
    """How many labels there are: two where a model has one output."""
    return max(num_classes, 2)


def as_maps(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A classifier's logits (B, K) and classes (B,) as maps of one pixel; maps as they are."""
    if logits.ndim == 4:
        return logits, labels
    return logits[:, :, None, None], labels[:, None, None]


__all__ = ["Loss", "LossTerm", "PerImage", "as_maps", "number_of_labels"]
