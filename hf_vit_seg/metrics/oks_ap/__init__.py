"""The `evaluate` module of OKS average precision."""
