"""Training from recipes, based on accelerate."""
