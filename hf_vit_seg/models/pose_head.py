"""ViTPose's heads (arXiv 2204.12484, section 3.1): heatmaps of keypoints from a plain ViT's feature map.

Shapes: B images, D width of the encoder, C of the head, K keypoints, h w grid of tokens. Both give (B, K, 4h, 4w).
"""

import torch
from torch import nn
from torch.nn.functional import interpolate

from .head_norms import head_norm

UPSAMPLING = 4


class ClassicPoseHead(nn.Module):
    """Equation 3: two deconvolutions with norm and ReLU, each doubling the grid, and a 1x1 convolution."""

    def __init__(self, in_channels: int, width: int, num_keypoints: int, norm: str = "batch"):
        super().__init__()
        channels = (in_channels, width)
        self.deconvolutions = nn.ModuleList(
            [nn.ConvTranspose2d(c, width, kernel_size=4, stride=2, padding=1, bias=False) for c in channels]
        )
        self.norms = nn.ModuleList([head_norm(norm, width) for _ in channels])
        self.final = nn.Conv2d(width, num_keypoints, kernel_size=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) to (B, K, 4h, 4w)."""
        for deconvolution, norm in zip(self.deconvolutions, self.norms, strict=True):
            feature_map = norm(deconvolution(feature_map)).relu()
        return self.final(feature_map)


class SimplePoseHead(nn.Module):
    """Equation 4: ReLU, bilinear upsampling, and a 3x3 convolution; what follows shows how little a head matters."""

    def __init__(self, in_channels: int, num_keypoints: int):
        super().__init__()
        self.final = nn.Conv2d(in_channels, num_keypoints, kernel_size=3, padding=1)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) to (B, K, 4h, 4w)."""
        rows, columns = feature_map.shape[-2:]
        size = (rows * UPSAMPLING, columns * UPSAMPLING)
        return self.final(interpolate(feature_map.relu(), size=size, mode="bilinear", align_corners=False))


__all__ = ["ClassicPoseHead", "SimplePoseHead"]
