"""Logits of an image that are read from top to bottom, so that they are never held in full at its size.

Shapes: B images of equal size, K classes, h w a canvas, H W an image, n rows of it. Logits of models are (B, K, h, w);
here those of a pixel lie together, (B, h, w, K), which makes resizing them, softmax and arg-max several times as fast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from hf_vit_seg.models.bilinear import RowResizing, resize_columns
from hf_vit_seg.models.label_maps import finite

Model = Callable[[torch.Tensor], torch.Tensor]  # pixel values (B, C, H, W) -> logits (B, K, h, w)


class Canvas(Protocol):
    """Logits on a grid of `size` (height, width)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid."""
        ...

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """The rows first .. stop - 1: (B, n, w, K), float32 or float64. `first` never goes back between calls."""
        ...


@dataclass(frozen=True, eq=False)
class LogitGrid:
    """The logits (B, K, h, w) that a model gives for a whole image or a window."""

    logits: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid."""
        return self.logits.shape[-2], self.logits.shape[-1]

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The logits (B, h, w, K), with numbers in place of NaN and infinity."""
        return finite(self.logits.permute(0, 2, 3, 1)).contiguous()

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """The rows first .. stop - 1."""
        return self.pixels[:, first:stop]


def compact(logits: torch.Tensor) -> LogitGrid:
    """A grid that holds its logits once, as `rows` gives them, and nothing that they are a part of."""
    return LogitGrid(LogitGrid(logits).pixels.permute(0, 3, 1, 2))


def mirrored(model: Model) -> Model:
    """A model that sees images flipped left to right, and gives logits of the images as they are."""
    return lambda pixel_values: model(pixel_values.flip(-1)).flip(-1)


def resized_rows(canvas: Canvas, size: tuple[int, int], first: int, stop: int) -> torch.Tensor:
    """The rows first .. stop - 1 of a canvas that is resized to `size` (H, W): (B, n, W, K).

    Equal to those of `interpolate(logits, size, mode="bilinear", align_corners=False)`.
    """
    height, width = canvas.size
    band = canvas.rows(first, stop) if height == size[0] else mixed_rows(canvas, size[0], first, stop)
    if width == size[1]:
        return band
    return resize_columns(band.permute(0, 3, 1, 2), size[1]).permute(0, 2, 3, 1)


def mixed_rows(canvas: Canvas, height: int, first: int, stop: int) -> torch.Tensor:
    """The rows first .. stop - 1 of a canvas that is resized to `height`: (B, n, w, K)."""
    resizing, rows = RowResizing(canvas.size[0], height, torch.float64), slice(first, stop)
    source = resizing.source(rows)
    return resizing.resize(canvas.rows(source.start, source.stop), rows, dim=1, origin=source.start)


__all__ = ["Canvas", "LogitGrid", "Model", "compact", "mirrored", "resized_rows"]
