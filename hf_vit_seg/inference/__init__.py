"""From image files to label maps, overlays and reports."""

from .segmentation import ClassCount, Segmentation
from .segmenter import ModelError, Segmenter

__all__ = ["ClassCount", "ModelError", "Segmentation", "Segmenter"]
