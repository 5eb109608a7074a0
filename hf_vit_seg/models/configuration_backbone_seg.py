"""Configuration of a segmentation head on any backbone that transformers' AutoBackbone knows."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoBackbone, AutoConfig, PreTrainedConfig, TimmBackboneConfig
from transformers.configuration_utils import SubConfigSpec

from .carried_code import CarriesCode
from .errors import HfVitSegError
from .own_backbones import OWN_BACKBONES

LEVELS = 4
SINGLE_MAP_HEADS = ("linear", "mask_transformer")

for _config, _backbone in OWN_BACKBONES:
    if _config.model_type not in CONFIG_MAPPING:
        AutoConfig.register(_config.model_type, _config)
        AutoBackbone.register(_config, _backbone)


def default_levels(config: PreTrainedConfig, count: int) -> list[int]:
    """The last of a backbone's stages, or `count` of them evenly spaced, as indices; a stem is no stage.

    timm tells its stages only when the model is built, so there they are the last `count`.
    """
    if isinstance(config, TimmBackboneConfig):
        return list(range(-count, 0))
    stages = [index for index, name in enumerate(config.stage_names) if name != "stem"]
    return sorted({stages[max(len(stages) * level // count, 1) - 1] for level in range(1, count + 1)})


@strict
class BackboneSegmentationConfig(CarriesCode):
    """A backbone's own config, and the head that it wears.

    `backbone_config` is any config that AutoBackbone takes, or its fields with a `model_type` (DINOv2, DINOv3, Swin,
    ConvNeXt, BEiT, ResNet, "timm_backbone", the encoders of this package). It is saved along, so nothing else is
    needed to build the model.

    `segmentation_head` is "linear" or "mask_transformer" (Segmenter, arXiv 2105.05633; `segmentation_head_depth`
    layers with heads of 64 channels and `hidden_act`), which read one map; "feature_pyramid" (four layers of a plain
    ViT made a pyramid, under SegFormer's head) for maps of one stride; "all_mlp" (SegFormer's head, arXiv 2105.15203)
    for maps of several. Without, the last or the one before is taken, as the strides are. Other names are those of
    heads that plugins bring, see `carried_code`.
    `segmentation_levels` are the backbone's stages that the head reads, as indices (transformers' `out_indices`);
    without, they are the last stage for the heads of one map, and else four of them evenly spaced. What the backbone's
    config says of `out_features` does not count.

    `segmentation_head_width` is the head's width: without, the backbone's for the mask transformer, and 256.
    `decoder_norm` "group" puts GroupNorm in the place of the head's BatchNorm, for training with few images.
    """

    model_type = "backbone_seg"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2")}

    backbone_config: dict[str, Any] | PreTrainedConfig | None = None
    segmentation_head: str | None = None
    segmentation_levels: list[int] | tuple[int, ...] | None = None
    segmentation_head_depth: int = 2
    segmentation_head_width: int | None = None
    segmentation_norm_eps: float = 1e-5
    hidden_act: str = "gelu"
    decoder_norm: Literal["batch", "group"] = "batch"
    classifier_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        given = self.backbone_config
        if isinstance(given, dict) and given.get("model_type") not in CONFIG_MAPPING:
            raise HfVitSegError(
                "BackboneSegmentationConfig.backbone_config needs a model_type that transformers knows, such as "
                f"'dinov2', got {given.get('model_type')!r}"
            )
        self.backbone_config = copy.deepcopy(given)  # it is about to be changed
        super().__post_init__(**kwargs)
        if not hasattr(self.backbone, "out_indices"):
            raise HfVitSegError(
                f"BackboneSegmentationConfig.backbone_config is of type '{self.backbone.model_type}', which has no "
                "feature maps in transformers (no AutoBackbone)"
            )
        self.backbone.out_indices = self.levels
        self.backbone.name_or_path = ""  # would be saved, and may be a path of this machine

    @property
    def backbone(self) -> PreTrainedConfig:
        """The backbone's config, which is one by now."""
        assert isinstance(self.backbone_config, PreTrainedConfig)
        return self.backbone_config

    @property
    def levels(self) -> list[int]:
        """Indices of the stages that the head reads."""
        if self.segmentation_levels is not None:
            return list(self.segmentation_levels)
        return default_levels(self.backbone, 1 if self.segmentation_head in SINGLE_MAP_HEADS else LEVELS)

    @property
    def num_channels(self) -> int:
        """Bands of an image."""
        return self.backbone.num_channels

    @num_channels.setter
    def num_channels(self, bands: int) -> None:
        self.backbone.num_channels = bands

    @property
    def image_size(self) -> int | Sequence[int] | None:
        """The size, one length or (height, width), of the backbone's own images, if it says so."""
        return getattr(self.backbone, "image_size", None)


__all__ = ["BackboneSegmentationConfig"]
