"""Recipes: their schema, files, overrides and the differences between two of them."""
