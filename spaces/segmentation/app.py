"""A Space that segments images. HF_VIT_SEG_MODELS adds models (comma-separated Hub IDs)."""

from hf_vit_seg.demo import launch

launch()
