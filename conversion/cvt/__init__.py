"""Checkpoint formats of CvT."""
