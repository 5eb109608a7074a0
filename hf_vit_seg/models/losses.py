"""Losses of segmentation heads. Shapes: B images, K classes, h w the grid of the logits, H W that of the labels."""

import torch

from .upsampled_cross_entropy import upsampled_cross_entropy


def semantic_segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross-entropy over the pixels that count, at the labels' resolution, in float32 or float64.

    `logits` (B, K, h, w) are resized bilinearly to `labels` (B, H, W), int64. Pixels equal to `ignore_index` do
    not count; where no pixel counts the loss is 0 and its gradient too, not NaN. With K = 1 the loss is binary:
    label 1 is the class, 0 the rest.
    """
    total = upsampled_cross_entropy(logits, labels, ignore_index).sum()
    return total / (labels != ignore_index).sum().clamp(min=1)


__all__ = ["semantic_segmentation_loss"]
