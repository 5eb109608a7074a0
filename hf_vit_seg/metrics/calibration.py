"""Calibration: whether a confidence of 0.8 is right eight times of ten (arXiv 1706.04599; equal-mass bins 1904.01685).

The confidence of a prediction is the probability of its most probable class; the calibration error is the mean
distance between confidence and accuracy over bins of confidence, weighted by the predictions in them.

Shapes: B images, K classes; ... nothing for images, H W for maps.
"""

from typing import Any

import torch

from . import MetricError

SLACK = 1e-2  # of a sum of probabilities, which may have been computed in bfloat16


class CalibrationError:
    """Predictions, their confidence and their hits in bins of equal width ((m - 1) / M, m / M], as in the paper."""

    def __init__(self, bins: int = 15, ignore_index: int | None = None, device: torch.device | str | None = None):
        """References equal to `ignore_index` do not count; `device` None follows the probabilities."""
        if bins < 1:
            raise MetricError(f"a calibration error has one bin or more, got bins={bins}")
        self.bins, self.ignore_index, self.device = bins, ignore_index, device
        # (3, M) float64: predictions, sum of confidence, hits; to be summed over processes
        self.counts = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Count probabilities (B, K, ...) and class indexes (B, ...). MetricError for other shapes."""
        self.counts = self.counts.to(self.device or predictions.device)
        confidence, hits = confidences(
            predictions.to(self.counts.device), references.to(self.counts.device), self.ignore_index
        )
        index = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        sums = torch.stack([torch.ones_like(confidence), confidence, hits.double()])
        self.counts.index_add_(1, index, sums)

    def scores(self) -> dict[str, Any]:
        """`calibration_error` (expected, ECE) and `maximum_calibration_error` (of the worst bin), 0 .. 1, or NaN."""
        number, confidence, hits = self.counts.cpu()
        if not number.sum():
            return {"calibration_error": float("nan"), "maximum_calibration_error": float("nan")}
        filled = number > 0
        gaps = ((confidence - hits).abs() / number)[filled]
        return {
            "calibration_error": float((gaps * number[filled]).sum() / number.sum()),
            "maximum_calibration_error": float(gaps.max()),
        }


def confidences(
    probabilities: torch.Tensor, references: torch.Tensor, ignore_index: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence (N,) float64 and whether it is right (N,) bool, of the predictions that count.

    On a CPU, MetricError where something was given that is no probability, such as logits.
    """
    if probabilities.ndim < 2 or references.shape != probabilities.shape[:1] + probabilities.shape[2:]:
        raise MetricError(
            f"a calibration error takes probabilities (B, K, ...) and class indexes (B, ...); got "
            f"{tuple(probabilities.shape)} and {tuple(references.shape)}"
        )
    sums = probabilities.sum(dim=1, dtype=torch.float64)
    if sums.is_cpu and not (((sums - 1).abs() <= SLACK).all() and (probabilities >= 0).all()):
        raise MetricError("a calibration error takes probabilities that sum to 1 over the classes: softmax the logits")
    confidence, predicted = probabilities.max(dim=1)
    counted = torch.ones_like(references, dtype=torch.bool)
    if ignore_index is not None:
        counted = references != ignore_index
    return confidence[counted].double(), (predicted == references)[counted]


def adaptive_calibration_error(confidence: torch.Tensor, hits: torch.Tensor, bins: int = 15) -> float:
    """The calibration error over bins that hold equally many predictions; NaN without any.

    `confidence` (N,) is 0 .. 1 and `hits` (N,) bool. This needs all confidences at once: it is no sum over processes.
    """
    if not len(confidence):
        return float("nan")
    order = confidence.argsort(stable=True)
    gaps = (confidence.double() - hits.double())[order].tensor_split(min(bins, len(order)))
    return float(torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(order))
