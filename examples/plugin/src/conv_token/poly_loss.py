"""A loss for recipes: `loss: {poly: {epsilon: 2.0}}`.

Shapes: B batch, K classes, h w the grid of the logits, H W the grid of the labels.
"""

from collections.abc import Sequence

import torch
from pydantic import Field

from hf_vit_seg.models.losses import upsampled_cross_entropy
from hf_vit_seg.training.losses.terms import Loss, LossTerm


class Poly(Loss):
    """Poly-1 loss (arXiv 2204.12511, equation 5): cross-entropy plus `epsilon` in the first Taylor coefficient."""

    epsilon: float = Field(default=1.0, ge=-1)

    def build(self, num_classes: int, ignore_index: int, class_frequencies: Sequence[float] | None = None) -> LossTerm:
        """Build the loss module."""
        return PolyTerm(ignore_index, self.epsilon)


class PolyTerm(LossTerm):
    """Cross-entropy plus epsilon * (1 - p), where p is the probability of the label, summed over pixels."""

    def __init__(self, ignore_index: int, epsilon: float):
        """`epsilon` is that of `Poly`."""
        super().__init__(ignore_index)
        self.epsilon = epsilon

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum the loss over pixels: logits (B, K, h, w), labels (B, H, W). Ignored pixels contribute 0."""
        losses = upsampled_cross_entropy(logits, labels, self.ignore_index)  # (B, H, W)
        return (losses - self.epsilon * torch.expm1(-losses)).sum()


__all__ = ["Poly"]
