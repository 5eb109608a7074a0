"""Streaming metrics of segmentation, segments, classification and pose.

Metrics that are sums over samples keep their state in one tensor, `counts`. Summing `counts` over processes and
assigning the result gives the metric of all data, without gathering predictions.

    matrix = ConfusionMatrix(num_classes=150)
    matrix.update(predictions, references)
    matrix.counts = accelerator.reduce(matrix.counts, "sum")
    matrix.scores()["mean_iou"]

The metrics are also `evaluate` modules, which load offline: `evaluate.load(module_path("mean_iou"))`.
"""

from pathlib import Path

from hf_vit_seg.errors import HfVitSegError

MODULES = ("aji", "calibration_error", "mean_iou", "oks_ap", "pq", "segm_ap", "top_k_accuracy")


class MetricError(HfVitSegError):
    """Invalid predictions or references."""


def module_path(name: str) -> str:
    """Return the folder of one of `MODULES`, to pass to `evaluate.load`. Raises MetricError for other names."""
    if name not in MODULES:
        raise MetricError(f"unknown metric '{name}': use one of {', '.join(MODULES)}")
    return str(Path(__file__).parent / name)
