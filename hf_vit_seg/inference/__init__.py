"""Prediction: label maps, overlays and reports of image files."""

from hf_vit_seg.inference.dense.image_preparation import PreparedImage
from hf_vit_seg.inference.dense.protocols import Protocol

from .loading import ModelError
from .segmentation import ClassCount, Segmentation
from .segmenter import Segmenter

__all__ = ["ClassCount", "ModelError", "PreparedImage", "Protocol", "Segmentation", "Segmenter"]
