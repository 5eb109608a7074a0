"""The `evaluate` module of the average precision of masks."""
