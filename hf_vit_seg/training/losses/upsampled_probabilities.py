"""Probabilities of some classes at the size of the labels, without those of all classes ever being whole in memory.

An image has few of the classes of a data set, and region losses look at those alone.
Shapes: K classes, C of them chosen, h w the grid of the logits, H W that of the labels, r W of a strip.
"""

from typing import Any

import torch

from hf_vit_seg.models.bilinear import (
    StripUpsampling,
    differentiable_once,
    pad_classes,
    upsample,
    use_upsampling_strips,
)


def upsampled_probabilities(
    logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, ...], strip_bytes: int | None = None
) -> torch.Tensor:
    """`interpolate(logits, size, mode="bilinear").softmax(1)[:, classes]` of one image: (1, K, h, w) to (C, H, W).

    In float32 or float64; can be differentiated once. One output is that of label 1 against label 0 with logit 0.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    if not use_upsampling_strips(logits):
        return upsample(logits, size).softmax(1)[0, classes]
    return ProbabilitiesInStrips.apply(pad_classes(logits), classes, size, strip_bytes)


class ProbabilitiesInStrips(torch.autograd.Function):
    """Softmax in strips; the backward pass computes it again."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, ...], strip_bytes: int | None
    ) -> torch.Tensor:
        """The probabilities (C, H, W)."""
        ctx.save_for_backward(logits, classes)
        ctx.size, ctx.strip_bytes = size, strip_bytes
        upsampling = StripUpsampling(logits, size, strip_bytes)
        chosen = torch.empty(len(classes), *size, dtype=upsampling.dtype, device=logits.device)
        for strip in upsampling.strips():
            probabilities = upsampling.upsample(strip).softmax(-1)[0]  # (r, W, K)
            chosen[:, strip.rows] = probabilities[..., classes].permute(2, 0, 1)
        return chosen

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits (1, K, h, w): with softmax p and gradients g of it, p (g - sum p g)."""
        logits, classes = ctx.saved_tensors
        upsampling = StripUpsampling(logits, ctx.size, ctx.strip_bytes)
        total = upsampling.zeros()
        for strip in upsampling.strips():
            probabilities = upsampling.upsample(strip).softmax(-1)  # (1, r, W, K)
            chosen = probabilities[..., classes]
            products = chosen * gradients[0][:, strip.rows].permute(1, 2, 0)
            gradient = probabilities.mul_(-products.sum(-1, keepdim=True)).index_add_(-1, classes, products)
            upsampling.add_transposed(gradient, strip, total)
        return total.permute(0, 3, 1, 2).to(logits.dtype), None, None, None


__all__ = ["upsampled_probabilities"]
