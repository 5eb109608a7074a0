"""From image files to label maps, overlays and reports."""

from .loading import ModelError
from .preparation import Prepared
from .protocols import Protocol
from .segmentation import ClassCount, Segmentation
from .segmenter import Segmenter

__all__ = ["ClassCount", "ModelError", "Prepared", "Protocol", "Segmentation", "Segmenter"]
