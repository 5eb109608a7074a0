"""Full-resolution probabilities of some classes, without storing those of all classes.

An image has few of a dataset's classes, and region losses need only these.
Shapes: K classes, C selected classes, h w the grid of the logits, H W that of the labels, r W of a strip.
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
    """Compute `interpolate(logits, size, mode="bilinear").softmax(1)[:, classes]` of one image, (C, H, W).

    `logits` are (1, K, h, w). The result is float32 or float64 and differentiable once. A single output is the logit
    of label 1; that of label 0 is 0.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    if not use_upsampling_strips(logits):
        return upsample(logits, size).softmax(1)[0, classes]
    return ProbabilitiesInStrips.apply(pad_classes(logits), classes, size, strip_bytes)


class ProbabilitiesInStrips(torch.autograd.Function):
    """Softmax in strips, recomputed in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, classes: torch.Tensor, size: tuple[int, ...], strip_bytes: int | None
    ) -> torch.Tensor:
        """Compute the probabilities (C, H, W)."""
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
        """Compute the gradient of the logits (1, K, h, w): p (g - sum p g) for a softmax p with gradient g."""
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
