"""Augmentations and crops of training samples."""
