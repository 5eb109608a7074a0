"""Boundary IoU (arXiv 2103.16562): IoU over the pixels near class boundaries, which is sensitive to boundary errors of
large areas.

A pixel belongs to the boundary region of its class if a pixel of another class, or the outside of the image, is at most
the boundary width away in rows and columns (the published code erodes by 3 x 3 that many times). The paper evaluates
single objects; here the boundary regions of whole label maps are summed over images, as in mean IoU. Ignored pixels do
not belong to boundary regions and do not form boundaries.

Shapes: B images, H W pixels, K classes.
"""

from typing import Any

import torch
from torch.nn.functional import pad

from . import MetricError
from .confusion_matrix import flatten_labels, present_mean, ratio

WIDTH = 0.02  # boundary width as a fraction of the image's diagonal, as in the paper


class BoundaryIoU:
    """Boundary IoU. `counts` (3, K) are the boundary pixels of the intersection, the predictions and the references."""

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        width: float = WIDTH,
        device: torch.device | str | None = None,
    ):
        """The boundary `width` is a share of the image's diagonal; `device` None follows the predictions."""
        self.num_classes, self.ignore_index, self.width, self.device = num_classes, ignore_index, width, device
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Add label maps (H, W) or (B, H, W). Labels outside 0 .. K - 1 are skipped; ConfusionMatrix detects them.

        Raises MetricError for different or other shapes, and for dtypes that are not integers.
        """
        if references.ndim not in (2, 3):
            raise MetricError(f"expected label maps (H, W) or (B, H, W), got {tuple(references.shape)}")
        self.counts = self.counts.to(self.device or predictions.device)
        flat = flatten_labels(predictions, references)
        size = references.shape[-2:]
        predicted, labeled = (labels.to(self.counts.device, torch.int32).view(-1, *size) for labels in flat)
        if self.ignore_index is not None:
            ignored = labeled == self.ignore_index
            predicted, labeled = predicted.masked_fill(ignored, -1), labeled.masked_fill(ignored, -1)
        reach = boundary_width(size, self.width)
        regions = [boundary_mask(labels, reach, self.num_classes) for labels in (predicted, labeled)]
        both = regions[0] & regions[1] & (predicted == labeled)
        masks = ((labeled, both), (predicted, regions[0]), (labeled, regions[1]))
        self.counts += torch.stack([self._pixels(labels, where) for labels, where in masks])

    def scores(self) -> dict[str, Any]:
        """Return `mean_boundary_iou`, and `per_category_boundary_iou` (K,) with NaN for classes without boundary
        pixels.
        """
        both, predicted, labeled = self.counts.cpu().double().numpy()
        iou = ratio(both, predicted + labeled - both)
        return {"mean_boundary_iou": present_mean(iou), "per_category_boundary_iou": iou}

    def _pixels(self, labels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Count the pixels (K,) of each class in a mask."""
        index = labels.masked_fill(~where, self.num_classes).long().flatten()
        bins = self.counts.new_zeros(self.num_classes + 1)
        return bins.scatter_add_(0, index, torch.ones_like(index))[:-1]


def boundary_width(size: tuple[int, ...], share: float) -> int:
    """Return the boundary width in pixels, at least one, for an image of `size` (H, W)."""
    height, width = size
    return max(1, round(share * (height**2 + width**2) ** 0.5))


def boundary_mask(labels: torch.Tensor, reach: int, classes: int) -> torch.Tensor:
    """Return the boundary regions (B, H, W) bool of label maps (B, H, W); labels outside 0 .. K - 1 have none."""
    inside = (labels >= 0) & (labels < classes)
    highest = highest_nearby(labels.masked_fill(~inside, -1), reach, outside=classes)
    lowest = -highest_nearby(-labels.masked_fill(~inside, classes), reach, outside=-classes)
    return inside & ((highest != labels) | (lowest != labels))


def highest_nearby(labels: torch.Tensor, reach: int, outside: int) -> torch.Tensor:
    """Return the maximum label (B, H, W) within `reach` rows and columns; each step doubles the window."""
    length = 2 * reach + 1
    for axis, sides in ((2, (reach, reach)), (1, (0, 0, reach, reach))):
        labels, covered = pad(labels, sides, value=outside), 1
        while covered < length:
            step = min(covered, length - covered)
            rest = labels.shape[axis] - step
            labels = torch.maximum(labels.narrow(axis, 0, rest), labels.narrow(axis, step, rest))
            covered += step
    return labels
