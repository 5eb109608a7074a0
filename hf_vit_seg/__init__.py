"""Vision transformers for segmentation inside the Hugging Face ecosystem.

Importing this package registers every installed architecture with transformers' Auto classes and pipelines, every
installed segmentation head, and the pipeline task "semantic-segmentation".
"""

from importlib.metadata import version

from hf_vit_seg.conversion.live_models import from_transformers, to_transformers
from hf_vit_seg.inference.loading import load
from hf_vit_seg.inference.pipeline import register

from .plugins import Architecture, architectures, heads, plugins

__version__ = version("hf_vit_seg")
__all__ = [
    "Architecture",
    "__version__",
    "architectures",
    "from_transformers",
    "load",
    "plugins",
    "to_transformers",
]

heads()
plugins()
register()
