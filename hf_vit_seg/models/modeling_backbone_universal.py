"""Any transformers backbone (AutoBackbone) with a head that predicts objects."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from .bilinear import crop_to_image_extent
from .configuration_backbone_seg import BackboneSegmentationConfig
from .distance_head import DistanceHead
from .layers import SEMANTIC_MODELS
from .mask_classification import SemanticUniversalSegmentation, UniversalSegmentation
from .modeling_backbone_seg import BackboneForSemanticSegmentation as BackboneWithPixelHead
from .query_head import build_object_head


class BackboneForUniversalSegmentation(UniversalSegmentation, BackboneWithPixelHead):
    """A backbone with a head that predicts objects, selected by `config.decode_head`, by default "query"."""

    _no_split_modules = [
        *(BackboneWithPixelHead._no_split_modules or ()),
        "PixelDecoder",
        "QueryLayer",
        DistanceHead.__name__,
        "FeaturePyramid",
    ]

    def build_head(self, config: BackboneSegmentationConfig, strides: Sequence[tuple[int, int]]) -> nn.Module:
        """Return the head for maps of these strides."""
        head = build_object_head(config, self.backbone.channels, is_plain=len(set(strides)) == 1)
        self.head_name = config.decode_head
        return head

    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Map images (B, C, H, W) to the head's output, whose masks are resampled to span the image alone."""
        outputs, maps = self.feature_maps(pixel_values, **kwargs)
        crop = partial(crop_to_image_extent, size=(pixel_values.shape[-2], pixel_values.shape[-1]), multiple=self.token)
        output = self.decode_head(maps, crop)
        output.hidden_states, output.attentions = outputs.hidden_states, outputs.attentions
        return output


class BackboneForSemanticSegmentation(SemanticUniversalSegmentation, BackboneForUniversalSegmentation):
    """The same model with semantic results."""

    _auto_class = "AutoModelForSemanticSegmentation"


SEMANTIC_MODELS[BackboneWithPixelHead] = BackboneForSemanticSegmentation

__all__ = ["BackboneForSemanticSegmentation", "BackboneForUniversalSegmentation"]
