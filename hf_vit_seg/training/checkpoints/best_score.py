"""The best evaluation so far, and the number of evaluations without improvement, for early stopping."""

import math

from hf_vit_seg.records import Record
from hf_vit_seg.training.recipe.metric_names import SMALLER_IS_BETTER
from hf_vit_seg.training.recipe.schema import EarlyStopRecipe


class BestTracker(Record):
    """The best score, and the last score that early stopping counted as an improvement."""

    best: float | None = None
    best_step: int | None = None
    reference_score: float | None = None
    evaluations_without_improvement: int = 0  # since `reference_score`

    def after(self, name: str, value: float, step: int, rule: EarlyStopRecipe | None = None) -> "BestTracker":
        """Return the tracker after one more evaluation; NaN is never better."""
        min_delta = rule.min_delta if rule else 0.0
        better = is_better(name, value, self.best, 0.0)
        counts = is_better(name, value, self.reference_score, min_delta)
        return BestTracker(
            best=value if better else self.best,
            best_step=step if better else self.best_step,
            reference_score=value if counts else self.reference_score,
            evaluations_without_improvement=0 if counts else self.evaluations_without_improvement + 1,
        )

    def should_stop(self, rule: EarlyStopRecipe | None) -> bool:
        """Return whether early stopping ends the run."""
        return rule is not None and self.evaluations_without_improvement >= rule.patience


def is_better(name: str, value: float, other: float | None, min_delta: float) -> bool:
    """Return whether a score is better than another by more than `min_delta`."""
    if math.isnan(value):
        return False
    sign = -1 if name in SMALLER_IS_BETTER else 1
    return other is None or sign * (value - other) > min_delta
