"""Predictions for videos."""
