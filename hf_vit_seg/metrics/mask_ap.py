"""Average precision of masks at IoU 0.50 to 0.95, as COCO defines it (Lin et al. 2014; equal to `pycocotools`).

Each prediction is, in order of scores, matched to the unmatched labeled object of its class with the highest IoU.
Precision depends on the order of all predictions, so it is not a sum over images: each prediction is kept as one row of
numbers, and processes gather the rows.

Shapes: P predicted and G labeled objects of an image, T thresholds, A ranges of area, N predictions of all images.
"""

from typing import Any, NamedTuple

import numpy as np

from .confusion_matrix import present_mean
from .keypoint_similarity import THRESHOLDS, interpolate_precision
from .segment_overlaps import Overlaps

# In square pixels of the labels.
AREAS = {"": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
MAX_DETECTIONS = 100  # objects of a class with the highest scores that are evaluated in each image, as in COCO


class ImageRows(NamedTuple):
    """The predictions of an image, by class and sorted by score, and its labeled objects."""

    classes: np.ndarray  # (P,)
    scores: np.ndarray  # (P,)
    hit: np.ndarray  # (A, T, P) true positives
    ignored: np.ndarray  # (A, T, P) neither true nor false positives
    labeled: np.ndarray  # (A, K) labeled objects of each class


class MaskAveragePrecision:
    """Average precision of masks. Processes gather `rows`, one entry per image.

    Only the `max_detections` predictions of a class with the highest scores are evaluated in each image; None evaluates
    all, for images with more than a hundred objects.
    """

    def __init__(self, num_classes: int, max_detections: int | None = MAX_DETECTIONS):
        self.num_classes, self.max_detections = num_classes, max_detections
        self.rows: list[ImageRows] = []

    def update(self, overlaps: Overlaps) -> None:
        """Add an image.

        Crowds of a class are one crowd, with all pixels that are ignored in the labels: a prediction matches it, if no
        object, by the share of its pixels in it, and is left out.
        """
        parts = [self._rows_of_class(overlaps, index) for index in range(self.num_classes)]
        labeled = np.stack([part[-1] for part in parts], axis=1)
        classes, scores = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
        hit, ignored = (np.concatenate([part[column] for part in parts], axis=2) for column in (2, 3))
        self.rows.append(ImageRows(classes, scores, hit, ignored, labeled))

    def _rows_of_class(self, overlaps: Overlaps, index: int) -> ImageRows:
        """Match the objects of one class; `labeled` is (A,)."""
        rows = np.flatnonzero(overlaps.predicted_classes == index)
        rows = rows[np.argsort(-overlaps.scores[rows], kind="stable")][: self.max_detections]
        truth = np.flatnonzero(overlaps.labeled_classes == index)
        lows, highs = np.array(list(AREAS.values())).T[..., None]
        areas, labeled = overlaps.predicted[rows], overlaps.labeled[truth]
        outside = (labeled < lows) | (labeled > highs)  # (A, G)
        whole = areas[:, None] + labeled[None] - overlaps.both[np.ix_(rows, truth)]
        iou = overlaps.both[np.ix_(rows, truth)] / np.maximum(whole, 1)
        crowd = overlaps.ignored[rows] / np.maximum(areas, 1)
        hit, ignored = match(iou, crowd, outside, (areas < lows) | (areas > highs))
        return ImageRows(np.full(len(rows), index), overlaps.scores[rows], hit, ignored, (~outside).sum(axis=1))

    def scores(self) -> dict[str, Any]:
        """Return `mask_ap`, the mean over thresholds 0.50 .. 0.95 and classes; `_50`, `_75`, `_small`, `_medium`,
        `_large`.

        Also `mask_ar`, the recall, and `per_category_mask_ap`, `per_category_mask_ap_50` (K,). All are 0 .. 1; NaN
        without labeled objects.
        """
        shape = (self.num_classes, len(AREAS), len(THRESHOLDS))
        precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
        for index in range(self.num_classes):
            for area in range(len(AREAS)):
                precision[index, area], recall[index, area] = self._curves(index, area)
        scores = {f"mask_ap_{name}".rstrip("_"): present_mean(precision[:, area]) for area, name in enumerate(AREAS)}
        scores |= {"mask_ap_50": present_mean(precision[:, 0, 0]), "mask_ap_75": present_mean(precision[:, 0, 5])}
        per_class = {"mask_ap": precision[:, 0].mean(axis=-1), "mask_ap_50": precision[:, 0, 0]}
        return (
            scores
            | {"mask_ar": present_mean(recall[:, 0])}
            | {f"per_category_{name}": values for name, values in per_class.items()}
        )

    def _curves(self, index: int, area: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the average precision (T,) and the highest recall (T,) of a class in a range of areas."""
        nothing = np.full(len(THRESHOLDS), np.nan)
        total = sum(int(row.labeled[area, index]) for row in self.rows)
        if not total:
            return nothing, nothing
        chosen = [row.classes == index for row in self.rows]
        scores = np.concatenate([row.scores[own] for row, own in zip(self.rows, chosen, strict=True)])
        order = np.argsort(-scores, kind="stable")
        hit = np.concatenate([row.hit[area][:, own] for row, own in zip(self.rows, chosen, strict=True)], axis=1)
        left_out = np.concatenate([r.ignored[area][:, own] for r, own in zip(self.rows, chosen, strict=True)], axis=1)
        curves = [precision_curve(*pair, total) for pair in zip(hit[:, order], left_out[:, order], strict=True)]
        return np.array([values.mean() for values, _ in curves]), np.array([highest for _, highest in curves])


def precision_curve(hit: np.ndarray, ignored: np.ndarray, total: int) -> tuple[np.ndarray, float]:
    """Return the precision at 101 recalls and the highest recall, from predictions (N,) in order of their scores."""
    right, wrong = (hit & ~ignored).cumsum(), (~hit & ~ignored).cumsum()
    return interpolate_precision(right / total, right / (right + wrong + np.spacing(1)))


def match(
    iou: np.ndarray, crowd: np.ndarray, outside: np.ndarray, other_size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match predictions in order of scores; return whether each is a true positive, and whether it is left out, (A, T,
    P).

    `iou` is (P, G), `crowd` (P,) the share of a prediction in the crowd, `outside` (A, G) the labeled objects
    outside of each range of areas, and `other_size` (A, P) the predictions outside of it. Objects outside and the
    crowd are matched only if no other object can be, and the crowd repeatedly; such predictions are left out, as are
    predictions of another size without a match. Of equal overlaps, the last is matched.
    """
    iou = np.concatenate([iou, crowd[:, None]], axis=1)  # (P, G + 1)
    uncounted = np.concatenate([outside, np.ones_like(outside, shape=(len(outside), 1))], axis=1)[:, None]
    limits, columns = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None], iou.shape[1]
    free = np.ones((len(outside), len(THRESHOLDS), columns), bool)
    hit = np.zeros((len(outside), len(THRESHOLDS), len(iou)), bool)
    ignored = np.zeros_like(hit)
    for column, row in enumerate(iou):
        able = free & (row >= limits)
        counting = able & ~uncounted
        hit[..., column] = counting.any(axis=-1)
        able = np.where(hit[..., column, None], counting, able)
        matched = able.any(axis=-1)
        ignored[..., column] = ~hit[..., column] & (matched | other_size[:, column, None])
        best = columns - 1 - np.where(able, row, -1)[..., ::-1].argmax(axis=-1)
        free &= (best[..., None] != np.arange(columns)) | ~matched[..., None]
        free[..., -1] = True
    return hit, ignored


__all__ = ["MAX_DETECTIONS", "MaskAveragePrecision"]
