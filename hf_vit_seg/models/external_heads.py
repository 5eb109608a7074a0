"""Segmentation heads of plugins by name, filled through the entry points `hf_vit_seg.heads`.

Code that is saved with a model has no entry points: there, `bundled_code` writes this file with the model's own head.
"""

from torch import nn

EXTERNAL_HEADS: dict[str, type[nn.Module]] = {}

__all__ = ["EXTERNAL_HEADS"]
