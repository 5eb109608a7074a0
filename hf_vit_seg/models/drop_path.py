"""Stochastic depth (arXiv 1603.09382): in training, a residual branch is left out for some images of a batch."""

import torch
from torch import nn


class DropPath(nn.Module):
    """Stochastic depth per image (arXiv 1603.09382); the identity outside training."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A residual branch of a batch, images first."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep = 1 - self.rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        return hidden_states * (hidden_states.new_empty(shape).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """The rate, for printing."""
        return f"rate={self.rate:.4f}"


__all__ = ["DropPath"]
