"""The hybrid ViT's stem: BiT's ResNet (arXiv 1912.11370) with standardized kernels (arXiv 1903.10520).

Despite its name, its bottlenecks are those of ResNet v1, with the activation after the addition. Padding is
TensorFlow's 'SAME': as much as the stride requires, with the odd pixel on the right and at the bottom.
jeonsworld/ViT-pytorch differs in padding and in the norm of the shortcuts (`StemNumerics`).

Shapes: B images, C channels, H W grid; feature maps are channels-last in memory.
"""

from typing import NamedTuple, cast

import torch
from torch import nn
from torch.nn.functional import max_pool2d, pad

from .cpu_kernels import ValueCache, cached_conv2d, channels_last
from .grid_sizes import ceil_div

ROOT_WIDTH = 64
EXPANSION = 4
GROUPS = 32


class StemNumerics(NamedTuple):
    """Numerical differences between the references."""

    padding: str  # "same" or "symmetric"
    mode: str  # "std_plus_eps" or "sqrt_var_plus_eps"
    eps: float
    norm_eps: float
    shortcut_norm: str = "group"  # or "channel": one group per channel
    shortcut_norm_eps: float | None = None  # None: norm_eps
    pool_padding: bool = True


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding of 'SAME' before and after a side, such that the output has ceil(size / stride)."""
    total = (ceil_div(size, stride) - 1) * stride + kernel - size
    if kernel < stride:  # otherwise never negative; `max` would keep exported programs from simplifying the size
        total = max(total, 0)
    return total // 2, total - total // 2


def pad_same(feature_map: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad (B, C, H, W) as 'SAME' does for a window of kernel and stride."""
    top, bottom = same_padding(feature_map.shape[-2], kernel, stride)
    left, right = same_padding(feature_map.shape[-1], kernel, stride)
    return pad(feature_map, (left, right, top, bottom), value=value)


class StandardizedConv2d(nn.Conv2d):
    """A convolution that standardizes its kernels to mean 0 and standard deviation 1 at every call."""

    export_form = "standardized_conv2d"

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, numerics: StemNumerics):
        symmetric = numerics.padding == "symmetric" or stride == 1  # odd kernels: 'SAME' at stride 1 is symmetric
        padding = kernel // 2 if symmetric else 0
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.pads_itself = not symmetric and kernel > 1
        self.mode, self.eps = numerics.mode, numerics.eps
        self.kernels: ValueCache[torch.Tensor] = ValueCache()

    def standardize_kernels(self) -> torch.Tensor:
        """Standardize the kernels (C', C, k, k) to mean 0 and standard deviation 1 (except for eps), channels-last."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        deviation = variance.sqrt() + self.eps if self.mode == "std_plus_eps" else (variance + self.eps).sqrt()
        standardized = ((weight - mean) / deviation).to(self.weight.dtype)
        return channels_last(standardized)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        if self.pads_itself:
            feature_map = pad_same(feature_map, self.kernel_size[0], self.stride[0])
        padding = cast(tuple[int, ...], self.padding)  # not a name, such as "same"
        return cached_conv2d(feature_map, self.weight, self.standardize_kernels, self.kernels, self.stride, padding)


class ChannelNorm(nn.GroupNorm):
    """GroupNorm with one group per channel. `nn.GroupNorm` raises for a batch of one map with a single cell."""

    def __init__(self, num_channels: int, eps: float):
        super().__init__(num_channels, num_channels, eps=eps)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map (B, C, h, w), of any size, to the same shape."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def shortcut_norm(channels: int, numerics: StemNumerics) -> nn.GroupNorm:
    """Return the norm after a shortcut's convolution: per channel, or in groups, by the reference's numerics."""
    eps = numerics.norm_eps if numerics.shortcut_norm_eps is None else numerics.shortcut_norm_eps
    if numerics.shortcut_norm == "channel":
        return ChannelNorm(channels, eps)
    return nn.GroupNorm(GROUPS, channels, eps=eps)


class ZeroInitGroupNorm(nn.GroupNorm):
    """The last norm of a unit: its scale is initialized to zero, so that a new unit equals its shortcut."""


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; the shortcut is projected if the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int, numerics: StemNumerics):
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = StandardizedConv2d(in_channels, width, 1, 1, numerics)
        self.norm1 = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.conv2 = StandardizedConv2d(width, width, 3, stride, numerics)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.conv3 = StandardizedConv2d(width, out_channels, 1, 1, numerics)
        self.norm3 = ZeroInitGroupNorm(GROUPS, out_channels, eps=numerics.norm_eps)
        projects = stride > 1 or in_channels != out_channels
        self.shortcut = StandardizedConv2d(in_channels, out_channels, 1, stride, numerics) if projects else None
        self.shortcut_norm = shortcut_norm(out_channels, numerics) if projects else None

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        shortcut = feature_map
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(feature_map))
        hidden = self.norm1(self.conv1(feature_map)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        return (self.norm3(self.conv3(hidden)) + shortcut).relu()


class ResNetStage(nn.Module):
    """Units of one width; the first unit halves the grid in all stages but the first."""

    def __init__(self, in_channels: int, width: int, depth: int, stride: int, numerics: StemNumerics):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                Bottleneck(EXPANSION * width if unit else in_channels, width, 1 if unit else stride, numerics)
                for unit in range(depth)
            ]
        )

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            feature_map = layer(feature_map)
        return feature_map


class ResNetV2Stem(nn.Module):
    """7x7 convolution of stride 2, 3x3 maximum of stride 2, then zero or more stages of bottlenecks."""

    def __init__(self, num_channels: int, depths: tuple[int, ...], width_factor: float, numerics: StemNumerics):
        super().__init__()
        width = int(ROOT_WIDTH * width_factor)
        self.pads_itself, self.pool_padding = numerics.padding == "same", numerics.pool_padding
        self.conv = StandardizedConv2d(num_channels, width, 7, 2, numerics)
        self.norm = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.stages = nn.ModuleList()
        self.out_channels = width
        for stage, depth in enumerate(depths):
            stride = 2 if stage else 1
            self.stages.append(ResNetStage(self.out_channels, width * 2**stage, depth, stride, numerics))
            self.out_channels = EXPANSION * width * 2**stage

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to the last stage's map, at 1/4 with one stage or none.

        Without padding, pooling returns one row and one column less; the second stage's stride makes up for them.
        """
        feature_map = self.conv(channels_last(pixel_values))
        feature_map = self.norm(feature_map).relu()
        if not self.pool_padding:
            feature_map = max_pool2d(feature_map, 3, 2)
        elif self.pads_itself:  # zeros never exceed a ReLU's output
            feature_map = max_pool2d(pad_same(feature_map, 3, 2), 3, 2)
        else:
            feature_map = max_pool2d(feature_map, 3, 2, padding=1)
        for stage in self.stages:
            feature_map = stage(feature_map)
        return feature_map


__all__ = ["ChannelNorm", "ResNetV2Stem", "StandardizedConv2d", "StemNumerics", "ZeroInitGroupNorm", "pad_same"]
