"""Logits of whole images: resizing, sliding windows, label maps."""
