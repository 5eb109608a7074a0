"""A Space that segments images; the variable HF_VIT_SEG_MODELS names further models (Hub ids, with commas between)."""

from hf_vit_seg.demo import launch

launch()
