"""Scores of objects without regard to their confidence: F1, aggregated Jaccard index, and counts.

F1 is computed at an IoU of one half, as in cell segmentation challenges: TP / (TP + (FP + FN) / 2). The aggregated
Jaccard index (AJI, Kumar et al. 2017, doi 10.1109/TMI.2017.2677499) assigns each labeled object the predicted object of
the highest IoU, and divides the sum of the intersections by the sum of the unions and of the unassigned predictions.
Objects of different classes never match.

Shapes: P predicted and G labeled segments of an image.
"""

from typing import Any

import numpy as np
import torch

from .confusion_matrix import ratio
from .segment_overlaps import UNITS_PER_ONE, Overlaps, fixed_point

MIN_IOU = 0.5


class ObjectScores:
    """F1 at an IoU of 0.5, AJI, and the error of the number of objects.

    `counts` (8,) int64: matches, predicted and labeled objects, pixels of AJI's numerator and denominator, the sum of
    the relative count errors in units of 2^-32, the images with objects, and the sum of the absolute count errors.
    Counts of images and processes add up.
    """

    def __init__(self, device: torch.device | str | None = None):
        self.counts = torch.zeros(8, dtype=torch.int64, device=device)

    def update(self, overlaps: Overlaps) -> None:
        """Add an image. Predictions that are mostly ignored in the labels are left out, as in panoptic quality."""
        kept = overlaps.ignored <= MIN_IOU * overlaps.predicted
        same = overlaps.same_class()
        iou = np.where(same, overlaps.iou, 0)
        kept |= (iou > MIN_IOU).any(axis=1)
        iou, predicted, truth = iou[kept], int(kept.sum()), len(overlaps.labeled)
        both, whole = aggregate(iou, overlaps, kept)
        error = abs(predicted - truth)
        values = [
            int((iou > MIN_IOU).sum()),
            predicted,
            truth,
            both,
            whole,
            int(fixed_point(error / truth)) if truth else 0,
            int(truth > 0),
            error,
        ]
        self.counts += torch.tensor(values, device=self.counts.device)

    def scores(self) -> dict[str, Any]:
        """Return `f1_50`, `aji`, `count_error`: the mean of |found - true| / true over images with objects.

        F1 and AJI are 0 .. 1. Also `objects`, `objects_found`, and `count_difference`, the sum of |found - true|.
        Undefined scores are NaN.
        """
        hits, predicted, truth, both, whole, relative, images, absolute = self.counts.tolist()
        return {
            "f1_50": float(ratio(2 * hits, predicted + truth)),
            "aji": float(ratio(both, whole)),
            "count_error": float(ratio(relative / UNITS_PER_ONE, images)),
            "objects": truth,
            "objects_found": predicted,
            "count_difference": absolute,
        }


def aggregate(iou: np.ndarray, overlaps: Overlaps, kept: np.ndarray) -> tuple[int, int]:
    """Return AJI's numerator and denominator in pixels; `iou` (P, G) are those of the `kept` predictions (P,)."""
    predicted = (overlaps.predicted - overlaps.void)[kept]
    if not iou.size:
        return 0, int(predicted.sum() + overlaps.labeled.sum())
    best, truths = iou.argmax(axis=0), np.arange(iou.shape[1])
    hit = iou[best, truths] > 0
    both, union = overlaps.both[kept][best, truths][hit], overlaps.union[kept][best, truths][hit]
    unused = np.ones(len(predicted), bool)
    unused[best[hit]] = False
    whole = union.sum() + overlaps.labeled[~hit].sum() + predicted[unused].sum()
    return int(both.sum()), int(whole)


__all__ = ["ObjectScores"]
