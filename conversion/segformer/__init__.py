"""Checkpoint formats of SegFormer."""
