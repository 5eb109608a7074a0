"""The nuclei example, installed as `hf_vit_seg.nuclei`: the default model of the demo, and some images."""
