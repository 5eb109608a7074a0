"""The all-MLP head as exported programs have it: plain layers with everything constant multiplied out.

Shapes: B images, C_i channels of level i, H_i W_i its grid (level 0 is the finest, H W), D width, K classes.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import interpolate

Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight (C', C) and bias (C',)


def affine_convolution(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A 1x1 convolution that holds these numbers."""
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], kernel_size=1, bias=bias is not None)
    convolution.weight = nn.Parameter(weight.detach()[:, :, None, None].clone(), requires_grad=False)
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return convolution


class DeployedAllMLPHead(nn.Module):
    """`AllMLPHead` in evaluation, its norms folded: for runtimes, which have no strips and fuse convolutions.

    `hidden` are the ReLU layers of the "mmseg" flavour, `levels` what each level adds to the fused map, `classifier`
    the last layer.
    """

    def __init__(self, hidden: Sequence[Affine] | None, levels: Sequence[Affine], classifier: Affine):
        super().__init__()
        self.hidden = None if hidden is None else nn.ModuleList([affine_convolution(*layer) for layer in hidden])
        self.levels = nn.ModuleList([affine_convolution(*layer) for layer in levels])
        self.classifier = affine_convolution(*classifier)

    def share(self, level: int, feature_map: torch.Tensor) -> torch.Tensor:
        """What a level (B, C_i, H_i, W_i) adds, on its own grid: (B, D, H_i, W_i)."""
        if self.hidden is not None:
            feature_map = self.hidden[level](feature_map).relu()
        return self.levels[level](feature_map)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feature maps (B, C_i, H_i, W_i), finest first, to logits (B, K, H, W)."""
        size = feature_maps[0].shape[-2:]
        coarse = [
            interpolate(self.share(level, feature_maps[level]), size=size, mode="bilinear", align_corners=False)
            for level in range(len(feature_maps) - 1, 0, -1)
        ]
        fused = self.share(0, feature_maps[0])
        if coarse:  # runtimes put the last sum and the ReLU into the convolution of the finest level
            fused = fused + sum(coarse[1:], coarse[0])
        return self.classifier(fused.relu())


__all__ = ["DeployedAllMLPHead"]
