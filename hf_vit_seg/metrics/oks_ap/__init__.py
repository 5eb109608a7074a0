"""A folder that `evaluate.load` takes."""
