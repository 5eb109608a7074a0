"""Overlays of objects: each has its own color, and the background keeps the image.

Shapes: H W pixels, n objects.
"""

import colorsys

import numpy as np
from PIL import Image

from .overlays import boundary_mask, display_size, nearest_labels, resize_for_display

GOLDEN = 0.61803398875  # consecutive hues at this distance differ for any number of objects
IGNORED = (128, 128, 128)


def object_colors(count: int) -> np.ndarray:
    """Return colors (n, 3) uint8 that differ between consecutive objects."""
    hues = [(number * GOLDEN) % 1 for number in range(count)]
    rows = [colorsys.hsv_to_rgb(hue, 0.85, (0.95, 0.75)[number % 2]) for number, hue in enumerate(hues)]
    return (np.array(rows).reshape(count, 3) * 255).round().astype(np.uint8)


def draw_numbers(
    image: Image.Image,
    numbers: np.ndarray,
    colors: np.ndarray | None = None,
    opacity: float = 0.5,
    longest_side: int | None = 1600,
) -> Image.Image:
    """Blend an image with the colors (n, 3) of its objects, with opaque outlines.

    `numbers` (H, W) are those of the objects from 1; 0 is none, and negative numbers are ignored pixels, in gray. The
    image is reduced to `longest_side`; None keeps its size.
    """
    size = display_size(image.size, longest_side, enlarge=False)
    picture = resize_for_display(image, size)
    shown = nearest_labels(numbers, size)
    own = object_colors(max(int(shown.max(initial=0)), 0)) if colors is None else colors
    table = np.concatenate([np.array([IGNORED, (0, 0, 0)], np.uint8), own])
    paint = Image.fromarray(table[np.clip(shown, -1, None).astype(np.int64) + 1])
    inside = Image.fromarray((shown != 0).astype(np.uint8) * 255)
    picture = Image.composite(Image.blend(picture, paint, opacity), picture, inside)
    outline = (boundary_mask(shown) > 0) & (shown != 0)
    picture.paste(paint, mask=Image.fromarray(outline.astype(np.uint8) * 255))
    return picture


__all__ = ["draw_numbers", "object_colors"]
