"""Predictions for images that do not fit into memory."""
