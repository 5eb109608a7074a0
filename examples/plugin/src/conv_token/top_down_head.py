"""A segmentation head for any encoder with feature maps. This file is copied to the Hub, so it imports only torch.

Shapes: B batch, C_i channels and H_i W_i grid of level i (level 0 is the finest, H W), D width, K classes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import interpolate


class TopDownHead(nn.Module):
    """A feature pyramid (arXiv 1612.03144, figure 3) with a classifier on its finest level."""

    def __init__(self, in_channels: Sequence[int], num_labels: int, hidden_size: int = 64, dropout_prob: float = 0.1):
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(channels, hidden_size, kernel_size=1) for channels in in_channels])
        self.smooth = nn.Conv2d(hidden_size, hidden_size, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(hidden_size)
        self.dropout = nn.Dropout2d(dropout_prob)
        self.classifier = nn.Conv2d(hidden_size, num_labels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map feature maps (B, C_i, H_i, W_i), from fine to coarse, to logits (B, K, H, W)."""
        levels = [lateral(feature_map) for lateral, feature_map in zip(self.lateral, feature_maps, strict=True)]
        merged = levels.pop()
        for level in reversed(levels):
            merged = level + interpolate(merged, size=level.shape[-2:], mode="bilinear", align_corners=False)
        return self.classifier(self.dropout(self.norm(self.smooth(merged)).relu()))


__all__ = ["TopDownHead"]
