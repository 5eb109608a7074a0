"""The `evaluate` module of top-k accuracy."""
