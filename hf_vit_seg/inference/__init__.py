"""Prediction: label maps, objects, classes and keypoints of images.

The classes are imported when they are first used, so that planning a run of batch inference does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_vit_seg.loading.errors import ModelError

    from .classifier import Classifier
    from .dense.image_preparation import PreparedImage
    from .dense.protocols import Protocol
    from .found_segments import FoundObject, FoundSegments
    from .instance_segmenter import InstanceSegmenter
    from .pose_estimator import PoseEstimator
    from .segmentation import ClassCount, Segmentation
    from .segmenter import Segmenter

__all__ = [
    "ClassCount",
    "Classifier",
    "FoundObject",
    "FoundSegments",
    "InstanceSegmenter",
    "ModelError",
    "PoseEstimator",
    "PreparedImage",
    "Protocol",
    "Segmentation",
    "Segmenter",
]

LAZY = {
    "ClassCount": "hf_vit_seg.inference.segmentation",
    "Classifier": "hf_vit_seg.inference.classifier",
    "FoundObject": "hf_vit_seg.inference.found_segments",
    "FoundSegments": "hf_vit_seg.inference.found_segments",
    "InstanceSegmenter": "hf_vit_seg.inference.instance_segmenter",
    "ModelError": "hf_vit_seg.loading.errors",
    "PoseEstimator": "hf_vit_seg.inference.pose_estimator",
    "PreparedImage": "hf_vit_seg.inference.dense.image_preparation",
    "Protocol": "hf_vit_seg.inference.dense.protocols",
    "Segmentation": "hf_vit_seg.inference.segmentation",
    "Segmenter": "hf_vit_seg.inference.segmenter",
}


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'hf_vit_seg.inference' has no attribute '{name}'")
    return getattr(import_module(LAZY[name]), name)
