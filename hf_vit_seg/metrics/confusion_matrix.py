"""A streaming confusion matrix of label maps, and the segmentation scores derived from it.

Shapes: K classes; labels may have any shape, such as (H, W) or (B, H, W).
"""

from typing import Any

import numpy as np
import torch

from . import MetricError

PIECE = 2**18  # labels counted at a time on a CPU, so that temporaries fit into a core's cache
MAX_ROWS = 1024  # rows of the table of raw values on a CPU


class ConfusionMatrix:
    """Counts of pixels (or images) by reference and predicted class.

    Pixels with reference `ignore_index` are ignored, with any prediction; None ignores nothing.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, device: torch.device | str | None = None):
        """`device` is the device of the counts; None follows the predictions."""
        if num_classes < 1:
            raise MetricError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes, self.ignore_index, self.device = num_classes, ignore_index, device
        # K * K pairs in row-major order, then ignored labels, then invalid labels
        self.bins = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)

    @property
    def counts(self) -> torch.Tensor:
        """(K, K) int64 as [reference, prediction], a view; sum it over processes and assign the result.

        Raises MetricError for invalid labels. On a GPU they are only detected here, as `update` does not synchronize.
        """
        if invalid := int(self.bins[-1]):
            raise MetricError(f"{invalid} {self._describe_invalid()}")
        return self.bins[:-2].view(self.num_classes, self.num_classes)

    @counts.setter
    def counts(self, counts: torch.Tensor) -> None:
        self.counts.copy_(counts)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Add integer labels of equal shape, and return their counts (K, K), as [reference, prediction].

        Raises MetricError, without adding any, for different shapes, dtypes that are not integers, and labels outside
        0 .. K - 1 that are not ignored.
        """
        predictions, references = flatten_labels(predictions, references)
        self.bins = self.bins.to(self.device or predictions.device)
        predictions, references = predictions.to(self.bins.device), references.to(self.bins.device)
        if not self.bins.is_cpu:
            added = self._count_labels(predictions, references)
            self.bins += added
            return added[:-2].view(self.num_classes, self.num_classes)
        added = torch.zeros_like(self.bins)
        for pair in zip(predictions.split(PIECE), references.split(PIECE), strict=True):
            quick = self._count_by_table(*pair)
            added += self._count_labels(*pair) if quick is None else quick
        if added[-1]:
            raise MetricError(f"{int(added[-1])} {self._describe_invalid()}{self._examples(predictions, references)}")
        self.bins += added
        return added[:-2].view(self.num_classes, self.num_classes)

    def scores(self) -> dict[str, Any]:
        """Return the scores of all added labels; see `segmentation_scores`."""
        return segmentation_scores(self.counts)

    def _count_labels(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Count any labels into bins, without synchronizing with a GPU."""
        classes, predictions, references = self.num_classes, predictions.long(), references.long()
        inside = (references >= 0) & (references < classes) & (predictions >= 0) & (predictions < classes)
        index = torch.where(inside, references * classes + predictions, classes**2 + 1)
        if self.ignore_index is not None:
            index = index.masked_fill_(references == self.ignore_index, classes**2)
        return torch.zeros_like(self.bins).scatter_add_(0, index, torch.ones_like(index))

    def _count_by_table(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor | None:
        """Count into bins by a table of raw values, without masks; None if values exceed the table."""
        classes, ignored = self.num_classes, self.ignore_index
        rows = max(classes, ignored + 1) if ignored is not None and 0 <= ignored < MAX_ROWS else classes
        if not references.numel() or rows * classes >= 2**31:
            return None
        if not in_range(predictions, classes) or not in_range(references, rows):
            return None
        index = references.to(torch.int32).mul_(classes).add_(predictions.to(torch.int32))
        table = torch.bincount(index, minlength=rows * classes).view(rows, classes)
        bins = torch.zeros_like(self.bins)
        if ignored is not None and 0 <= ignored < rows:
            bins[-2] = table[ignored].sum()
            table[ignored] = 0
        bins[:-2], bins[-1] = table[:classes].flatten(), table[classes:].sum()
        return bins

    def _describe_invalid(self) -> str:
        ignored = "" if self.ignore_index is None else f", or {self.ignore_index} for ignored references"
        return f"labels are invalid: expected 0 .. {self.num_classes - 1}{ignored}"

    def _examples(self, predictions: torch.Tensor, references: torch.Tensor) -> str:
        """Format the invalid values."""
        kept = torch.ones_like(references, dtype=torch.bool)
        if self.ignore_index is not None:
            kept = references.long() != self.ignore_index
        names = []
        for title, labels in (("predictions", predictions[kept]), ("references", references[kept])):
            values = labels.long().unique()
            values = values[(values < 0) | (values >= self.num_classes)].tolist()
            if values:
                names.append(f"{title} {', '.join(map(str, values[:5]))}{' …' if len(values) > 5 else ''}")
        return f"; found {' and '.join(names)}"


def flatten_labels(predictions: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Flatten both; raises MetricError for different shapes and dtypes that are not integers."""
    if predictions.shape != references.shape:
        raise MetricError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape: resize "
            "the predictions"
        )
    for title, labels in (("predictions", predictions), ("references", references)):
        if labels.is_floating_point() or labels.is_complex():
            raise MetricError(f"{title} must be integers, got {str(labels.dtype).removeprefix('torch.')}")
    return to_countable_dtype(predictions).flatten(), to_countable_dtype(references).flatten()


def in_range(labels: torch.Tensor, end: int) -> bool:
    """Return whether all labels are 0 .. end - 1."""
    low, high = map(int, labels.aminmax())  # Python integers, as 256 is out of range of uint8
    return low >= 0 and high < end


def to_countable_dtype(labels: torch.Tensor) -> torch.Tensor:
    """Convert labels to a dtype that torch can compare and count; few operations support wide unsigned integers."""
    narrow = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
    return labels.to(narrow.get(labels.dtype, labels.dtype))


def segmentation_scores(counts: torch.Tensor) -> dict[str, Any]:
    """Return the scores of a confusion matrix (K, K) [reference, prediction], with the names of evaluate's `mean_iou`.

    All are 0 .. 1. `per_category_iou`, `_accuracy` and `_dice` are arrays (K,) float64 with NaN for classes without
    pixels (predicted or labeled; for accuracy, labeled). Means skip NaN, and are NaN if no class is left.
    `frequency_weighted_iou` weights classes by their labeled pixels.
    """
    table = counts.detach().cpu().double().numpy()
    hits, labeled, predicted = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    iou = ratio(hits, labeled + predicted - hits)
    accuracy = ratio(hits, labeled)
    dice = ratio(2 * hits, labeled + predicted)
    return {
        "mean_iou": present_mean(iou),
        "mean_accuracy": present_mean(accuracy),
        "overall_accuracy": float(ratio(hits.sum(), labeled.sum())),
        "frequency_weighted_iou": float(ratio(np.nansum(labeled * iou), labeled.sum())),
        "mean_dice": present_mean(dice),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "per_category_dice": dice,
    }


def ratio(part: Any, whole: Any) -> np.ndarray:
    """Divide `part` by `whole`; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def present_mean(values: np.ndarray) -> float:
    """Return the mean of all values that are not NaN; NaN if there are none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
