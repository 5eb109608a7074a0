"""Export forms of SegFormer: Mix-FFN as convolutions, and stages whose layer norms need no mean.

A layer norm subtracts the mean over channels, divides by the root mean square of the rest, and applies a scale and a
shift per channel. Subtracting the mean can be moved into the weights of the layers that produce the norm's input
(arXiv 2401.15024, section 3.2), scale and shift into the layers that consume its output. What remains is the root mean
square norm (arXiv 1910.07467), with the same results.

Shapes: B images, H W grid, C channels of a layer's input, C' of its output, E expansion.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from . import ExportForm
from .shared import affine_convolution

Linear = nn.Linear | nn.Conv2d


class ConvolutionalMixFFN(nn.Module):
    """Mix-FFN as convolutions for ONNX Runtime, which blocks channels: C and not E*C channels change their layout."""

    def __init__(
        self, fc1: nn.Linear, dwconv: nn.Conv2d, activation: Callable[[torch.Tensor], torch.Tensor], fc2: nn.Linear
    ):
        super().__init__()
        self.fc1 = affine_convolution(fc1.weight, fc1.bias)
        self.dwconv = dwconv
        self.activation = activation
        self.fc2 = affine_convolution(fc2.weight, fc2.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to the same shape."""
        expanded = self.dwconv(self.fc1(hidden_states.permute(0, 3, 1, 2)))  # (B, E*C, H, W)
        return self.fc2(self.activation(expanded)).permute(0, 2, 3, 1)


def convolutional_mix_ffn(mlp: Any) -> nn.Module:
    return ConvolutionalMixFFN(mlp.fc1, mlp.dwconv, mlp.activation, mlp.fc2)


class CenteredNorm(nn.Module):
    """`nn.LayerNorm` of tokens (.., C) with mean zero over channels, with or without its scale and shift."""

    def __init__(self, norm: nn.LayerNorm, affine: bool = True):
        super().__init__()
        self.eps = norm.eps
        self.weight, self.bias = (norm.weight, norm.bias) if affine else (None, None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (.., C) to the same shape."""
        normed = hidden_states * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + self.eps)
        if self.weight is not None:
            normed = normed * self.weight
        return normed if self.bias is None else normed + self.bias


class Center(nn.Module):
    """Subtracts the mean over channels from tokens (.., C)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states - hidden_states.mean(-1, keepdim=True)


def center_outputs(layer: Linear) -> None:
    """Change a layer's weights so that its output has mean zero over channels."""
    layer.weight.sub_(layer.weight.mean(0, keepdim=True))
    if layer.bias is not None:
        layer.bias.sub_(layer.bias.mean())


def fold_affine(norm: nn.LayerNorm, consumers: Iterable[Linear]) -> CenteredNorm:
    """Move a norm's scale and shift into the layers that read its output: all of them, none with padding."""
    for layer in consumers:
        weight = layer.weight.movedim(1, -1)  # (C', .., C), a view
        shift = (weight * norm.bias).flatten(1).sum(1)
        bias: torch.Tensor | None = layer.bias
        layer.register_parameter("bias", nn.Parameter(shift if bias is None else bias + shift, requires_grad=False))
        weight *= norm.weight
    return CenteredNorm(norm, affine=False)


@torch.no_grad()
def center_stage(stage: Any) -> nn.Module:
    """Return a SegFormer stage with tokens of mean zero, changed in place."""
    patches = stage.patch_embeddings
    center_outputs(patches.projection)
    patches.norm = CenteredNorm(patches.norm)
    stage.patch_embeddings = nn.Sequential(patches, Center())
    for layer in stage.layers:
        attention, mlp = layer.attention, layer.mlp
        consumers = [attention.k_proj, attention.v_proj]
        if attention.reduction is not None:
            center_outputs(attention.reduction)
            attention.reduction_norm = fold_affine(attention.reduction_norm, consumers)
            consumers = [attention.reduction]
        layer.norm1 = fold_affine(layer.norm1, [attention.q_proj, *consumers])
        center_outputs(attention.o_proj)
        layer.norm2 = fold_affine(layer.norm2, [mlp.fc1])
        center_outputs(mlp.fc2)
    stage.norm = CenteredNorm(stage.norm)
    return stage


FORMS = (
    ExportForm(marker="mix_ffn", rewrite=convolutional_mix_ffn, target="blocked_channels"),
    ExportForm(marker="segformer_stage", rewrite=center_stage, target="centered_norms"),
)

__all__ = ["FORMS"]
