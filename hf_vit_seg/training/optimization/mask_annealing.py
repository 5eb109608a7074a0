"""Mask annealing (EoMT, arXiv 2503.19108, section 3.3): masked attention becomes rarer in the course of training.

All steps are divided into equal phases: one in which all layers mask, one for each layer, in which the probability of
its mask falls from 1 to 0 with a polynomial of the progress, and one without masks. The first layer is the first to
lose its mask.
"""

from dataclasses import dataclass
from typing import Any

from hf_vit_seg.training.recipe.schema import ScheduleRecipe


def mask_probability(layer: int, layers: int, progress: float, power: float) -> float:
    """Return the probability of a layer's mask at a `progress` of all steps from 0 to 1."""
    past = progress * (layers + 2) - (layer + 1)  # phases since this layer's mask began to anneal
    return (1 - min(max(past, 0.0), 1.0)) ** power


@dataclass(frozen=True)
class MaskAnnealing:
    """Anneals the probability that each query block masks its attention. `model` has no wrappers, such as DDP."""

    model: Any
    power: float

    @classmethod
    def of(cls, model: Any, recipe: ScheduleRecipe) -> "MaskAnnealing | None":
        """Return the annealing of a model; None if it has no masks, or its inference has them too."""
        probabilities = getattr(getattr(model, "decode_head", None), "mask_probability", None)
        if probabilities is None or model.config.query_masked_inference:
            return None
        return cls(model, recipe.mask_power)

    def set(self, step: int, steps: int) -> None:
        """Set the probabilities of a step (from 1)."""
        probabilities = self.model.mask_probability
        for layer in range(len(probabilities)):
            probabilities[layer] = mask_probability(layer, len(probabilities), (step - 1) / steps, self.power)


__all__ = ["MaskAnnealing", "mask_probability"]
