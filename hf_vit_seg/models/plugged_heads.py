"""Segmentation heads of other packages, by name: modules that are built and called as `carried_code` says.

The table is filled from outside, with the entry points `hf_vit_seg.heads`. Code that is saved beside a model knows no
entry points, so there this file is written anew, with the head that the model wears.
"""

from torch import nn

PLUGGED_HEADS: dict[str, type[nn.Module]] = {}

__all__ = ["PLUGGED_HEADS"]
