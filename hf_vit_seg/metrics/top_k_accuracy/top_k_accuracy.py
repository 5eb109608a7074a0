"""Top-k accuracy of classification as an `evaluate` module."""

from collections.abc import Sequence
from typing import Any

import datasets

from hf_vit_seg.metrics import accuracy, evaluation_module

_INPUTS = """
Args of evaluate.load:
    k (`Sequence[int]`, defaults to (1, 5)): numbers of top classes.
    ignore_index (`int`, optional): value of ignored references.
Args:
    predictions: scores of the classes, (K,) for each sample, logits or probabilities.
    references: class indices.
Returns:
    accuracy (k = 1), top_5_accuracy (k = 5) ...: `float`, 0 .. 1. Ties are broken by the lower index.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute.
"""


class TopKAccuracy(evaluation_module.StreamedMetric):
    """The share of samples whose class is among the k highest scores."""

    DESCRIPTION = "How often the correct class is among the k highest scores."
    INPUTS = _INPUTS
    CITATION = ""
    FEATURES = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}

    def __init__(self, *args: Any, k: Sequence[int] = (1, 5), ignore_index: int | None = None, **kwargs: Any):
        self.k, self.ignored = k, ignore_index
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Clear the counts."""
        self.metric = accuracy.TopKAccuracy(self.k, self.ignored)

    def count(self, predictions: Any, references: Any) -> None:
        """Add samples."""
        self.metric.update(evaluation_module.tensor(predictions), evaluation_module.tensor(references))

    def score(self) -> dict[str, Any]:
        """Return the accuracy for each k."""
        return self.metric.scores()
