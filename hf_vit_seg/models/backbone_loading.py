"""Load backbones from checkpoints, in a directory or on the Hub, and determine the strides of their feature maps.

`AutoBackbone.from_pretrained` is not suitable: it does not accept directories, and it resets the BatchNorm statistics
of timm checkpoints (transformers 5.23).
"""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch.func import functional_call
from transformers import (
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackboneConfig,
)
from transformers.backbone_utils import BackboneType
from transformers.initialization import no_init_weights
from transformers.utils.hub import cached_file

from .errors import HfVitSegError
from .layers import hub_options

TIMM_WEIGHTS = "model.safetensors"
CHANNELS_LAST = "NHWC"
DEFAULT_SIZE = 224  # of images, for backbones whose config has no image size
T = TypeVar("T")


def load_backbone_config(path: str | os.PathLike, **hub: Any) -> PreTrainedConfig:
    """Load the config of a checkpoint as a backbone config; for timm's own checkpoints, that of a TimmBackbone.

    ValueError for a model without an AutoBackbone class.
    """
    config = AutoConfig.from_pretrained(path, **hub)
    if config.model_type == "timm_wrapper":  # importing its class would import timm
        return TimmBackboneConfig(backbone=config.architecture)
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise HfVitSegError(
            f"{path} is a '{config.model_type}', for which transformers has no backbone (AutoBackbone), so it cannot "
            "have a segmentation head"
        )
    return config


def build_backbone(config: PreTrainedConfig) -> Any:
    """Build a backbone with randomly initialized weights."""
    return build_for_any_size(config, partial(AutoBackbone.from_config, config))


def build_for_any_size(config: PreTrainedConfig, build: Callable[..., T]) -> T:
    """Call `build`, with timm's option for images of any size if the model has it (CNNs do not need it)."""
    if isinstance(config, TimmBackboneConfig):
        with suppress(TypeError):
            return build(dynamic_img_size=True)
    return build()


def returns_channels_last(backbone: Any) -> bool:
    """Return whether a backbone's maps are (B, H, W, C), as those of some timm models."""
    layout = getattr(getattr(backbone, "_backbone", None), "output_fmt", None)
    return getattr(layout, "value", layout) == CHANNELS_LAST


def load_backbone(
    path: str | os.PathLike, config: PreTrainedConfig, **loading: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a backbone with the checkpoint's weights; also returns transformers' loading info."""
    backbone_class: Any = MODEL_FOR_BACKBONE_MAPPING[type(config)]
    if not isinstance(config, TimmBackboneConfig):
        return backbone_class.from_pretrained(path, config=config, output_loading_info=True, **loading)
    hub = hub_options(loading)
    if isinstance(AutoConfig.from_pretrained(path, **hub), TimmBackboneConfig):  # saved by transformers
        load = PreTrainedModel.from_pretrained.__func__  # TimmBackbone's own method asks timm for a model of that name
        return build_for_any_size(
            config, partial(load, backbone_class, path, config=config, output_loading_info=True, **loading)
        )
    file = cached_file(path, TIMM_WEIGHTS, **hub)
    build = partial(backbone_class, config, pretrained=True, pretrained_cfg_overlay={"file": file})
    with no_init_weights():  # otherwise post_init resets the BatchNorms
        backbone = build_for_any_size(config, build)
    return backbone, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}


def feature_strides(backbone: Any) -> tuple[tuple[int, int], ...]:
    """Return the stride (height, width) of each map of an AutoBackbone. timm reports it; others run once on the meta
    device.

    The image has the backbone's own size, because that is the only size that all of them accept.
    """
    if backbone.backbone_type == BackboneType.TIMM:
        return tuple((stride, stride) for stride in backbone._backbone.feature_info.reduction())
    size = getattr(backbone.config, "image_size", None) or DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    tensors = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    image = torch.empty(1, backbone.config.num_channels, height, width, device="meta", dtype=backbone.dtype)
    with torch.no_grad():
        maps = functional_call(backbone, meta, (image,), {"return_dict": True}).feature_maps
    sides = [feature_map.shape[-2:] for feature_map in maps]
    return tuple((round(height / rows), round(width / columns)) for rows, columns in sides)


__all__ = [
    "build_backbone",
    "feature_strides",
    "load_backbone",
    "load_backbone_config",
    "returns_channels_last",
]
