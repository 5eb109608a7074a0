"""Streaming top-k accuracy of classification.

Shapes: B images, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import MetricError


class TopKAccuracy:
    """The share of images whose class is among the k highest scores, for each k in `ks`."""

    def __init__(
        self, ks: Sequence[int] = (1, 5), ignore_index: int | None = None, device: torch.device | str | None = None
    ):
        """References equal to `ignore_index` are ignored; `device` None follows the scores."""
        if not ks or min(ks) < 1:
            raise MetricError(f"every k must be at least 1, got {tuple(ks)}")
        self.ks, self.ignore_index, self.device = tuple(ks), ignore_index, device
        # correct images for each k, then all images: int64, to be summed over processes
        self.counts = torch.zeros(len(self.ks) + 1, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Add images: scores (B, K), logits or probabilities, and class indices (B,).

        Raises MetricError for other shapes. Class indices outside 0 .. K - 1 count as wrong.
        """
        if predictions.ndim != 2 or references.shape != predictions.shape[:1]:
            raise MetricError(
                f"expected scores (B, K) and class indices (B,), got {tuple(predictions.shape)} and "
                f"{tuple(references.shape)}"
            )
        self.counts = self.counts.to(self.device or predictions.device)
        predictions, references = predictions.to(self.counts.device), references.to(self.counts.device).long()
        ahead = classes_ahead(predictions, references)
        counted = torch.ones_like(references, dtype=torch.bool)
        if self.ignore_index is not None:
            counted = references != self.ignore_index
        limits = torch.tensor(self.ks, device=ahead.device)
        hits = (ahead[:, None] < limits) & counted[:, None]
        self.counts += torch.cat([hits.sum(dim=0), counted.sum()[None]])

    def scores(self) -> dict[str, Any]:
        """Return `accuracy` for k = 1, `top_5_accuracy` for k = 5 and so on, 0 .. 1; NaN without images."""
        *hits, images = self.counts.tolist()
        names = ["accuracy" if k == 1 else f"top_{k}_accuracy" for k in self.ks]
        return {name: hit / images if images else float("nan") for name, hit in zip(names, hits, strict=True)}


def classes_ahead(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the number of classes (B,) ranked before an image's class, given scores (B, K) and classes (B,).

    Ties are broken by the lower index, as in argmax, so that constant scores are not a hit for every class. NaN ranks
    before any number: an image whose class has the score NaN is always wrong.
    """
    classes_before = torch.arange(scores.shape[1], device=scores.device)
    has_label = (classes >= 0) & (classes < scores.shape[1])
    own = scores.gather(1, classes.clamp(0, scores.shape[1] - 1)[:, None])
    earlier = classes_before < classes[:, None]
    ahead = torch.where(earlier, ~(scores < own), ~(scores <= own)).sum(dim=1)
    return torch.where(has_label & ~own[:, 0].isnan(), ahead, torch.iinfo(torch.int64).max)
