"""Export forms of modules shared by architectures; everything that depends only on weights is precomputed.

Shapes: B images, C_i channels of level i, H_i W_i its grid (level 0 is the finest, H W), D width, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hf_vit_seg.models.all_mlp_head import fold
from hf_vit_seg.models.cpu_kernels import folds_batch_norm
from hf_vit_seg.models.resnetv2 import pad_same

from . import ExportForm

Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight (C', C) and bias (C',)


def affine_convolution(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """Return a 1x1 convolution with these weights."""
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, bias=bias is not None)
    convolution.weight = nn.Parameter(weight.detach()[:, :, None, None].clone(), requires_grad=False)
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return convolution


class FoldedAllMLPHead(nn.Module):
    """The all-MLP head as plain convolutions, which runtimes fuse.

    `hidden` are the ReLU layers of the flavor "mmseg", `levels` the summand of each level, `classifier` the last layer.
    """

    def __init__(self, hidden: Sequence[Affine] | None, levels: Sequence[Affine], classifier: Affine):
        super().__init__()
        self.hidden = None if hidden is None else nn.ModuleList([affine_convolution(*layer) for layer in hidden])
        self.levels = nn.ModuleList([affine_convolution(*layer) for layer in levels])
        self.classifier = affine_convolution(*classifier)

    def summand(self, level: int, feature_map: torch.Tensor) -> torch.Tensor:
        """Return a level (B, C_i, H_i, W_i) to its summand on its own grid, (B, D, H_i, W_i)."""
        if self.hidden is not None:
            feature_map = self.hidden[level](feature_map).relu()
        return self.levels[level](feature_map)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map feature maps (B, C_i, H_i, W_i), finest first, to logits (B, K, H, W)."""
        size = feature_maps[0].shape[-2:]
        coarse = [
            interpolate(self.summand(level, feature_maps[level]), size=size, mode="bilinear", align_corners=False)
            for level in range(len(feature_maps) - 1, 0, -1)
        ]
        fused = self.summand(0, feature_maps[0])
        if coarse:  # runtimes fuse the last addition and the ReLU into the convolution of the finest level
            fused = fused + sum(coarse[1:], coarse[0])
        return self.classifier(fused.relu())


def fold_all_mlp_head(head: Any) -> nn.Module:
    """Return the folded head; unchanged if a layer has been replaced or a norm cannot be folded."""
    if not (head.is_plain() and head.folds_norms()):
        return head
    folded = fold(head)
    levels = [(weight, None if level else folded.bias) for level, weight in enumerate(folded.weights)]
    return FoldedAllMLPHead(folded.hidden, levels, (head.classifier.weight[:, :, 0, 0], head.classifier.bias))


def fold_convolution(layer: Any) -> nn.Module:
    """Return a layer's `convolution` and `norm` as one convolution; unchanged if one of them has been replaced."""
    if not folds_batch_norm(layer, layer.convolution.weight.dtype):
        return layer
    return fuse_conv_bn_eval(layer.convolution, layer.norm)


class SamePadding(nn.Module):
    """TensorFlow's 'SAME' padding as a layer."""

    def __init__(self, kernel: int, stride: int):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        return pad_same(feature_map, self.kernel, self.stride)


def standardize_convolution(layer: Any) -> nn.Module:
    """Return a plain convolution with the standardized kernels."""
    (kernel, _), (stride, _) = layer.kernel_size, layer.stride
    padding = 0 if layer.pads_itself else kernel // 2
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, kernel, stride, padding, bias=False)
    plain.weight = nn.Parameter(layer.standardize_kernels().detach(), requires_grad=False)
    return nn.Sequential(SamePadding(kernel, stride), plain) if layer.pads_itself else plain


FORMS = (
    ExportForm(marker="all_mlp_head", rewrite=fold_all_mlp_head),
    ExportForm(marker="convolution_with_norm", rewrite=fold_convolution),
    ExportForm(marker="standardized_conv2d", rewrite=standardize_convolution),
)

__all__ = ["FORMS", "FoldedAllMLPHead", "affine_convolution"]
