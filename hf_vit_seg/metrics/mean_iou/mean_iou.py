"""evaluate's `mean_iou`, counted as it streams in. The names of settings and scores are evaluate's."""

from typing import Any

import datasets
import numpy as np
import torch

from hf_vit_seg.metrics import MetricError, evaluation_module
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix, segmentation_scores

_INPUTS = """
Args of evaluate.load:
    values (`int`, defaults to 256): maps hold 0 .. values - 1. The classes are settled in `compute` only.
    ignore_index (`int`, optional): a reference's value that does not count, if it is not among those (65535, -100).
Args:
    predictions: label maps (H, W) of classes, each of its own size: arrays, tensors (also on a GPU), lists.
    references: label maps of the same sizes.
    num_labels (`int`): number of classes.
    ignore_index (`int`, defaults to 255): value in references, after label_map and reduce_labels, that does not count.
    nan_to_num (`float`, optional): what stands for scores of classes that do not occur.
    label_map (`dict`, optional): new values for values of the references, all at once.
    reduce_labels (`bool`, defaults to False): in the references, 0 becomes 255 and all others lose one, 255 aside.
Returns:
    mean_iou, mean_accuracy, overall_accuracy, frequency_weighted_iou, mean_dice (`float`) and per_category_iou,
    per_category_accuracy, per_category_dice (arrays of num_labels), 0 .. 1. Values that are no class are an error.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class MeanIou(evaluation_module.StreamedMetric):
    """Mean IoU from one table of how often each raw value met each other."""

    SENTENCE = "Intersection over union of label maps, its mean over classes, and the other scores of their confusions."
    INPUTS = _INPUTS
    CITATION = ""
    FEATURES = {"predictions": datasets.Image(), "references": datasets.Image()}

    def __init__(self, *args: Any, values: int = 256, ignore_index: int | None = None, **kwargs: Any):
        self.values, self.ignored = values, ignore_index
        super().__init__(*args, **kwargs)

    def restart(self) -> None:
        """Forget what was counted."""
        self.measure = ConfusionMatrix(self.values, self.ignored)

    def count(self, predictions: Any, references: Any) -> None:
        """Count label maps: all at once where they came as one tensor."""
        whole = isinstance(predictions, torch.Tensor) and isinstance(references, torch.Tensor)
        pairs = [(predictions, references)] if whole else list(evaluation_module.pairs(predictions, references))
        before = self.measure.bins.clone()
        try:
            for pair in pairs:
                self.measure.update(*pair)
        except MetricError as error:
            self.measure.bins = before
            raise MetricError(f"{error} (evaluate.load(..., values=, ignore_index=) sets what maps hold)") from None

    def score(
        self,
        num_labels: int,
        ignore_index: int = 255,
        nan_to_num: float | None = None,
        label_map: dict[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> dict[str, Any]:
        """The scores; see INPUTS."""
        rows = self.relabelled(label_map or {}, reduce_labels)
        scores = segmentation_scores(class_table(self.counts.cpu(), rows, num_labels, ignore_index))
        if nan_to_num is None:
            return scores
        return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}

    def relabelled(self, label_map: dict[int, int], reduce_labels: bool) -> torch.Tensor:
        """What each value of the references stands for."""
        rows = torch.tensor([label_map.get(value, value) for value in range(self.values)])
        return torch.where((rows == 0) | (rows == 255), 255, rows - 1) if reduce_labels else rows


def class_table(counts: torch.Tensor, rows: torch.Tensor, classes: int, ignored: int) -> torch.Tensor:
    """Counts of classes (K, K) from those of raw values, whose rows stand for `rows`."""
    kept = rows != ignored
    counts, rows = counts[kept], rows[kept]
    strangers = {
        "predictions": counts.sum(dim=0)[classes:].nonzero().flatten() + classes,
        "references": rows[(counts.sum(dim=1) > 0) & ((rows < 0) | (rows >= classes))].unique(),
    }
    for title, values in strangers.items():
        if len(values):
            raise MetricError(
                f"{title} hold {', '.join(map(str, values[:5].tolist()))}, but num_labels={classes} makes the classes "
                f"0 .. {classes - 1}, and only {ignored} in references is ignored"
            )
    known = (rows >= 0) & (rows < classes)
    table = counts.new_zeros(classes, counts.shape[1]).index_add_(0, rows[known], counts[known])
    return torch.nn.functional.pad(table, (0, max(0, classes - table.shape[1])))[:, :classes]
