"""The architecture record of CvT."""

from importlib.resources import files

from hf_vit_seg.plugins import Architecture

from .configuration_cvt import CvTConfig
from .image_processing_segmentation import SemanticSegmentationImageProcessor, SemanticSegmentationImageProcessorPil
from .image_processing_universal import UniversalSegmentationImageProcessor, UniversalSegmentationImageProcessorPil
from .modeling_cvt import CvTBackbone, CvTForImageClassification, CvTForSemanticSegmentation, CvTModel
from .modeling_cvt_universal import CvTForUniversalSegmentation

ARCHITECTURE = Architecture(
    name="cvt",
    config=CvTConfig,
    models={
        "AutoModel": CvTModel,
        "AutoModelForImageClassification": CvTForImageClassification,
        "AutoModelForSemanticSegmentation": CvTForSemanticSegmentation,
        "AutoModelForUniversalSegmentation": CvTForUniversalSegmentation,
        "AutoBackbone": CvTBackbone,
    },
    image_processor={
        "torchvision": SemanticSegmentationImageProcessor,
        "pil": SemanticSegmentationImageProcessorPil,
    },
    universal_image_processor={
        "torchvision": UniversalSegmentationImageProcessor,
        "pil": UniversalSegmentationImageProcessorPil,
    },
    variants=files("hf_vit_seg.configs") / "models" / "cvt.yaml",
    conversions=(
        "hf_vit_seg.conversion.cvt.microsoft:SOURCE",
        "hf_vit_seg.conversion.cvt.transformers_format:SOURCE",
    ),
    forms=("hf_vit_seg.export.forms.shared:FORMS",),
)
