"""CvT's encoder (arXiv 2103.15808) with a head that predicts objects."""

from typing import Any

import torch
from torch import nn
from transformers.backbone_utils import filter_output_hidden_states

from .configuration_cvt import CvTConfig
from .distance_head import DistanceHead
from .layers import SEMANTIC_MODELS
from .mask_classification import SemanticUniversalSegmentation, UniversalSegmentation
from .modeling_cvt import CvTForSemanticSegmentation as CvTWithPixelHead
from .query_head import build_object_head


class CvTForUniversalSegmentation(UniversalSegmentation, CvTWithPixelHead):
    """The encoder with a head that predicts objects, selected by `config.decode_head`, by default "query"."""

    _no_split_modules = [
        *(CvTWithPixelHead._no_split_modules or ()),
        "PixelDecoder",
        "QueryLayer",
        DistanceHead.__name__,
    ]

    def build_head(self, config: CvTConfig) -> nn.Module:
        """Return the head for the maps of all stages."""
        return build_object_head(config, config.hidden_sizes)

    @filter_output_hidden_states
    def predict(self, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        """Map images (B, C, H, W) to the head's output; its grid is that of the first stage."""
        outputs = self.cvt(pixel_values, **kwargs)
        output = self.decode_head(self.normalize_levels(outputs.hidden_states))
        output.hidden_states, output.attentions = outputs.hidden_states, outputs.attentions
        return output


class CvTForSemanticSegmentation(SemanticUniversalSegmentation, CvTForUniversalSegmentation):
    """The same model with semantic results."""

    _auto_class = "AutoModelForSemanticSegmentation"


SEMANTIC_MODELS[CvTWithPixelHead] = CvTForSemanticSegmentation

__all__ = ["CvTForSemanticSegmentation", "CvTForUniversalSegmentation"]
