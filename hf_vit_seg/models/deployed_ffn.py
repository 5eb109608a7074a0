"""Mix-FFN as programs for ONNX Runtime have it: convolutions throughout, in the layout that it blocks by channels.

Shapes: B images, H W grid, C channels, E expansion.
"""

from collections.abc import Callable

import torch
from torch import nn

from .deployed_head import affine_convolution


class DeployedMixFFN(nn.Module):
    """SegFormer's Mix-FFN in evaluation. C channels change their layout, and not E*C as between linear layers."""

    def __init__(
        self, fc1: nn.Linear, dwconv: nn.Conv2d, activation: Callable[[torch.Tensor], torch.Tensor], fc2: nn.Linear
    ):
        super().__init__()
        self.fc1 = affine_convolution(fc1.weight, fc1.bias)
        self.dwconv = dwconv
        self.activation = activation
        self.fc2 = affine_convolution(fc2.weight, fc2.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to the same."""
        expanded = self.dwconv(self.fc1(hidden_states.permute(0, 3, 1, 2)))  # (B, E*C, H, W)
        return self.fc2(self.activation(expanded)).permute(0, 2, 3, 1)


__all__ = ["DeployedMixFFN"]
