"""A color for each class."""

import colorsys
from collections.abc import Sequence

import numpy as np

from hf_vit_seg.errors import HfVitSegError

GOLDEN_RATIO = 0.6180339887498949  # steps of hue by it never come close to each other
SHADES = ((0.75, 0.95), (0.55, 0.75), (0.95, 0.6))  # saturation and value


def generated_palette(classes: int) -> np.ndarray:
    """Distinct colors (K, 3) uint8, the same at every call and for every K."""
    colors = [colorsys.hsv_to_rgb(i * GOLDEN_RATIO % 1, *SHADES[i // 2 % len(SHADES)]) for i in range(classes)]
    return np.round(np.array(colors).reshape(classes, 3) * 255).astype(np.uint8)


def class_palette(own: Sequence[Sequence[int]] | None, classes: int) -> np.ndarray:
    """The colors (K, 3) uint8 of a model's `own` palette, with generated ones for classes that it lacks."""
    palette = generated_palette(classes)
    if own is not None and len(own):
        colors = np.asarray(own)
        if colors.ndim != 2 or colors.shape[1] != 3 or colors.min() < 0 or colors.max() > 255:
            raise HfVitSegError("A palette has one [red, green, blue] of 0 .. 255 for each class")
        palette[: len(colors)] = colors[:classes]
    return palette
