"""The architecture record of SegFormer."""

from importlib.resources import files

from hf_vit_seg.plugins import Architecture

from .configuration_segformer import SegFormerConfig
from .image_processing_segmentation import SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil
from .image_processing_universal import UniversalSegmentationImageProcessor, UniversalSegmentationImageProcessorPil
from .modeling_segformer import (
    SegFormerBackbone,
    SegFormerForImageClassification,
    SegFormerForSemanticSegmentation,
    SegFormerModel,
)
from .modeling_segformer_universal import SegFormerForUniversalSegmentation

ARCHITECTURE = Architecture(
    name="segformer",
    config=SegFormerConfig,
    models={
        "AutoModel": SegFormerModel,
        "AutoModelForImageClassification": SegFormerForImageClassification,
        "AutoModelForSemanticSegmentation": SegFormerForSemanticSegmentation,
        "AutoModelForUniversalSegmentation": SegFormerForUniversalSegmentation,
        "AutoBackbone": SegFormerBackbone,
    },
    image_processor={
        "torchvision": SemanticSegmentationImageProcessor,
        "pil": SemanticSegmentationImageProcessorPil,
    },
    universal_image_processor={
        "torchvision": UniversalSegmentationImageProcessor,
        "pil": UniversalSegmentationImageProcessorPil,
    },
    variants=files("hf_vit_seg.configs") / "models" / "segformer.yaml",
    conversions=(
        "hf_vit_seg.conversion.segformer.nvlabs:SOURCE",
        "hf_vit_seg.conversion.segformer.mmsegmentation:SOURCE",
        "hf_vit_seg.conversion.segformer.transformers_format:SOURCE",
        "hf_vit_seg.conversion.segformer.segmentation_models_pytorch:SOURCE",
    ),
    forms=("hf_vit_seg.export.forms.shared:FORMS", "hf_vit_seg.export.forms.segformer:FORMS"),
)
