"""Overlays, palettes, skeletons and outlines."""
