"""Layer norms that need no mean, for runtimes which compute one in many steps.

A layer norm takes the mean over the channels away, divides by the root mean square of what is left, and ends in a
factor and a summand per channel. The mean can be taken out of the weights of the layers that write what it reads
(arXiv 2401.15024, section 3.2); factor and summand can go into the layers that read what it writes. The root mean
square norm (arXiv 1910.07467) remains, and the function is the same.

Shapes: C channels read, C' channels written.
"""

from collections.abc import Iterable

import torch
from torch import nn

Linear = nn.Linear | nn.Conv2d


class CentredNorm(nn.Module):
    """`nn.LayerNorm` of tokens (.., C) whose mean over the channels is zero, with or without its factor and summand."""

    def __init__(self, norm: nn.LayerNorm, affine: bool = True):
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (norm.weight, norm.bias) if affine else (None, None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(.., C) to the same."""
        normed = hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias


class Centre(nn.Module):
    """Tokens (.., C) without their mean over the channels."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(.., C) to the same."""
        return hidden_states - hidden_states.mean(-1, keepdim=True)


@torch.no_grad()
def centre_outputs(layer: Linear) -> None:
    """Change a layer so that what it writes has mean zero over its channels."""
    layer.weight.sub_(layer.weight.mean(0, keepdim=True))
    if layer.bias is not None:
        layer.bias.sub_(layer.bias.mean())


@torch.no_grad()
def handed_on(norm: nn.LayerNorm, readers: Iterable[Linear]) -> CentredNorm:
    """A norm whose factor and summand the layers now have that read it. They must be all, and none may pad."""
    for layer in readers:
        weight = layer.weight.movedim(1, -1)  # (C', .., C), a view
        summand = (weight * norm.bias).flatten(1).sum(1)
        bias: torch.Tensor | None = layer.bias
        layer.register_parameter("bias", nn.Parameter(summand if bias is None else bias + summand))
        weight *= norm.weight
    return CentredNorm(norm, affine=False)


__all__ = ["Centre", "CentredNorm", "centre_outputs", "handed_on"]
