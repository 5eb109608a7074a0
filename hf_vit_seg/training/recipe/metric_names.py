"""The scores by which models are compared: their names, and which way is up."""

from collections.abc import Sequence

from hf_vit_seg.metrics.keypoint_similarity import COCO_SIGMAS
from hf_vit_seg.records import RecordError, nearest

from .schema import Recipe, Task

# What an evaluation of each task gives; the first is the measure of a recipe that names none.
MEASURES: dict[Task, tuple[str, ...]] = {
    "segmentation": (
        "mean_iou",
        "mean_accuracy",
        "overall_accuracy",
        "frequency_weighted_iou",
        "mean_dice",
        "mean_boundary_iou",
    ),
    "classification": ("accuracy", "top_5_accuracy", "calibration_error", "maximum_calibration_error"),
    "pose": tuple(f"{name}{part}" for name in ("oks_ap", "oks_ar") for part in ("", "_50", "_75", "_medium", "_large")),
}
SMALLER_IS_BETTER = frozenset({"calibration_error", "maximum_calibration_error"})


def measure_name(recipe: Recipe) -> str:
    """The measure by which a recipe compares models; RecordError when its evaluations give none of that name."""
    known = [name for name in MEASURES[recipe.task] if name != "mean_boundary_iou" or recipe.evaluation.boundary_iou]
    name = recipe.evaluation.metric or known[0]
    if name not in known:
        raise RecordError(f"evaluation.metric: there is no '{name}' for this recipe; {nearest(name, known)}")
    return name


def refuse_unmeasurable(recipe: Recipe, names: Sequence[str]) -> None:
    """RecordError for a recipe by which a model of these classes (keypoints) could not be evaluated."""
    measure_name(recipe)
    if recipe.task == "pose" and len(names) != len(COCO_SIGMAS):
        raise RecordError(
            f"evaluation: similarity of keypoints is known for COCO's {len(COCO_SIGMAS)}, these are {len(names)}; "
            "leave data.validation and data.test out"
        )
