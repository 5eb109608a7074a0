"""The files of the Space that `hf-vit-seg push-space` publishes; installed as `hf_vit_seg.space`."""
