"""Cross-entropy of logits resized to their labels, without the resized logits ever being whole in memory.

At 512x512 with 150 classes they are 150 MiB per image, and the plain way holds them three times: resized, as
log-probabilities, as gradient. Here both passes go over strips that fit into a cache. The backward pass resizes again
rather than keep anything, and brings a strip's gradient to the grid of the logits at once. On a CPU the two together
take a fraction of the time that writing the large tensors does.

Shapes: B images, K classes, h w the grid of the logits, H W that of the labels, n r W those of a strip.
"""

from typing import Any

import torch
from torch import nn

from .errors import HfVitSegError
from .strip_upsampling import (
    StripUpsampling,
    differentiable_once,
    strips_serve,
    upsampled_whole,
    with_idle_classes,
    working_dtype,
)


def upsampled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    strip_bytes: int | None = None,
) -> torch.Tensor:
    """The loss of every pixel, (B, H, W), in float32 or float64: 0 where the label is `ignore_index`.

    The same as `cross_entropy(interpolate(logits, labels.shape[1:], mode="bilinear"), labels, reduction="none")` with
    those options, for logits (B, K, h, w), labels (B, H, W), int64, and class weights (K,). A single class is binary:
    its logit is that of label 1 against label 0, weights are (2,). It can be differentiated once. `strip_bytes` is
    the size of a strip of logits, by default what suits the device. ValueError for labels of another shape or type;
    a label that is no class is torch's error.
    """
    if labels.ndim != 3 or labels.shape[0] != logits.shape[0] or labels.is_floating_point():
        raise HfVitSegError(
            f"labels are class maps (B, H, W) of whole numbers, one for each of the {logits.shape[0]} images; got "
            f"shape {tuple(labels.shape)}, {labels.dtype}"
        )
    labels = labels.long()
    if logits.shape[1] == 1:
        return binary_cross_entropy(logits, labels, ignore_index, class_weights, label_smoothing)
    if not strips_serve(logits):
        return plain_cross_entropy(logits, labels, ignore_index, class_weights, label_smoothing)
    weights = torch.ones(logits.shape[1]) if class_weights is None else class_weights
    weights = weights.to(logits.device, working_dtype(logits))
    own, every = (1 - label_smoothing) * weights, label_smoothing / len(weights) * weights
    logits = with_idle_classes(logits)
    every = nn.functional.pad(every, (0, logits.shape[1] - len(every))) if label_smoothing else None
    return CrossEntropyInStrips.apply(logits, labels, ignore_index, own, every, strip_bytes)


def plain_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """`upsampled_cross_entropy` the plain way."""
    logits = upsampled_whole(logits, labels.shape[-2:])
    return nn.functional.cross_entropy(
        logits,
        labels,
        None if class_weights is None else class_weights.to(logits),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=label_smoothing,
    )


def binary_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int,
    class_weights: torch.Tensor | None,
    label_smoothing: float,
) -> torch.Tensor:
    """`upsampled_cross_entropy` of two classes with the logits 0 and `logits` (B, 1, h, w)."""
    logits = upsampled_whole(logits, labels.shape[-2:])[:, 0]
    counts = labels != ignore_index
    labels = labels.where(counts, 0)
    weights = logits.new_ones(2) if class_weights is None else class_weights.to(logits)
    # What a pixel of each label (rows) pays for the improbability of class 0 and of class 1.
    costs = ((1 - label_smoothing) * torch.eye(2).to(logits) + label_smoothing / 2) * weights
    shares = costs[:, 1] / costs.sum(1).clamp(min=torch.finfo(costs.dtype).tiny)  # of a label without weight none
    targets = shares.gather(0, labels.flatten()).view_as(labels)  # an index counts from the end
    amounts = None if class_weights is None else costs.sum(1)[labels]
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, amounts, reduction="none")
    return losses.where(counts, 0)


class CrossEntropyInStrips(torch.autograd.Function):
    """The losses of pixels, in strips, with the gradient written out.

    With log-probabilities s and p = exp(s), a pixel of label y has the loss -a(y) s(y) - sum over k of b(k) s(k), where
    a is `own` and b is `every`. The gradient of its logits is (a(y) + sum b) p, less a(y) at y, less b.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        ignore_index: int,
        own: torch.Tensor,
        every: torch.Tensor | None,
        strip_bytes: int | None,
    ) -> torch.Tensor:
        """The losses (B, H, W)."""
        ctx.save_for_backward(logits, labels, own, every)
        ctx.ignore_index, ctx.strip_bytes = ignore_index, strip_bytes
        upsampling = StripUpsampling(logits, labels.shape[-2:], strip_bytes)
        losses = own.new_zeros(labels.shape)
        for strip in upsampling.strips():
            counts = labels[strip] != ignore_index
            if idle(counts):
                continue
            targets = labels[strip].where(counts, 0)
            scores = upsampling.upsampled(strip).log_softmax(-1)
            costs = -own[targets] * scores.gather(-1, targets[..., None])[..., 0]
            if every is not None:
                costs -= scores.mul_(every).sum(-1)
            losses[strip] = costs.where(counts, 0)
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the logits (B, K, h, w)."""
        logits, labels, own, every = ctx.saved_tensors
        upsampling = StripUpsampling(logits, labels.shape[-2:], ctx.strip_bytes)
        total = upsampling.zeros()
        for strip in upsampling.strips():
            counts = labels[strip] != ctx.ignore_index
            if idle(counts):
                continue
            targets = labels[strip].where(counts, 0)[..., None]
            factors = gradients[0][strip].where(counts, 0)[..., None]
            hits = own[targets] * factors
            gradient = upsampling.upsampled(strip).softmax(-1)
            gradient *= hits if every is None else hits + every.sum() * factors
            gradient.scatter_add_(-1, targets, -hits)
            if every is not None:
                gradient -= every * factors
            upsampling.add_transposed(gradient, strip, total)
        return total.permute(0, 3, 1, 2).to(logits.dtype), None, None, None, None, None


def idle(counts: torch.Tensor) -> bool:
    """Whether no pixel counts; not asked of a GPU, which would have to be waited for."""
    return counts.device.type == "cpu" and not counts.any()


__all__ = ["upsampled_cross_entropy"]
