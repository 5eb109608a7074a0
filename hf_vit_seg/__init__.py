"""Vision transformers for segmentation inside the Hugging Face ecosystem.

After the import of this package, transformers' Auto classes and pipelines find every installed architecture and
segmentation head, and the pipeline task "semantic-segmentation". They are registered when they are first used
(`registration`), so that the import is fast.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .plugins import Architecture, architectures, plugins
from .registration import install_import_hook

if TYPE_CHECKING:
    from hf_vit_seg.conversion.convert import convert
    from hf_vit_seg.conversion.live_models import from_transformers, to_transformers
    from hf_vit_seg.inference.classifier import Classifier
    from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
    from hf_vit_seg.inference.pose_estimator import PoseEstimator
    from hf_vit_seg.inference.segmenter import Segmenter
    from hf_vit_seg.loading.models import load
    from hf_vit_seg.training.runs import evaluate, train

__version__ = version("hf_vit_seg")
__all__ = [
    "Architecture",
    "Classifier",
    "InstanceSegmenter",
    "PoseEstimator",
    "Segmenter",
    "__version__",
    "architectures",
    "convert",
    "evaluate",
    "from_transformers",
    "load",
    "plugins",
    "to_transformers",
    "train",
]

# Functions and classes that need torch: their modules are imported at the first use.
LAZY = {
    "Classifier": "hf_vit_seg.inference.classifier",
    "InstanceSegmenter": "hf_vit_seg.inference.instance_segmenter",
    "PoseEstimator": "hf_vit_seg.inference.pose_estimator",
    "Segmenter": "hf_vit_seg.inference.segmenter",
    "convert": "hf_vit_seg.conversion.convert",
    "evaluate": "hf_vit_seg.training.runs",
    "from_transformers": "hf_vit_seg.conversion.live_models",
    "load": "hf_vit_seg.loading.models",
    "to_transformers": "hf_vit_seg.conversion.live_models",
    "train": "hf_vit_seg.training.runs",
}


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'hf_vit_seg' has no attribute '{name}'")
    return getattr(import_module(LAZY[name]), name)


install_import_hook()
