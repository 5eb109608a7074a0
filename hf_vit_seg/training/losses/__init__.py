"""Losses as sums over units, and the registry of their names."""
