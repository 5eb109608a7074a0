"""Prediction: label maps, objects, classes and keypoints of images."""

from hf_vit_seg.inference.dense.image_preparation import PreparedImage
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.loading.errors import ModelError

from .classifier import Classifier
from .instance_segmenter import InstanceSegmenter
from .pose_estimator import PoseEstimator
from .segmentation import ClassCount, Segmentation
from .segmenter import Segmenter
from .segments import FoundObject, FoundSegments

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
