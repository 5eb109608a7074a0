"""A streaming version of evaluate's `mean_iou`, with the same names of settings and scores."""

from typing import Any

import datasets
import numpy as np
import torch

from hf_vit_seg.metrics import MetricError, evaluation_module
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix, segmentation_scores

_INPUTS = """
Args of evaluate.load:
    values (`int`, defaults to 256): number of raw values in the maps, 0 .. values - 1; `compute` maps them to classes.
    ignore_index (`int`, optional): ignored value of references outside that range (65535, -100).
Args:
    predictions: label maps (H, W) of any sizes: arrays, tensors (also on a GPU), lists.
    references: label maps of the same sizes.
    num_labels (`int`): number of classes.
    ignore_index (`int`, defaults to 255): ignored value of references, after label_map and reduce_labels.
    nan_to_num (`float`, optional): replaces the NaN scores of classes that do not occur.
    label_map (`dict`, optional): simultaneous replacement of values of the references.
    reduce_labels (`bool`, defaults to False): in references, 0 becomes 255 and other values except 255 decrease by 1.
Returns:
    mean_iou, mean_accuracy, overall_accuracy, frequency_weighted_iou, mean_dice (`float`) and per_category_iou,
    per_category_accuracy, per_category_dice (arrays of num_labels), 0 .. 1. Raises MetricError otherwise.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class MeanIou(evaluation_module.StreamedMetric):
    """Mean IoU from the confusion matrix of raw values."""

    DESCRIPTION = (
        "Intersection over union of label maps, its mean over classes, and other scores of the confusion matrix."
    )
    INPUTS = _INPUTS
    CITATION = ""
    FEATURES = {"predictions": datasets.Image(), "references": datasets.Image()}

    def __init__(self, *args: Any, values: int = 256, ignore_index: int | None = None, **kwargs: Any):
        self.values, self.ignored = values, ignore_index
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Clear the counts."""
        self.metric = ConfusionMatrix(self.values, self.ignored)

    def count(self, predictions: Any, references: Any) -> None:
        """Add label maps, at once if they are stacked in one tensor."""
        whole = isinstance(predictions, torch.Tensor) and isinstance(references, torch.Tensor)
        pairs = [(predictions, references)] if whole else list(evaluation_module.pairs(predictions, references))
        before = self.metric.bins.clone()
        try:
            for pair in pairs:
                self.metric.update(*pair)
        except MetricError as error:
            self.metric.bins = before
            raise MetricError(f"{error} (set values and ignore_index in evaluate.load)") from None

    def score(
        self,
        num_labels: int,
        ignore_index: int = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, Any]:
        """Return the scores; see `INPUTS`."""
        rows = self.map_references(label_map or {}, reduce_labels)
        scores = segmentation_scores(class_table(self.counts.cpu(), rows, num_labels, ignore_index))
        if nan_to_num is None:
            return scores
        return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}

    def map_references(self, label_map: dict[int, int], reduce_labels: bool) -> torch.Tensor:
        """Return the value (values,) that each raw value of the references is replaced by."""
        rows = torch.tensor([label_map.get(value, value) for value in range(self.values)])
        return torch.where((rows == 0) | (rows == 255), 255, rows - 1) if reduce_labels else rows


def class_table(counts: torch.Tensor, rows: torch.Tensor, classes: int, ignored: int) -> torch.Tensor:
    """Reduce counts of raw values to counts of classes (K, K); row i of the references becomes row `rows[i]`."""
    kept = rows != ignored
    counts, rows = counts[kept], rows[kept]
    invalid = {
        "predictions": counts.sum(dim=0)[classes:].nonzero().flatten() + classes,
        "references": rows[(counts.sum(dim=1) > 0) & ((rows < 0) | (rows >= classes))].unique(),
    }
    for title, values in invalid.items():
        if len(values):
            raise MetricError(
                f"{title} contain {', '.join(map(str, values[:5].tolist()))}, expected 0 .. {classes - 1} for "
                f"num_labels={classes}, or {ignored} for ignored references"
            )
    has_label = (rows >= 0) & (rows < classes)
    table = counts.new_zeros(classes, counts.shape[1]).index_add_(0, rows[has_label], counts[has_label])
    return torch.nn.functional.pad(table, (0, max(0, classes - table.shape[1])))[:, :classes]
