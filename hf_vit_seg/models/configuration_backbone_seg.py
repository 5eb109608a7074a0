"""Configuration of any transformers backbone (AutoBackbone) with a segmentation head."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoBackbone, AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.configuration_utils import SubConfigSpec

from .bundled_code import BundlesCode
from .errors import HfVitSegError, reject_renamed_fields
from .layers import MaskClassificationConfig
from .own_backbones import OWN_BACKBONES
from .segmentation_heads import HEADS, PYRAMID_LEVELS

for _config, _backbone in OWN_BACKBONES:
    if _config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(_config.model_type, _config)
        AutoBackbone.register(_config, _backbone)


def default_levels(config: PreTrainedConfig, count: int) -> list[int]:
    """Return the last stage of a backbone, or `count` evenly spaced stages, as indices; a stem is not a stage.

    timm reports its stages only after building the model, so for timm these are the last `count`.
    """
    if isinstance(config, TimmBackboneConfig):
        return list(range(-count, 0))
    stages = [index for index, name in enumerate(config.stage_names) if name != "stem"]
    return sorted({stages[max(len(stages) * level // count, 1) - 1] for level in range(1, count + 1)})


@strict
class BackboneSegmentationConfig(MaskClassificationConfig, BundlesCode):
    """The config of a backbone, and its segmentation head.

    `backbone_config` is any config that AutoBackbone accepts, or its fields with a `model_type` (DINOv2, DINOv3, Swin,
    ConvNeXt, BEiT, ResNet, "timm_backbone", the encoders of this package). It is saved with the model.

    `decode_head` is "linear" or "mask_transformer" (Segmenter, arXiv 2105.05633; `decode_head_num_layers`
    layers with attention heads of 64 channels and `hidden_act`), which read one map; "feature_pyramid" (builds a
    pyramid from four layers of a plain ViT, followed by SegFormer's head), which reads maps of one stride; or "all_mlp"
    (SegFormer's head, arXiv 2105.15203), which reads maps of several strides. The default is one of the last two,
    depending on the strides. Plugins register other names, see `segmentation_heads`.
    `decode_head_levels` are the backbone's stages that the head reads, as indices (transformers' `out_indices`). The
    default is the last stage for heads that read one map, otherwise four evenly spaced stages. `out_features` of the
    backbone's config is ignored.

    `decode_head_hidden_size` is the head's width; the default is the backbone's for the mask transformer, otherwise
    256. `decode_head_norm` "group" replaces the head's BatchNorm by GroupNorm, for training with few images per batch.

    `decode_head` "query" predicts objects by `num_queries` queries, in `query_num_layers` layers with `query_num_heads`
    attention heads (`query_head`). It reads maps of any strides. See `MaskClassificationConfig` for the loss.
    """

    model_type = "backbone_seg"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2")}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    decode_head: str | None = None
    decode_head_levels: list[int] | tuple[int, ...] | None = None
    decode_head_num_layers: int = 2
    decode_head_hidden_size: int | None = None
    decode_head_norm: Literal["batch", "group"] = "batch"
    decode_head_norm_eps: float = 1e-5
    decode_head_dropout_prob: float | int = 0.0
    query_num_layers: int = 6
    query_num_heads: int = 8
    query_masked_inference: bool = True  # as in Mask2Former
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        reject_renamed_fields("BackboneSegmentationConfig", kwargs)
        given = self.backbone_config
        if isinstance(given, dict) and given.get("model_type") not in CONFIG_MAPPING:
            raise HfVitSegError(
                "BackboneSegmentationConfig.backbone_config needs a model_type that is in transformers, such as "
                f"'dinov2', got {given.get('model_type')!r}"
            )
        self.backbone_config = copy.deepcopy(given)  # it is changed below
        super().__post_init__(**kwargs)
        if not hasattr(self.backbone, "out_indices"):
            raise HfVitSegError(
                f"BackboneSegmentationConfig.backbone_config is of type '{self.backbone.model_type}', which has no "
                "feature maps in transformers (no AutoBackbone)"
            )
        self.update_derived_fields()
        self.backbone.name_or_path = ""  # would be saved, and may be a path of this machine

    def update_derived_fields(self) -> None:
        """Let the backbone return the maps that the head reads."""
        self.backbone.out_indices = self.levels

    @property
    def backbone(self) -> PreTrainedConfig:
        """The backbone's config."""
        assert isinstance(self.backbone_config, PreTrainedConfig)
        return self.backbone_config

    @property
    def levels(self) -> list[int]:
        """Indices of the stages that the head reads."""
        if self.decode_head_levels is not None:
            return list(self.decode_head_levels)
        head = HEADS.get(self.decode_head or "")
        return default_levels(self.backbone, 1 if head is not None and head.num_maps == 1 else PYRAMID_LEVELS)

    @property
    def num_channels(self) -> int:
        """The number of image channels."""
        return self.backbone.num_channels

    @num_channels.setter
    def num_channels(self, channels: int) -> None:
        self.backbone.num_channels = channels

    @property
    def image_size(self) -> int | Sequence[int] | None:
        """The backbone's image size, one length or (height, width), if its config has one."""
        return getattr(self.backbone, "image_size", None)

    @image_size.setter
    def image_size(self, size: int | Sequence[int]) -> None:
        if not hasattr(self.backbone, "image_size"):
            raise HfVitSegError(
                f"image_size cannot be set: a '{self.backbone.model_type}' backbone has no such field, it takes images "
                "of any size"
            )
        self.backbone.image_size = size


__all__ = ["BackboneSegmentationConfig"]
