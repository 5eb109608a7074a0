"""Overlaps of predicted and labeled segments of an image, which the metrics of segments are computed from.

Shapes: H W pixels, P predicted and G labeled segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import MetricError

UNITS_PER_ONE = 2**32  # fixed-point sums of shares: independent of order, exact to 1e-9, and int64 on every device


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """The segments of an image that do not overlap.

    `ids` (H, W) of integers: i >= 1 is segment i, of class `classes[i - 1]`; 0 is background, and -1 is ignored
    (labels only). `scores` of predictions are 0 .. 1, and 1 if they are None. `crowds` of labels (H, W) are the classes
    of ignored pixels in groups of objects that are not labeled one by one, -1 elsewhere.
    """

    ids: torch.Tensor
    classes: Sequence[int]
    scores: Sequence[float] | None = None
    crowds: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Numbers of pixels of an image's segments.

    `both` (P, G) of the intersections, `predicted` (P,) and `labeled` (G,) of the segments, `void` (P,) of predicted
    pixels whose label is ignored and no crowd, and `crowd` (P,) of those in crowds of their class. All are int64;
    classes are (P,) and (G,), scores (P,).
    """

    both: np.ndarray
    predicted: np.ndarray
    labeled: np.ndarray
    void: np.ndarray
    crowd: np.ndarray
    predicted_classes: np.ndarray
    labeled_classes: np.ndarray
    scores: np.ndarray

    @property
    def ignored(self) -> np.ndarray:
        """Predicted pixels (P,) that do not count as wrong: void, and crowds of the class."""
        return self.void + self.crowd

    @property
    def union(self) -> np.ndarray:
        """The union (P, G) of each pair, without void pixels."""
        return (self.predicted - self.void)[:, None] + self.labeled[None] - self.both

    @property
    def iou(self) -> np.ndarray:
        """The intersection over union (P, G) of each pair, without void pixels."""
        return self.both / np.maximum(self.union, 1)

    def same_class(self) -> np.ndarray:
        """Return whether predicted and labeled segments have the same class (P, G)."""
        return self.predicted_classes[:, None] == self.labeled_classes[None]


def find_overlaps(predicted: SegmentMap, labeled: SegmentMap) -> Overlaps:
    """Count the pixels of all pairs of segments. Raises MetricError for invalid maps.

    Segments without pixels are left out.
    """
    check_map("predictions", predicted, lowest=0)
    check_map("references", labeled, lowest=-1)
    if predicted.ids.shape != labeled.ids.shape:
        raise MetricError(
            f"predictions {tuple(predicted.ids.shape)} and references {tuple(labeled.ids.shape)} differ in shape: "
            "compute the segments at the size of the labels"
        )
    columns = len(labeled.classes) + 2  # ignored, no segment, and the segments
    pairs = predicted.ids.to(torch.int64) * columns + labeled.ids.to(predicted.ids.device, torch.int64) + 1
    table = torch.bincount(pairs.flatten(), minlength=(len(predicted.classes) + 1) * columns)
    table = table.view(-1, columns).cpu().numpy()
    rows, kept = table[1:].sum(axis=1) > 0, table[:, 2:].sum(axis=0) > 0
    crowds, own = count_crowds(predicted, labeled)
    scores = np.ones(len(rows)) if predicted.scores is None else np.asarray(predicted.scores, np.float64)
    return Overlaps(
        both=table[1:, 2:][rows][:, kept],
        predicted=table[1:][rows].sum(axis=1),
        labeled=table[:, 2:].sum(axis=0)[kept],
        void=(table[1:, 0] - crowds)[rows],
        crowd=own[rows],
        predicted_classes=np.asarray(predicted.classes, np.int64)[rows],
        labeled_classes=np.asarray(labeled.classes, np.int64)[kept],
        scores=scores[rows],
    )


def count_crowds(predicted: SegmentMap, labeled: SegmentMap) -> tuple[np.ndarray, np.ndarray]:
    """Count the pixels of predicted segments in crowds of all classes, and in those of their class, both (P,)."""
    segments = len(predicted.classes)
    if labeled.crowds is None:
        return np.zeros(segments, np.int64), np.zeros(segments, np.int64)
    crowds = labeled.crowds.to(predicted.ids.device, torch.int64)
    inside = (labeled.ids.to(predicted.ids.device) < 0) & (crowds >= 0)
    columns = max([0, int(crowds.max()) if crowds.numel() else 0, *predicted.classes]) + 1
    pairs = predicted.ids.to(torch.int64)[inside] * columns + crowds[inside]
    table = torch.bincount(pairs, minlength=(segments + 1) * columns).view(-1, columns)[1:].cpu().numpy()
    return table.sum(axis=1), table[np.arange(segments), np.asarray(predicted.classes, np.int64)]


def check_map(title: str, segments: SegmentMap, lowest: int) -> None:
    """Raise MetricError for a map with other dimensions, dtypes or numbers."""
    if segments.ids.ndim != 2 or segments.ids.is_floating_point():
        raise MetricError(
            f"{title} must be integer maps (H, W), got {str(segments.ids.dtype).removeprefix('torch.')} of shape "
            f"{tuple(segments.ids.shape)}"
        )
    if segments.crowds is not None and segments.crowds.shape != segments.ids.shape:
        raise MetricError(f"{title} {tuple(segments.ids.shape)} and their crowds {tuple(segments.crowds.shape)} differ")
    if segments.scores is not None and len(segments.scores) != len(segments.classes):
        raise MetricError(f"{title} have {len(segments.classes)} classes, but {len(segments.scores)} scores")
    if not segments.ids.numel():
        return
    low, high = map(int, segments.ids.aminmax())
    if low < lowest or high > len(segments.classes):
        raise MetricError(
            f"{title} have numbers from {low} to {high}, expected {lowest} .. {len(segments.classes)}, the number of "
            "their classes"
        )


def fixed_point(shares: np.ndarray | float) -> np.ndarray:
    """Convert shares to integers that add up without rounding."""
    return np.rint(np.asarray(shares, np.float64) * UNITS_PER_ONE).astype(np.int64)


__all__ = ["UNITS_PER_ONE", "Overlaps", "SegmentMap", "find_overlaps", "fixed_point"]
