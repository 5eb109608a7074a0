"""The `evaluate` module of mean IoU."""
