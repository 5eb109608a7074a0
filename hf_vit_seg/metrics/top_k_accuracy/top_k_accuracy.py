"""Top-k accuracy of classification as a module of evaluate."""

from collections.abc import Sequence
from typing import Any

import datasets

from hf_vit_seg.metrics import accuracy, evaluation_module

_INPUTS = """
Args of evaluate.load:
    k (`Sequence[int]`, defaults to (1, 5)): how many of the best scored classes may hold the right one.
    ignore_index (`int`, optional): references that do not count.
Args:
    predictions: scores of the classes, (K,) for each sample, logits or probabilities.
    references: class indexes.
Returns:
    accuracy (k = 1), top_5_accuracy (k = 5) ...: `float`, 0 .. 1. Of equal scores the lower class comes first.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class TopKAccuracy(evaluation_module.StreamedMetric):
    """The share of samples whose class is among the k best scored."""

    SENTENCE = "How often the right class is among the k best scored ones."
    INPUTS = _INPUTS
    CITATION = ""
    FEATURES = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}

    def __init__(self, *args: Any, k: Sequence[int] = (1, 5), ignore_index: int | None = None, **kwargs: Any):
        self.k, self.ignored = k, ignore_index
        super().__init__(*args, **kwargs)

    def restart(self) -> None:
        """Forget what was counted."""
        self.measure = accuracy.TopKAccuracy(self.k, self.ignored)

    def count(self, predictions: Any, references: Any) -> None:
        """Count samples."""
        self.measure.update(evaluation_module.tensor(predictions), evaluation_module.tensor(references))

    def score(self) -> dict[str, Any]:
        """The shares."""
        return self.measure.scores()
