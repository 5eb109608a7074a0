"""Cross-entropy of a subset of pixels: hard pixels, or pixels near boundaries; all others are ignored.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from hf_vit_seg.models.losses import upsampled_cross_entropy
from hf_vit_seg.records import Count

from .terms import Loss, LossTerm, PerImage


class Ohem(Loss):
    """Cross-entropy of each image's hard pixels (online hard example mining, OHEM)."""

    threshold: float = Field(default=0.7, gt=0, le=1)  # pixels with a lower probability are hard
    min_kept_share: float = Field(default=0.1, gt=0, le=1)  # share of hardest pixels that are always kept, per image

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build an `OhemTerm`."""
        return OhemTerm(ignore_index, self.threshold, self.min_kept_share)


class OhemTerm(PerImage):
    """The mean over each image's hard pixels; units are images.

    mmsegmentation selects pixels from the whole batch and divides by all its pixels. Here pixels are selected per
    image, so that the loss depends neither on the batch size nor on the number of processes.
    """

    def __init__(self, ignore_index: int, threshold: float, min_kept_share: float):
        super().__init__(ignore_index)
        self.easiest, self.min_kept_share = -math.log(threshold), min_kept_share

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the images' means."""
        losses = upsampled_cross_entropy(logits, labels, self.ignore_index).flatten(1)
        counts = (labels != self.ignore_index).flatten(1)
        with torch.no_grad():
            kept = torch.stack([self.hard(*image) for image in zip(losses.detach(), counts, strict=True)])
        return (losses.where(kept, 0).sum(1) / kept.sum(1).clamp(min=1)).sum()

    def hard(self, losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the mask of kept pixels of an image, from losses and valid pixels (H W)."""
        min_kept = math.ceil(self.min_kept_share * int(counts.sum()))
        if not min_kept:
            return counts
        ranked = losses.where(counts, -1.0)
        bar = ranked.kthvalue(len(ranked) - min_kept + 1).values.clamp(max=self.easiest)
        return ranked >= bar


class Boundary(Loss):
    """Cross-entropy of pixels near a class boundary, as an addition to another loss."""

    width: Count = 3  # pixels on either side

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build a `BoundaryTerm`."""
        return BoundaryTerm(ignore_index, self.width)


class BoundaryTerm(LossTerm):
    """Cross-entropy of pixels with another class, not counting ignored pixels, in the square around them."""

    def __init__(self, ignore_index: int, width: int):
        super().__init__(ignore_index)
        self.width = width

    def boundary_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Set labels (B, H, W) far from boundaries to `ignore_index`."""
        counts, width = labels != self.ignore_index, self.width
        around = torch.stack([labels, -labels], 1).float().where(counts[:, None], -torch.inf)  # float32 holds labels
        for square, padding in (((1, 2 * width + 1), (0, width)), ((2 * width + 1, 1), (width, 0))):
            around = nn.functional.max_pool2d(around, square, stride=1, padding=padding)
        highest, lowest = around[:, 0], -around[:, 1]
        return labels.where(counts & (highest != lowest), self.ignore_index)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the sum of the pixels' losses."""
        return upsampled_cross_entropy(logits, self.boundary_labels(labels), self.ignore_index).sum()

    def units(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of pixels near boundaries."""
        return super().units(self.boundary_labels(labels))


__all__ = ["Boundary", "Ohem"]
