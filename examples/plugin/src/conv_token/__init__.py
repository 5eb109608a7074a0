"""Example plugins for hf_vit_seg, around a small hybrid of convolutions and transformer layers."""

# This import comes first: hf_vit_seg loads the modules of this package through entry points, which fails while the
# package is only partially imported.
import hf_vit_seg  # noqa: F401
