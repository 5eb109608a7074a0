"""Checkpoint formats of ViT."""
