"""The confusion matrix of label maps, summed as they stream in, and the scores that follow from it.

Shapes: K classes; labels may have any shape, such as (H, W) or (B, H, W).
"""

from typing import Any

import numpy as np
import torch

from . import MetricError

PIECE = 2**18  # labels counted at a time on a CPU: what is computed from them stays in a core's cache
MOST_ROWS = 1024  # of the table that counts raw values on a CPU


class ConfusionMatrix:
    """How often each class was predicted for each class, as counts of pixels (or of images).

    Labels equal to `ignore_index` in the references do not count, whatever is predicted there; None counts all.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255, device: torch.device | str | None = None):
        """`device` is where the matrix lives; None follows the predictions."""
        if num_classes < 1:
            raise MetricError(f"a confusion matrix has one class or more, got num_classes={num_classes}")
        self.num_classes, self.ignore_index, self.device = num_classes, ignore_index, device
        # K * K pairs row by row, then labels that do not count, then labels that are no class
        self.bins = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)

    @property
    def counts(self) -> torch.Tensor:
        """(K, K) int64 as [reference, prediction], a view; to be summed over processes and set again.

        On a GPU, only reading this finds labels that are no class (MetricError), since finding them waits for it.
        """
        if strangers := int(self.bins[-1]):
            raise MetricError(f"{strangers} {self._expected()}")
        return self.bins[:-2].view(self.num_classes, self.num_classes)

    @counts.setter
    def counts(self, counts: torch.Tensor) -> None:
        self.counts.copy_(counts)

    def update(self, predictions: torch.Tensor, references: torch.Tensor) -> None:
        """Count labels, integers of equal shape, one pair for each element.

        MetricError for shapes that differ, numbers that are no integers, and labels outside 0 .. K - 1 that are not
        ignored; nothing is counted then.
        """
        predictions, references = checked(predictions, references)
        self.bins = self.bins.to(self.device or predictions.device)
        predictions, references = predictions.to(self.bins.device), references.to(self.bins.device)
        if not self.bins.is_cpu:
            self.bins += self._sorted_out(predictions, references)
            return
        found = torch.zeros_like(self.bins)
        for pair in zip(predictions.split(PIECE), references.split(PIECE), strict=True):
            quick = self._tabulated(*pair)
            found += self._sorted_out(*pair) if quick is None else quick
        if found[-1]:
            raise MetricError(f"{int(found[-1])} {self._expected()}{self._examples(predictions, references)}")
        self.bins += found

    def scores(self) -> dict[str, Any]:
        """The scores of all that was counted; see `segmentation_scores`."""
        return segmentation_scores(self.counts)

    def _sorted_out(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Bins of any labels; never waits for a GPU."""
        classes, predictions, references = self.num_classes, predictions.long(), references.long()
        inside = (references >= 0) & (references < classes) & (predictions >= 0) & (predictions < classes)
        index = torch.where(inside, references * classes + predictions, classes**2 + 1)
        if self.ignore_index is not None:
            index = index.masked_fill_(references == self.ignore_index, classes**2)
        return torch.zeros_like(self.bins).scatter_add_(0, index, torch.ones_like(index))

    def _tabulated(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor | None:
        """Bins from one table of raw values, without a mask in the size of the labels; None where that cannot be."""
        classes, ignored = self.num_classes, self.ignore_index
        rows = max(classes, ignored + 1) if ignored is not None and 0 <= ignored < MOST_ROWS else classes
        if not references.numel() or rows * classes >= 2**31:
            return None
        if not within(predictions, classes) or not within(references, rows):
            return None
        index = references.to(torch.int32).mul_(classes).add_(predictions.to(torch.int32))
        table = torch.bincount(index, minlength=rows * classes).view(rows, classes)
        bins = torch.zeros_like(self.bins)
        if ignored is not None and 0 <= ignored < rows:
            bins[-2] = table[ignored].sum()
            table[ignored] = 0
        bins[:-2], bins[-1] = table[:classes].flatten(), table[classes:].sum()
        return bins

    def _expected(self) -> str:
        but = "" if self.ignore_index is None else f", and references {self.ignore_index} where they do not count"
        return f"labels are no class: predictions and references are 0 .. {self.num_classes - 1}{but}"

    def _examples(self, predictions: torch.Tensor, references: torch.Tensor) -> str:
        """The values that are no class."""
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


def checked(predictions: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as flat integers."""
    if predictions.shape != references.shape:
        raise MetricError(
            f"predictions {tuple(predictions.shape)} and references {tuple(references.shape)} differ in shape: bring "
            "the predictions to the references' size"
        )
    for title, labels in (("predictions", predictions), ("references", references)):
        if labels.is_floating_point() or labels.is_complex():
            raise MetricError(f"{title} are class labels, integers; got {str(labels.dtype).removeprefix('torch.')}")
    return widened(predictions).flatten(), widened(references).flatten()


def within(labels: torch.Tensor, end: int) -> bool:
    """Whether all labels are 0 .. end - 1."""
    low, high = map(int, labels.aminmax())  # Python's integers, as 256 is no number for uint8
    return low >= 0 and high < end


def widened(labels: torch.Tensor) -> torch.Tensor:
    """Labels in a type that torch can compare and count: it can do little with the wide unsigned ones."""
    narrow = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
    return labels.to(narrow.get(labels.dtype, labels.dtype))


def segmentation_scores(counts: torch.Tensor) -> dict[str, Any]:
    """Scores of a confusion matrix (K, K) [reference, prediction], by evaluate's names where it has one.

    All are 0 .. 1. `per_category_iou`, `_accuracy` and `_dice` are arrays (K,) float64 with NaN for classes that have
    no pixel to speak of: none predicted nor labelled, for accuracy none labelled. Means leave those out, and are NaN
    when no class is left. `frequency_weighted_iou` weighs classes by their labelled pixels.
    """
    table = counts.detach().cpu().double().numpy()
    hits, labelled, predicted = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    iou = ratio(hits, labelled + predicted - hits)
    accuracy = ratio(hits, labelled)
    dice = ratio(2 * hits, labelled + predicted)
    return {
        "mean_iou": present_mean(iou),
        "mean_accuracy": present_mean(accuracy),
        "overall_accuracy": float(ratio(hits.sum(), labelled.sum())),
        "frequency_weighted_iou": float(ratio(np.nansum(labelled * iou), labelled.sum())),
        "mean_dice": present_mean(dice),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
        "per_category_dice": dice,
    }


def ratio(part: Any, whole: Any) -> np.ndarray:
    """part / whole, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def present_mean(values: np.ndarray) -> float:
    """The mean without NaN; NaN if nothing is left."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if kept.size else float("nan")
