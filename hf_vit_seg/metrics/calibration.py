"""Calibration error (arXiv 1706.04599; equal-mass bins: arXiv 1904.01685).

The confidence of a prediction is the probability of its most probable class; the calibration error is the mean
distance between confidence and accuracy over bins of confidence, weighted by the predictions in them.

Shapes: B images, K classes; ... is empty for images, H W for maps.
"""

from typing import Any

import torch

from . import MetricError

SLACK = 1e-2  # tolerance for a sum of probabilities computed in bfloat16


class CalibrationError:
    """Calibration error over M bins of equal width, ((m - 1) / M, m / M], as in the paper."""

    def __init__(self, bins: int = 15, ignore_index: int | None = None, device: torch.device | str | None = None):
        """References equal to `ignore_index` are ignored; `device` None follows the probabilities."""
        if bins < 1:
            raise MetricError(f"bins must be at least 1, got {bins}")
        self.bins, self.ignore_index, self.device = bins, ignore_index, device
        # (3, M) float64: predictions, sum of confidence, hits; to be summed over processes
        self.counts = torch.zeros(3, bins, dtype=torch.float64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Add probabilities (B, K, ...) and class indices (B, ...). Raises MetricError for other shapes."""
        self.counts = self.counts.to(self.device or predictions.device)
        confidence, hits = confidences(
            predictions.to(self.counts.device), references.to(self.counts.device), self.ignore_index
        )
        index = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        sums = torch.stack([torch.ones_like(confidence), confidence, hits.double()])
        self.counts.index_add_(1, index, sums)

    def scores(self) -> dict[str, Any]:
        """Return `calibration_error` (ECE) and `maximum_calibration_error` (MCE), 0 .. 1; NaN if there are none."""
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
    """Return the confidence (N,) float64 and correctness (N,) bool of all predictions that are not ignored.

    Raises MetricError for other shapes and, on a CPU, for values that are not probabilities, such as logits.
    """
    if probabilities.ndim < 2 or references.shape != probabilities.shape[:1] + probabilities.shape[2:]:
        raise MetricError(
            f"expected probabilities (B, K, ...) and class indices (B, ...), got "
            f"{tuple(probabilities.shape)} and {tuple(references.shape)}"
        )
    sums = probabilities.sum(dim=1, dtype=torch.float64)
    if sums.is_cpu and not (((sums - 1).abs() <= SLACK).all() and (probabilities >= 0).all()):
        raise MetricError("expected probabilities that sum to 1 over the classes: apply softmax to logits")
    confidence, predicted = probabilities.max(dim=1)
    counted = torch.ones_like(references, dtype=torch.bool)
    if ignore_index is not None:
        counted = references != ignore_index
    return confidence[counted].double(), (predicted == references)[counted]


def adaptive_calibration_error(confidence: torch.Tensor, hits: torch.Tensor, bins: int = 15) -> float:
    """Return the calibration error over equal-mass bins; NaN without predictions.

    `confidence` (N,) is 0 .. 1 and `hits` (N,) bool. It is not a sum over processes, so all confidences are needed.
    """
    if not len(confidence):
        return float("nan")
    order = confidence.argsort(stable=True)
    gaps = (confidence.double() - hits.double())[order].tensor_split(min(bins, len(order)))
    return float(torch.stack([gap.sum().abs() for gap in gaps]).sum() / len(order))
