"""Logits of an image that are read row by row, so that they never exist in full at the image's size.

Shapes: B images of equal size, K classes, h w the logits' grid, H W an image, n rows of it. Logits of models are
(B, K, h, w); here they are channels-last, (B, h, w, K), which makes resizing, softmax and argmax several times as fast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from hf_vit_seg.models.bilinear import RowResizing, resize_columns
from hf_vit_seg.models.label_maps import finite

Model = Callable[[torch.Tensor], torch.Tensor]  # pixel values (B, C, H, W) -> logits (B, K, h, w)


class RowLogits(Protocol):
    """Logits on a grid of `size` (height, width)."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid."""
        ...

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return rows first .. stop - 1 (B, n, w, K), float32 or float64. `first` must not decrease between calls."""
        ...


@dataclass(frozen=True, eq=False)
class LogitGrid:
    """The logits (B, K, h, w) of a whole image or a window."""

    logits: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the grid."""
        return self.logits.shape[-2], self.logits.shape[-1]

    @cached_property
    def pixels(self) -> torch.Tensor:
        """The logits (B, h, w, K), with NaN and infinity replaced."""
        return finite(self.logits.permute(0, 2, 3, 1)).contiguous()

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return the rows first .. stop - 1."""
        return self.pixels[:, first:stop]


def compact(logits: torch.Tensor) -> LogitGrid:
    """Copy logits to a channels-last grid, so that the tensor they are a view of can be freed."""
    return LogitGrid(LogitGrid(logits).pixels.permute(0, 3, 1, 2))


def flip_outputs(model: Model) -> Model:
    """Wrap a model so that it processes horizontally flipped images, and flip its logits back."""
    return lambda pixel_values: model(pixel_values.flip(-1)).flip(-1)


def resize_rows(logits: RowLogits, size: tuple[int, int], first: int, stop: int) -> torch.Tensor:
    """Return the rows first .. stop - 1 of logits resized to `size` (H, W): (B, n, W, K).

    Equal to rows of `interpolate(logits, size, mode="bilinear", align_corners=False)`.
    """
    height, width = logits.size
    resized = logits.rows(first, stop) if height == size[0] else resize_row_heights(logits, size[0], first, stop)
    if width == size[1]:
        return resized
    return resize_columns(resized.permute(0, 3, 1, 2), size[1]).permute(0, 2, 3, 1)


def resize_row_heights(logits: RowLogits, height: int, first: int, stop: int) -> torch.Tensor:
    """Return the rows first .. stop - 1 of logits resized to `height`: (B, n, w, K)."""
    resizing, rows = RowResizing(logits.size[0], height, torch.float64), slice(first, stop)
    source = resizing.source(rows)
    return resizing.resize(logits.rows(source.start, source.stop), rows, dim=1, origin=source.start)


__all__ = ["LogitGrid", "Model", "RowLogits", "compact", "flip_outputs", "resize_rows"]
