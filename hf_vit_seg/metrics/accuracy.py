"""Top-k accuracy of classification, summed as it streams in.

Shapes: B images, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch

from . import MetricError


class TopKAccuracy:
    """How many images have their class among the k best scored, for some values of k."""

    def __init__(
        self, ks: Sequence[int] = (1, 5), ignore_index: int | None = None, device: torch.device | str | None = None
    ):
        """References equal to `ignore_index` do not count; `device` None follows the scores."""
        if not ks or min(ks) < 1:
            raise MetricError(f"top-k accuracy counts the k best scored classes, k at least 1; got {tuple(ks)}")
        self.ks, self.ignore_index, self.device = tuple(ks), ignore_index, device
        # images right among each k, then all images: int64, to be summed over processes
        self.counts = torch.zeros(len(self.ks) + 1, dtype=torch.int64, device=device)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Count images: scores (B, K), in logits or probabilities, and class indexes (B,).

        MetricError for other shapes. Class indexes outside 0 .. K - 1 are never right.
        """
        if predictions.ndim != 2 or references.shape != predictions.shape[:1]:
            raise MetricError(
                f"top-k accuracy takes scores (B, K) and class indexes (B,); got {tuple(predictions.shape)} and "
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
        """`accuracy` for k = 1 and `top_5_accuracy` for k = 5, each 0 .. 1; NaN when no image was counted."""
        *hits, images = self.counts.tolist()
        names = ["accuracy" if k == 1 else f"top_{k}_accuracy" for k in self.ks]
        return {name: hit / images if images else float("nan") for name, hit in zip(names, hits, strict=True)}


def classes_ahead(scores: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """How many classes (B,) are ranked before an image's own, given scores (B, K) and classes (B,).

    Of equal scores the lower index comes first, as in argmax, so that scores which are all the same earn no hit for
    every class. A NaN comes before any number, and before itself: an image with a NaN as its own score is never right.
    """
    places = torch.arange(scores.shape[1], device=scores.device)
    known = (classes >= 0) & (classes < scores.shape[1])
    own = scores.gather(1, classes.clamp(0, scores.shape[1] - 1)[:, None])
    earlier = places < classes[:, None]
    ahead = torch.where(earlier, ~(scores < own), ~(scores <= own)).sum(dim=1)
    return torch.where(known & ~own[:, 0].isnan(), ahead, torch.iinfo(torch.int64).max)
