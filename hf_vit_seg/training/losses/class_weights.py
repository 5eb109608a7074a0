"""Class weights from class frequencies. Shapes: K classes (labels 0 and 1 for a model with one output)."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import FactorFromZero, RecordError

Rule = Literal["balanced", "inverse_root", "median_frequency"]


def check_weights(weights: tuple[float, ...]) -> tuple[float, ...]:
    """Return weights of which at least one is positive, or raise: others are checked by their type."""
    if not any(weights):
        raise HfVitSegError(f"found {list(weights)}, expected at least one positive weight")
    return weights


# One for each class; a class with the weight 0 does not count.
Weights = Annotated[tuple[FactorFromZero, ...], AfterValidator(check_weights)]

# From the shares f of pixels (or images) of the classes that occur.
RULES: dict[Rule, Callable[[torch.Tensor], torch.Tensor]] = {
    "balanced": lambda f: 1 / (len(f) * f),  # as scikit-learn's "balanced"
    "inverse_root": lambda f: f.rsqrt() / f.rsqrt().mean(),
    "median_frequency": lambda f: f.quantile(0.5) / f,  # Eigen and Fergus, arXiv 1411.4734, over all images as one
}


def class_weights(
    chosen: Rule | tuple[float, ...] | None, num_labels: int, frequencies: Sequence[float] | None
) -> torch.Tensor | None:
    """Return the weights (K,) from a rule or a list; None for equal weights.

    `frequencies` are pixels or images of each class, or shares of them. A class that never occurs has weight 1.
    RecordError unless there is one weight or frequency per class, and if a rule has no frequencies.
    """
    if chosen is None:
        return None
    if not isinstance(chosen, str):
        return one_per_class(chosen, num_labels, "class_weights")
    if frequencies is None:
        raise RecordError(
            f"class_weights '{chosen}' require class frequencies, which are unknown here; use a list of weights, such "
            "as check-data suggests"
        )
    counts = one_per_class(frequencies, num_labels, "class frequencies").double()
    occurs = counts > 0
    weights = torch.ones_like(counts)
    if occurs.any():
        weights[occurs] = RULES[chosen](counts[occurs] / counts.sum())
    return weights.float()


def one_per_class(values: Sequence[float], num_labels: int, name: str) -> torch.Tensor:
    """Convert values to a tensor (K,); RecordError unless there is one per class."""
    if len(values) != num_labels:
        raise RecordError(f"{name}: found {len(values)} numbers, expected one per class ({num_labels})")
    return torch.as_tensor(values, dtype=torch.float64).float()


__all__ = ["Rule", "Weights", "class_weights"]
