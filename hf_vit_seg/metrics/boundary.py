"""Boundary IoU (arXiv 2103.16562): IoU over the pixels near the borders of classes, where large areas cannot hide a
ragged outline.

A pixel lies in the band of its class if a pixel of another class, or the outside of the image, is no further away
than the band is wide, in rows and in columns (the published code erodes by 3 x 3 as often). The paper measures objects
one by one; here the bands of whole label maps are summed over images, as is done for mean IoU. Pixels that do not
count neither lie in a band nor make one.

Shapes: B images, H W pixels, K classes.
"""

from typing import Any

import torch
from torch.nn.functional import pad

from . import MetricError
from .confusion_matrix import checked, present_mean, ratio

WIDTH = 0.02  # of the band, as a share of the image's diagonal (the paper's)


class BoundaryIoU:
    """For each class: pixels in the bands of predictions and references alike, of predictions, and of references."""

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        width: float = WIDTH,
        device: torch.device | str | None = None,
    ):
        """`width` of a band is a share of the image's diagonal; `device` None follows the predictions."""
        self.num_classes, self.ignore_index, self.width, self.device = num_classes, ignore_index, width, device
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Count label maps (H, W) or (B, H, W). Labels outside 0 .. K - 1 lie in no band; ConfusionMatrix finds them.

        MetricError for shapes that differ, other shapes, and numbers that are no integers.
        """
        if references.ndim not in (2, 3):
            raise MetricError(f"boundaries are those of maps (H, W) or (B, H, W), got {tuple(references.shape)}")
        self.counts = self.counts.to(self.device or predictions.device)
        flat = checked(predictions, references)
        size = references.shape[-2:]
        predicted, labelled = (labels.to(self.counts.device, torch.int32).view(-1, *size) for labels in flat)
        if self.ignore_index is not None:
            ignored = labelled == self.ignore_index
            predicted, labelled = predicted.masked_fill(ignored, -1), labelled.masked_fill(ignored, -1)
        reach = band_width(size, self.width)
        around = [band(labels, reach, self.num_classes) for labels in (predicted, labelled)]
        both = around[0] & around[1] & (predicted == labelled)
        bands = ((labelled, both), (predicted, around[0]), (labelled, around[1]))
        self.counts += torch.stack([self._pixels(labels, where) for labels, where in bands])

    def scores(self) -> dict[str, Any]:
        """`mean_boundary_iou`, and `per_category_boundary_iou` (K,) with NaN for classes without a band."""
        both, predicted, labelled = self.counts.cpu().double().numpy()
        iou = ratio(both, predicted + labelled - both)
        return {"mean_boundary_iou": present_mean(iou), "per_category_boundary_iou": iou}

    def _pixels(self, labels: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        """Pixels (K,) of each class in a band."""
        index = labels.masked_fill(~where, self.num_classes).long().flatten()
        bins = self.counts.new_zeros(self.num_classes + 1)
        return bins.scatter_add_(0, index, torch.ones_like(index))[:-1]


def band_width(size: tuple[int, ...], share: float) -> int:
    """Pixels of a band's width, at least one, for an image of `size` (H, W)."""
    height, width = size
    return max(1, round(share * (height**2 + width**2) ** 0.5))


def band(labels: torch.Tensor, reach: int, classes: int) -> torch.Tensor:
    """Where in label maps (B, H, W) of 0 .. K - 1, or anything else for no class, the bands are: (B, H, W) bool."""
    inside = (labels >= 0) & (labels < classes)
    highest = highest_nearby(labels.masked_fill(~inside, -1), reach, outside=classes)
    lowest = -highest_nearby(-labels.masked_fill(~inside, classes), reach, outside=-classes)
    return inside & ((highest != labels) | (lowest != labels))


def highest_nearby(labels: torch.Tensor, reach: int, outside: int) -> torch.Tensor:
    """The highest label (B, H, W) no further than `reach` rows and columns away.

    By doubling: the highest of 2 n neighbors is the higher of the highest of n and n.
    """
    length = 2 * reach + 1
    for axis, sides in ((2, (reach, reach)), (1, (0, 0, reach, reach))):
        labels, covered = pad(labels, sides, value=outside), 1
        while covered < length:
            step = min(covered, length - covered)
            rest = labels.shape[axis] - step
            labels = torch.maximum(labels.narrow(axis, 0, rest), labels.narrow(axis, step, rest))
            covered += step
    return labels
