"""Checkpoint files: download, parse, unwrap and write them."""
