"""A small hybrid of convolutions and transformer layers, and whatever else a package can bring to hf_vit_seg."""

# First, whichever module of this package is imported: hf_vit_seg imports them by their entry points, and in the middle
# of one's own import it would find it half done.
import hf_vit_seg  # noqa: F401
