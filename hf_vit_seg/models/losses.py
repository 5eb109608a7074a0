"""Losses of segmentation heads. Shapes: B images, K classes, h w the grid of the logits, H W that of the labels."""

import torch
from torch import nn


def semantic_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count, at the labels' resolution.

    `logits` (B, K, h, w) are resized bilinearly to `labels` (B, H, W), int64. Pixels equal to `ignore_index` do
    not count; where no pixel counts the loss is 0 and its gradient too, not NaN. With K = 1 the loss is binary:
    label 1 is the class, 0 the rest.
    """
    logits = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    counts = labels != ignore_index
    if logits.shape[1] == 1:
        targets = labels.where(counts, 0).to(logits.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets, reduction="none")
        total = (losses * counts).sum()
    else:
        total = nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / counts.sum().clamp(min=1)


__all__ = ["semantic_segmentation_loss"]
