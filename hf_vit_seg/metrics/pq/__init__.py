"""The `evaluate` module of panoptic quality."""
