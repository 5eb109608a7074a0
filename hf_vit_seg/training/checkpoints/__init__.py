"""Training checkpoints, resuming, and the run directory."""
