"""Per-pixel losses, based on a cross-entropy that never stores full-resolution logits.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from hf_vit_seg.models.bilinear import working_dtype
from hf_vit_seg.models.losses import upsampled_cross_entropy
from hf_vit_seg.records import ExponentFromZero, Factor, RecordError
from hf_vit_seg.training.recipe.schema import Task

from .class_weights import Rule, Weights, class_weights
from .terms import Loss, LossTerm, as_maps, number_of_labels

EVERYWHERE: tuple[Task, ...] = ("segmentation", "classification")


class CrossEntropy(Loss):
    """Cross-entropy: the mean over pixels, with class weights as in torch."""

    tasks: ClassVar[tuple[Task, ...]] = EVERYWHERE
    soft_labels: ClassVar[bool] = True

    class_weights: Rule | Weights | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `CrossEntropyTerm`."""
        weights = class_weights(self.class_weights, number_of_labels(num_classes), class_frequencies)
        return CrossEntropyTerm(ignore_index, weights, self.label_smoothing)


class CrossEntropyTerm(LossTerm):
    """Cross-entropy; units are pixels, or their class weights. Classifiers also accept soft labels (B, K)."""

    def __init__(self, ignore_index: int, weights: torch.Tensor | None, label_smoothing: float):
        """`weights` are (K,), or (2,) for one output."""
        super().__init__(ignore_index)
        self.register_buffer("weights", weights)
        self.weights: torch.Tensor | None
        self.label_smoothing = label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the pixels' losses."""
        weights, smoothing = self.weights, self.label_smoothing
        if labels.is_floating_point():
            logits = logits.to(working_dtype(logits))
            weights = None if weights is None else weights.to(logits)
            return nn.functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
        maps = as_maps(logits, labels)
        return upsampled_cross_entropy(*maps, self.ignore_index, class_weights=weights, label_smoothing=smoothing).sum()

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the weights of valid labels."""
        weights = None if self.weights is None else self.weights.to(labels.device)
        if labels.is_floating_point():
            return (labels if weights is None else labels * weights).sum()
        counts = labels != self.ignore_index
        return counts.sum() if weights is None else weights[labels.where(counts, 0)].where(counts, 0).sum()


class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of a model with one output, or of each class of a classifier."""

    tasks: ClassVar[tuple[Task, ...]] = EVERYWHERE
    multi_label: ClassVar[bool] = True
    soft_labels: ClassVar[bool] = True

    positive_weight: Factor = 1.0  # weight of label 1 relative to label 0
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def check(self, task: Task, num_classes: int) -> None:
        """Raise RecordError for segmentation into more than two classes."""
        super().check(task, num_classes)
        if task == "segmentation" and num_classes != 1:
            raise RecordError(
                f"found {num_classes} classes, expected a segmenter with one output (background and foreground); use "
                "cross_entropy"
            )

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `BinaryCrossEntropyTerm`."""
        return BinaryCrossEntropyTerm(ignore_index, self.positive_weight, self.label_smoothing)


class BinaryCrossEntropyTerm(LossTerm):
    """Binary cross-entropy; units are pixels, or a classifier's images, each the mean over its classes."""

    def __init__(self, ignore_index: int, positive_weight: float, label_smoothing: float):
        super().__init__(ignore_index)
        self.positive_weight, self.label_smoothing = positive_weight, label_smoothing

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the pixels' losses."""
        if logits.shape[1] > 1:
            return self.multilabel_loss(logits, labels)
        weights = torch.tensor([1.0, self.positive_weight])
        return upsampled_cross_entropy(
            *as_maps(logits, labels), self.ignore_index, class_weights=weights, label_smoothing=self.label_smoothing
        ).sum()

    def multilabel_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the loss of logits (B, K) and classes (B,) or soft labels (B, K)."""
        logits = logits.to(working_dtype(logits))
        shares = labels if labels.is_floating_point() else nn.functional.one_hot(labels, logits.shape[1])
        shares = (1 - self.label_smoothing) * shares.to(logits) + self.label_smoothing / logits.shape[1]
        weight = logits.new_tensor(self.positive_weight)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, shares, pos_weight=weight, reduction="none")
        return losses.mean(1).sum()

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of valid pixels, or of images with soft labels."""
        return torch.tensor(len(labels), device=labels.device) if labels.is_floating_point() else super().units(labels)


class Focal(Loss):
    """Focal loss (arXiv 1708.02002), with softmax for several classes."""

    tasks: ClassVar[tuple[Task, ...]] = EVERYWHERE

    gamma: ExponentFromZero = 2.0
    # One output: the weight of label 1, that of 0 is 1 - alpha; else a list.
    alpha: Annotated[float, Field(ge=0, le=1)] | Weights | None = None

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `FocalTerm`."""
        alpha = self.alpha
        if isinstance(alpha, float | int):
            if num_classes != 1:
                raise RecordError(f"alpha: found {alpha:g}, expected a list with one weight per class ({num_classes})")
            alpha = (1 - alpha, alpha)
        return FocalTerm(ignore_index, self.gamma, class_weights(alpha, number_of_labels(num_classes), None))


class FocalTerm(LossTerm):
    """Cross-entropy scaled by the label's alpha and (1 - the label's probability) ** gamma; units are pixels."""

    def __init__(self, ignore_index: int, gamma: float, alpha: torch.Tensor | None):
        """`alpha` is (K,), or (2,) for one output."""
        super().__init__(ignore_index)
        self.gamma = gamma
        self.register_buffer("alpha", alpha)
        self.alpha: torch.Tensor | None

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the pixels' losses."""
        logits, labels = as_maps(logits, labels)
        losses = upsampled_cross_entropy(logits, labels, self.ignore_index)
        error = -torch.expm1(-losses)  # 1 - the label's probability
        scaled = error.clamp(min=torch.finfo(error.dtype).tiny) ** self.gamma * losses  # 0 ** (gamma - 1) is infinite
        if self.alpha is not None:
            counts = labels != self.ignore_index
            scaled = scaled * self.alpha.to(scaled)[labels.where(counts, 0)]
        return scaled.sum()


__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Focal"]
