"""From image files to label maps, overlays and reports."""

from hf_vit_seg.inference.dense.image_preparation import Prepared
from hf_vit_seg.inference.dense.protocols import Protocol

from .loading import ModelError
from .segmentation import ClassCount, Segmentation
from .segmenter import Segmenter

__all__ = ["ClassCount", "ModelError", "Prepared", "Protocol", "Segmentation", "Segmenter"]
