"""Panoptic quality (arXiv 1801.00868; equation numbers are the paper's).

A predicted and a labeled segment of one class match if their IoU exceeds one half. For each class,

    PQ = sum of the IoU of matches / (TP + FP / 2 + FN / 2) = SQ * RQ                              (1), (2)

Pixels that are ignored in the labels are removed from predictions, and a predicted segment that is not matched and
mostly ignored, or in a crowd of its class, is not a false positive (section 4.2). The pixels of crowds are not removed
from predictions, as in panopticapi.

Shapes: K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from . import MetricError
from .confusion_matrix import present_mean, ratio
from .segment_overlaps import UNITS_PER_ONE, Overlaps, fixed_point

MIN_IOU = 0.5  # matches exceed it, so that each segment has at most one


class PanopticQuality:
    """Panoptic quality. `counts` (4, K) int64: IoU sums in units of 2^-32, matches, false positives, false negatives.

    Counts of images and processes add up.
    """

    def __init__(self, num_classes: int, stuff: Sequence[int] = (), device: torch.device | str | None = None):
        """`stuff` are the indices of the stuff classes; they only affect the means."""
        self.num_classes, self.stuff = num_classes, frozenset(stuff)
        self.counts = torch.zeros(4, num_classes, dtype=torch.int64, device=device)

    def update(self, overlaps: Overlaps) -> None:
        """Add an image. Raises MetricError for classes outside 0 .. K - 1."""
        classes = np.concatenate([overlaps.predicted_classes, overlaps.labeled_classes])
        if len(classes) and not 0 <= classes.min() <= classes.max() < self.num_classes:
            raise MetricError(f"found classes {classes.min()} .. {classes.max()}, expected 0 .. {self.num_classes - 1}")
        iou = np.where(overlaps.same_class(), overlaps.iou, 0)
        predicted, truth = np.nonzero(iou > MIN_IOU)
        missed, wrong = np.ones(len(overlaps.labeled), bool), overlaps.ignored <= MIN_IOU * overlaps.predicted
        missed[truth] = wrong[predicted] = False
        kinds = overlaps.labeled_classes[truth]
        rows = [
            self._sums(kinds, fixed_point(iou[predicted, truth])),
            self._sums(kinds),
            self._sums(overlaps.predicted_classes[wrong]),
            self._sums(overlaps.labeled_classes[missed]),
        ]
        self.counts += torch.from_numpy(np.stack(rows)).to(self.counts.device)

    def _sums(self, classes: np.ndarray, values: np.ndarray | int = 1) -> np.ndarray:
        """Sum values by class (K,)."""
        sums = np.zeros(self.num_classes, np.int64)
        np.add.at(sums, classes, values)
        return sums

    def scores(self) -> dict[str, Any]:
        """Return `pq`, `sq`, `rq`: means over the classes that occur; the same for `_things` and `_stuff`, if there is
        stuff.

        All are 0 .. 1; `per_category_pq`, `_sq`, `_rq` (K,) are NaN for classes that occur neither in labels nor
        in predictions. As in panopticapi, SQ is 0 for a class without matches.
        """
        sums, matches, wrong, missed = self.counts.cpu().numpy().astype(np.float64)
        sums = sums / UNITS_PER_ONE
        recognized = matches + wrong / 2 + missed / 2
        kinds = {
            "pq": ratio(sums, recognized),
            "sq": np.where(recognized > 0, np.nan_to_num(ratio(sums, matches)), np.nan),
            "rq": ratio(matches, recognized),
        }
        scores: dict[str, Any] = {name: present_mean(values) for name, values in kinds.items()}
        if self.stuff:
            is_stuff = np.isin(np.arange(self.num_classes), list(self.stuff))
            for title, chosen in (("things", ~is_stuff), ("stuff", is_stuff)):
                scores |= {f"{name}_{title}": present_mean(values[chosen]) for name, values in kinds.items()}
        return scores | {f"per_category_{name}": values for name, values in kinds.items()}


__all__ = ["PanopticQuality"]
