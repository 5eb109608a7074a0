"""How many pixels the cells of a backbone's feature maps stand for, which transformers' backbones do not say."""

from typing import Any

import torch
from torch.func import functional_call
from transformers.backbone_utils import BackboneType

Stride = tuple[int, int]  # pixels (height, width) of a cell
USUAL_SIZE = 224  # of images, for backbones whose config has no image size


def feature_strides(backbone: Any) -> tuple[Stride, ...]:
    """The stride of each map that an AutoBackbone gives: timm's tell it, others are run without memory.

    That run is on an image of the backbone's own size, which is the one that all of them take.
    """
    if backbone.backbone_type == BackboneType.TIMM:
        return tuple((stride, stride) for stride in backbone._backbone.feature_info.reduction())
    size = getattr(backbone.config, "image_size", None) or USUAL_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    shapes_alone = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, backbone.config.num_channels, height, width, device="meta", dtype=backbone.dtype)
    with torch.no_grad():
        maps = functional_call(backbone, shapes_alone, (image,), {"return_dict": True}).feature_maps
    sides = [feature_map.shape[-2:] for feature_map in maps]
    return tuple((round(height / rows), round(width / columns)) for rows, columns in sides)


__all__ = ["Stride", "feature_strides"]
