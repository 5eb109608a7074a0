"""Load models and image processors of any known format."""
