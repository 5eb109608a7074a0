"""The `evaluate` module of object scores."""
