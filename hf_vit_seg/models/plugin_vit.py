"""The architecture record of the Vision Transformer."""

from importlib.resources import files

from hf_vit_seg.plugins import Architecture

from .configuration_vit import VisionTransformerConfig
from .image_processing_segmentation import SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil
from .image_processing_universal import UniversalSegmentationImageProcessor, UniversalSegmentationImageProcessorPil
from .modeling_vit import (
    VisionTransformerBackbone,
    VisionTransformerForImageClassification,
    VisionTransformerForSemanticSegmentation,
    VisionTransformerModel,
)
from .modeling_vit_pose import VisionTransformerForPoseEstimation
from .modeling_vit_universal import VisionTransformerForUniversalSegmentation

ARCHITECTURE = Architecture(
    name="vit",
    config=VisionTransformerConfig,
    models={
        "AutoModel": VisionTransformerModel,
        "AutoModelForImageClassification": VisionTransformerForImageClassification,
        "AutoModelForSemanticSegmentation": VisionTransformerForSemanticSegmentation,
        "AutoModelForUniversalSegmentation": VisionTransformerForUniversalSegmentation,
        "AutoModelForPoseEstimation": VisionTransformerForPoseEstimation,
        "AutoBackbone": VisionTransformerBackbone,
    },
    image_processor={
        "torchvision": SemanticSegmentationImageProcessor,
        "pil": SemanticSegmentationImageProcessorPil,
    },
    universal_image_processor={
        "torchvision": UniversalSegmentationImageProcessor,
        "pil": UniversalSegmentationImageProcessorPil,
    },
    variants=files("hf_vit_seg.configs") / "models" / "vit.yaml",
    conversions=(
        "hf_vit_seg.conversion.vit.google:SOURCE",
        "hf_vit_seg.conversion.vit.timm_format:SOURCE",
        "hf_vit_seg.conversion.vit.torchvision_format:SOURCE",
        "hf_vit_seg.conversion.vit.jeonsworld:SOURCE",
        "hf_vit_seg.conversion.vit.transformers_format:SOURCE",
        "hf_vit_seg.conversion.vit.vitpose:SOURCE",
        "hf_vit_seg.conversion.vit.transformers_vitpose:SOURCE",
        "hf_vit_seg.conversion.vit.segmenter:SOURCE",
        "hf_vit_seg.conversion.vit.eomt:SOURCE",
        "hf_vit_seg.conversion.vit.transformers_eomt:SOURCE",
    ),
    forms=("hf_vit_seg.export.forms.shared:FORMS",),
)
