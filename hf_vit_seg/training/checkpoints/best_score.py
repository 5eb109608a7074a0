"""Which evaluation was the best so far, and for how many there has been no better."""

import math

from hf_vit_seg.records import Record
from hf_vit_seg.training.recipe.metric_names import SMALLER_IS_BETTER
from hf_vit_seg.training.recipe.schema import EarlyStopRecipe


class Standing(Record):
    """`best` is the best measure, `mark` the one that early stopping last counted as better."""

    best: float | None = None
    best_step: int | None = None
    mark: float | None = None
    fruitless: int = 0  # evaluations since `mark`

    def after(self, name: str, value: float, step: int, rule: EarlyStopRecipe | None = None) -> "Standing":
        """The standing with one more evaluation; NaN is never better."""
        least = rule.least if rule else 0.0
        better = is_better(name, value, self.best, 0.0)
        counts = is_better(name, value, self.mark, least)
        return Standing(
            best=value if better else self.best,
            best_step=step if better else self.best_step,
            mark=value if counts else self.mark,
            fruitless=0 if counts else self.fruitless + 1,
        )

    def has_ended(self, rule: EarlyStopRecipe | None) -> bool:
        """Whether early stopping has lost its patience."""
        return rule is not None and self.fruitless >= rule.patience


def is_better(name: str, value: float, other: float | None, least: float) -> bool:
    """Whether a measure beats another by more than `least`."""
    if math.isnan(value):
        return False
    sign = -1 if name in SMALLER_IS_BETTER else 1
    return other is None or sign * (value - other) > least
