"""Figures of segments: labeled and predicted ones, each in its own color.

Shapes: C channels, H W pixels, n segments.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.samples import Segments
from hf_vit_seg.drawing.object_overlays import draw_numbers, object_colors
from hf_vit_seg.drawing.overlays import resize_for_display

from .layout import add_caption, grid
from .sample_figures import as_rgb, panel_size


def segment_figure(
    image: torch.Tensor | Image.Image,
    truth: Segments,
    numbers: np.ndarray,
    classes: Sequence[int],
    stuff: frozenset[int],
    palette: np.ndarray,
) -> Image.Image:
    """Draw image, labeled and predicted segments side by side; ignored pixels are gray.

    `image` is (C, H, W) or a PIL image; `numbers` (H, W) are predicted segments from 1, of `classes` (n,). Stuff has
    the color of its class in `palette` (K, 3), and each object its own.
    """
    labels = truth.ids.cpu().numpy().astype(np.int64)
    size = panel_size((labels.shape[1], labels.shape[0]))
    photo = resize_for_display(as_rgb(image), size)
    panels = [add_caption(photo, "photo")]
    for title, shown, kinds in (("ground truth", labels, truth.classes), ("prediction", numbers, classes)):
        drawn = draw_numbers(photo, shown, segment_colors(kinds, stuff, palette), longest_side=None)
        panels.append(add_caption(drawn, f"{title}, {count_objects(kinds, stuff)}"))
    return grid(panels, len(panels))


def segment_colors(classes: Sequence[int], stuff: frozenset[int], palette: np.ndarray) -> np.ndarray:
    """Return the colors (n, 3) of segments."""
    colors = object_colors(len(classes))
    for number, index in enumerate(classes):
        if index in stuff:
            colors[number] = palette[index]
    return colors


def count_objects(classes: Sequence[int], stuff: frozenset[int]) -> str:
    """Describe the number of objects."""
    count = sum(index not in stuff for index in classes)
    return f"{count} object{'' if count == 1 else 's'}"


__all__ = ["segment_colors", "segment_figure"]
