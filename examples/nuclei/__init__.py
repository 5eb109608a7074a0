"""The nuclei example, installed as `hf_vit_seg.nuclei`: the model and some images, for the demo that has no other."""
