"""Class palettes."""

import colorsys
from collections.abc import Sequence

import numpy as np

from hf_vit_seg.errors import HfVitSegError

GOLDEN_RATIO = 0.6180339887498949  # multiples of it, modulo 1, are evenly spread hues
SHADES = ((0.75, 0.95), (0.55, 0.75), (0.95, 0.6))  # saturation and value


def generate_palette(classes: int) -> np.ndarray:
    """Generate distinct colors (K, 3) uint8; deterministic, and a prefix of the palette for any larger K."""
    colors = [colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1, *SHADES[i // 2 % len(SHADES)]) for i in range(classes)]
    return np.round(np.array(colors).reshape(classes, 3) * 255).astype(np.uint8)


def class_palette(own: Sequence[Sequence[int]] | None, classes: int) -> np.ndarray:
    """Return the colors (K, 3) uint8 of a model's `own` palette, extended by generated colors.

    A palette with more colors belongs to another model that this one was fine-tuned from with
    `from_pretrained(num_labels=..., id2label=...)`: all colors are generated.
    """
    palette = generate_palette(classes)
    if own is not None and len(own):
        colors = np.asarray(own)
        if colors.ndim != 2 or colors.shape[1] != 3 or colors.min() < 0 or colors.max() > 255:
            raise HfVitSegError("a palette must have one [red, green, blue] in 0 .. 255 for each class")
        if len(colors) <= classes:
            palette[: len(colors)] = colors
    return palette
