"""The `evaluate` module of the calibration error."""
