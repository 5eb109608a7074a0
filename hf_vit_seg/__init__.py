"""Vision transformers for segmentation inside the Hugging Face ecosystem.

After the import of this package, transformers' Auto classes and pipelines find every installed architecture and
segmentation head, and the pipeline task "semantic-segmentation". They are registered when they are first used
(`registration`), so that the import is fast.
"""

from importlib.metadata import version

from .plugins import Architecture, architectures, plugins
from .registration import follow_imports

__version__ = version("hf_vit_seg")
__all__ = ["Architecture", "__version__", "architectures", "plugins"]

follow_imports()
