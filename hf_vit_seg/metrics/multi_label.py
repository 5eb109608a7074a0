"""Scores of classification with several classes per image.

Shapes: B images of a batch, N all images, K classes.
"""

from typing import Any

import numpy as np
import torch

from . import MetricError

THRESHOLD = 0.5  # probability from which a class is predicted


class MultiLabelScores:
    """Average precision and F1 from the probabilities (N, K) and labels (N, K) of all images.

    Average precision depends on the order of all images, so they are kept: processes gather `rows`.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []  # probabilities (B, K) float32 and labels (B, K) bool

    def update(self, probabilities: torch.Tensor, labels: torch.Tensor) -> None:
        """Add images: probabilities (B, K), and labels (B, K) of 0 and 1. Raises MetricError for other shapes."""
        if probabilities.ndim != 2 or labels.shape != probabilities.shape:
            raise MetricError(
                f"expected probabilities and labels (B, K), got {tuple(probabilities.shape)} and {tuple(labels.shape)}"
            )
        self.rows.append((probabilities.float().cpu().numpy(), labels.cpu().numpy() > 0))

    def scores(self) -> dict[str, Any]:
        """Return `mean_average_precision`, `macro_f1`, `micro_f1`, `exact_match`, and those of each class (K,).

        F1 and exact matches are at a probability of 0.5. Classes without labels are NaN and left out of means.
        """
        if not self.rows:
            nan = float("nan")
            return dict.fromkeys(("mean_average_precision", "macro_f1", "micro_f1", "exact_match"), nan)
        probabilities, labels = (np.concatenate(parts) for parts in zip(*self.rows, strict=True))
        predicted = probabilities >= THRESHOLD
        precisions = np.array([average_precision(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)])
        hits, sums = (predicted & labels).sum(0), predicted.sum(0) + labels.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(labels.any(0), 2 * hits / sums, np.nan)
            micro = 2 * hits.sum() / sums.sum()
        return {
            "mean_average_precision": mean_of_known(precisions),
            "macro_f1": mean_of_known(f1),
            "micro_f1": float(micro),
            "exact_match": float((predicted == labels).all(1).mean()),
            "per_category_average_precision": precisions,
            "per_category_f1": f1,
        }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the precision-recall curve, as steps: sum of (R_n - R_(n-1)) P_n; NaN without positive
    labels.

    Images (N,) with equal scores count together.
    """
    if not labels.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(labels[order])
    last = np.append(ordered[1:] != ordered[:-1], True)  # last index of each group of equal scores
    precision, recall = (hits / np.arange(1, len(hits) + 1))[last], (hits / hits[-1])[last]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_of_known(values: np.ndarray) -> float:
    """Return the mean without NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


__all__ = ["MultiLabelScores", "average_precision"]
