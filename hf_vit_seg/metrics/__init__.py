"""Measures of segmentation, classification and pose, summed as they stream in.

Each measure that is a sum over samples keeps its whole state in one tensor, `counts`: the sum of the processes'
`counts`, set again, is the measure of all data together, and no prediction ever has to be gathered.

    matrix = ConfusionMatrix(num_classes=150)
    matrix.update(predictions, references)
    matrix.counts = accelerator.reduce(matrix.counts, "sum")
    matrix.scores()["mean_iou"]

The same measures are modules of `evaluate`, which load without a network: `evaluate.load(module_path("mean_iou"))`.
"""

from pathlib import Path

from hf_vit_seg.errors import HfVitSegError

MODULES = ("calibration_error", "mean_iou", "oks_ap", "top_k_accuracy")


class MetricError(HfVitSegError):
    """Predictions or references that cannot be measured, and why."""


def module_path(name: str) -> str:
    """The folder that `evaluate.load` takes for one of `MODULES`."""
    if name not in MODULES:
        raise MetricError(f"there is no metric called '{name}'; known are {', '.join(MODULES)}")
    return str(Path(__file__).parent / name)
