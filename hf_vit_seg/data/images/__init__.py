"""Image and mask files as tensors."""
