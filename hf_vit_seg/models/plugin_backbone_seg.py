"""The architecture record of heads on any backbone of transformers."""

from importlib.resources import files

from hf_vit_seg.plugins import Architecture

from .configuration_backbone_seg import BackboneSegmentationConfig
from .image_processing_segmentation import SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil
from .image_processing_universal import UniversalSegmentationImageProcessor, UniversalSegmentationImageProcessorPil
from .modeling_backbone_seg import BackboneForSemanticSegmentation
from .modeling_backbone_universal import BackboneForUniversalSegmentation

ARCHITECTURE = Architecture(
    name="backbone",
    config=BackboneSegmentationConfig,
    models={
        "AutoModelForSemanticSegmentation": BackboneForSemanticSegmentation,
        "AutoModelForUniversalSegmentation": BackboneForUniversalSegmentation,
    },
    image_processor={
        "torchvision": SemanticSegmentationImageProcessor,
        "pil": SemanticSegmentationImageProcessorPil,
    },
    universal_image_processor={
        "torchvision": UniversalSegmentationImageProcessor,
        "pil": UniversalSegmentationImageProcessorPil,
    },
    variants=files("hf_vit_seg.configs") / "models" / "backbone.yaml",
    forms=("hf_vit_seg.export.forms.shared:FORMS",),
)
