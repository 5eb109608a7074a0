"""The record that registers the architecture with hf_vit_seg."""

from importlib.resources import files

from hf_vit_seg.models.image_processing_segmentation import (
    SemanticSegmentationImageProcessor,
    SemanticSegmentationImageProcessorPil,
)
from hf_vit_seg.plugins import Architecture

from .configuration_conv_token import ConvTokenConfig
from .modeling_conv_token import ConvTokenForSemanticSegmentation, ConvTokenModel

ARCHITECTURE = Architecture(
    name="conv_token",
    config=ConvTokenConfig,
    models={"AutoModel": ConvTokenModel, "AutoModelForSemanticSegmentation": ConvTokenForSemanticSegmentation},
    image_processor={
        "torchvision": SemanticSegmentationImageProcessor,
        "pil": SemanticSegmentationImageProcessorPil,
    },
    variants=files("conv_token") / "conv_token.yaml",
    conversions=("conv_token.conversion_research:SOURCE",),
)
