"""Names of the metrics that compare models, and which of them are better when smaller."""

from collections.abc import Sequence

from hf_vit_seg.records import RecordError, nearest

from .keypoints import oks_sigmas
from .schema import Recipe, Task

# Metrics of an evaluation by task; the first is the default of `evaluation.metric`.
METRICS: dict[Task, tuple[str, ...]] = {
    "segmentation": (
        "mean_iou",
        "mean_accuracy",
        "overall_accuracy",
        "frequency_weighted_iou",
        "mean_dice",
        "mean_boundary_iou",
    ),
    "classification": ("accuracy", "top_5_accuracy", "calibration_error", "maximum_calibration_error"),
    "instance": ("mask_ap", "mask_ap_50", "mask_ap_75", "f1_50", "aji", "count_error", "pq", "sq", "rq", "mean_iou"),
    "panoptic": ("pq", "sq", "rq", "pq_things", "pq_stuff"),
    "pose": tuple(f"{name}{part}" for name in ("oks_ap", "oks_ar") for part in ("", "_50", "_75", "_medium", "_large")),
}
MULTI_LABEL_METRICS = ("mean_average_precision", "macro_f1", "micro_f1", "exact_match")
SMALLER_IS_BETTER = frozenset({"calibration_error", "maximum_calibration_error", "count_error", "loss"})


def metric_name(recipe: Recipe) -> str:
    """Return the metric that compares models; RecordError if the recipe's evaluations do not compute it."""
    computed = MULTI_LABEL_METRICS if recipe.data.multi_label else METRICS[recipe.task]
    names = [name for name in computed if name != "mean_boundary_iou" or recipe.evaluation.boundary_iou]
    name = recipe.evaluation.metric or names[0]
    if name not in names:
        raise RecordError(f"evaluation.metric: unknown metric '{name}' for this recipe; {nearest(name, names)}")
    return name


def check_metrics(recipe: Recipe, names: Sequence[str]) -> None:
    """Raise RecordError if a model with these classes (keypoints) cannot be evaluated by the recipe."""
    metric_name(recipe)
    if recipe.task == "pose":
        oks_sigmas(recipe, names)
