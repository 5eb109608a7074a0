"""The hybrid ViT's stem: BiT's ResNet (arXiv 1912.11370) with standardised kernels (arXiv 1903.10520).

In spite of its name the bottlenecks are those of ResNet v1, with the activation after the addition. Padding is
TensorFlow's 'SAME': as much as the stride needs, the odd pixel to the right and at the bottom.

Shapes: B images, C channels, H W grid; feature maps are channels-last in memory.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import conv2d, max_pool2d, pad

from .fast_paths import channels_last
from .grid_sizes import ceil_div
from .value_cache import ValueCache, remembering_pays

ROOT_WIDTH = 64
EXPANSION = 4
GROUPS = 32


class StemNumerics(NamedTuple):
    """The choices in which the references differ."""

    padding: str  # "same" or "symmetric"
    mode: str  # "std_plus_eps" or "sqrt_var_plus_eps"
    eps: float
    norm_eps: float


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels that 'SAME' adds before and after a side, such that the output has ceil(size / stride)."""
    total = (ceil_div(size, stride) - 1) * stride + kernel - size
    if kernel < stride:  # else never negative; a maximum would keep exported programs from simplifying the size
        total = max(total, 0)
    return total // 2, total - total // 2


def pad_same(feature_map: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    """Pad (B, C, H, W) as 'SAME' does for a window of kernel and stride."""
    top, bottom = same_padding(feature_map.shape[-2], kernel, stride)
    left, right = same_padding(feature_map.shape[-1], kernel, stride)
    return pad(feature_map, (left, right, top, bottom), value=value)


class SamePadding(nn.Module):
    """'SAME' padding as a layer."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return pad_same(feature_map, self.kernel, self.stride)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels are brought to mean 0 and deviation 1 each, and never stored so.

    Without autograd the standardised kernels are kept between calls for as long as the raw ones keep their values.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, numerics: StemNumerics):
        symmetric = numerics.padding == "symmetric" or stride == 1  # odd kernels: 'SAME' at stride 1 is symmetric
        padding = kernel // 2 if symmetric else 0
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.pads_itself = not symmetric and kernel > 1
        self.mode, self.eps = numerics.mode, numerics.eps
        self.kernels: ValueCache[torch.Tensor] = ValueCache()

    def standardized(self) -> torch.Tensor:
        """The kernels (C', C, k, k), each of mean 0 and deviation 1 but for eps, channels-last in memory."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        deviation = variance.sqrt() + self.eps if self.mode == "std_plus_eps" else (variance + self.eps).sqrt()
        standardized = ((weight - mean) / deviation).to(self.weight.dtype)
        return channels_last(standardized)

    def packed(self, shape: torch.Size) -> torch.Tensor:
        """`standardized()` in the order of oneDNN's choice for maps of this shape; else it reorders at every call."""
        kernels, unit = self.standardized().to_mkldnn(), [1, 1]
        padding, stride = list(self.padding), list(self.stride)
        reorder = torch._C._nn.mkldnn_reorder_conv2d_weight  # pyright: ignore[reportAttributeAccessIssue]
        return reorder(kernels, padding, stride, unit, 1, shape)

    def deployed(self) -> nn.Module:
        """A plain convolution that holds the standardised kernels, for exported programs."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding = 0 if self.pads_itself else kernel // 2
        plain = nn.Conv2d(self.in_channels, self.out_channels, kernel, stride, padding, bias=False)
        plain.weight = nn.Parameter(self.standardized().detach(), requires_grad=False)
        return nn.Sequential(SamePadding(kernel, stride), plain) if self.pads_itself else plain

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        if self.pads_itself:
            feature_map = pad_same(feature_map, self.kernel_size[0], self.stride[0])
        if not remembering_pays(self.weight):
            return conv2d(feature_map, self.standardized(), None, self.stride, self.padding)
        if not packing_pays(feature_map, self.weight):
            kernels = self.kernels.get("plain", [self.weight], self.standardized)
            return conv2d(feature_map, kernels, None, self.stride, self.padding)
        shape = feature_map.shape
        kernels = self.kernels.get(shape, [self.weight], lambda: self.packed(shape))
        return torch.ops.mkldnn._convolution_pointwise(
            feature_map, kernels, None, self.padding, self.stride, [1, 1], 1, "none", [], ""
        )


def packing_pays(feature_map: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether oneDNN's packed kernels, which torch's compiler uses too, are to be had: float32 on a CPU.

    The numbers are the same; a 1x1 convolution of 1024 to 2048 channels on 7x7 takes 0.44 ms instead of 1.60.
    """
    return (
        feature_map.device.type == "cpu"
        and feature_map.dtype == weight.dtype == torch.float32
        and type(weight) in (nn.Parameter, torch.Tensor)
        and type(feature_map) is torch.Tensor
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")  # pyright: ignore[reportAttributeAccessIssue]
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


class ClosingNorm(nn.GroupNorm):
    """The last norm of a unit: its scale starts at zero, so that a fresh unit is its shortcut."""


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width; the shortcut is projected where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int, numerics: StemNumerics):
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = StandardizedConv2d(in_channels, width, 1, 1, numerics)
        self.norm1 = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.conv2 = StandardizedConv2d(width, width, 3, stride, numerics)
        self.norm2 = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.conv3 = StandardizedConv2d(width, out_channels, 1, 1, numerics)
        self.norm3 = ClosingNorm(GROUPS, out_channels, eps=numerics.norm_eps)
        projects = stride > 1 or in_channels != out_channels
        self.shortcut = StandardizedConv2d(in_channels, out_channels, 1, stride, numerics) if projects else None
        self.shortcut_norm = nn.GroupNorm(GROUPS, out_channels, eps=numerics.norm_eps) if projects else None

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        shortcut = feature_map
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(feature_map))
        hidden = self.norm1(self.conv1(feature_map)).relu()
        hidden = self.norm2(self.conv2(hidden)).relu()
        return (self.norm3(self.conv3(hidden)) + shortcut).relu()


class ResNetStage(nn.Module):
    """Units of one width; the first halves the grid in every stage but the first."""

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
    """7x7 convolution of stride 2, 3x3 maximum of stride 2, then stages of bottlenecks, which may be none."""

    def __init__(self, num_channels: int, depths: tuple[int, ...], width_factor: float, numerics: StemNumerics):
        super().__init__()
        width = int(ROOT_WIDTH * width_factor)
        self.pads_itself = numerics.padding == "same"
        self.conv = StandardizedConv2d(num_channels, width, 7, 2, numerics)
        self.norm = nn.GroupNorm(GROUPS, width, eps=numerics.norm_eps)
        self.stages = nn.ModuleList()
        self.out_channels = width
        for stage, depth in enumerate(depths):
            stride = 2 if stage else 1
            self.stages.append(ResNetStage(self.out_channels, width * 2**stage, depth, stride, numerics))
            self.out_channels = EXPANSION * width * 2**stage

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) to the last stage's map, at 1/4 with one stage or none."""
        feature_map = self.conv(channels_last(pixel_values))
        feature_map = self.norm(feature_map).relu()
        if self.pads_itself:  # with anything that no maximum of a ReLU's output can take
            feature_map = max_pool2d(pad_same(feature_map, 3, 2), 3, 2)
        else:
            feature_map = max_pool2d(feature_map, 3, 2, padding=1)
        for stage in self.stages:
            feature_map = stage(feature_map)
        return feature_map


__all__ = ["ClosingNorm", "ResNetV2Stem", "StandardizedConv2d", "StemNumerics"]
