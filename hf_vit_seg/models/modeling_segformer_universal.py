"""SegFormer's encoder (arXiv 2105.15203) with a head that predicts objects."""

from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import filter_output_hidden_states

from .configuration_segformer import SegFormerConfig
from .distance_head import DistanceHead
from .layers import SEMANTIC_MODELS
from .mask_classification import SemanticUniversalSegmentation, UniversalSegmentation
from .modeling_segformer import SegFormerForSemanticSegmentation as SegFormerWithPixelHead
from .query_head import build_object_head


class SegFormerForUniversalSegmentation(UniversalSegmentation, SegFormerWithPixelHead):
    """The encoder with a head that predicts objects, selected by `config.decode_head`, by default "query"."""

    _no_split_modules = [
        *(SegFormerWithPixelHead._no_split_modules or ()),
        "PixelDecoder",
        "QueryLayer",
        DistanceHead.__name__,
    ]

    def build_head(self, config: SegFormerConfig) -> nn.Module:
        """Return the head for the maps of all stages."""
        return build_object_head(config, config.hidden_sizes)

    @filter_output_hidden_states
    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Map images (B, C, H, W) to the head's output; its grid is that of the first stage."""
        outputs = self.segformer(pixel_values, **kwargs)
        output = self.decode_head(outputs.hidden_states)
        output.hidden_states, output.attentions = outputs.hidden_states, outputs.attentions
        return output


class SegFormerForSemanticSegmentation(SemanticUniversalSegmentation, SegFormerForUniversalSegmentation):
    """The same model with semantic results."""

    _auto_class = "AutoModelForSemanticSegmentation"


SEMANTIC_MODELS[SegFormerWithPixelHead] = SegFormerForSemanticSegmentation

__all__ = ["SegFormerForSemanticSegmentation", "SegFormerForUniversalSegmentation"]
