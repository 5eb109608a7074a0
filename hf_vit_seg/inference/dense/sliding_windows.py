"""Sliding-window inference with blending of overlapping logits.

Shapes: B images of equal size, C channels, K classes, H W the image, n rows of it, h w a window.

Windows are placed as in mmsegmentation's `slide_inference` and MONAI's `sliding_window_inference`: every `stride`
pixels, with the last of a row or column moved back to end at the border. As there, the logits of a window are resized
to the window's size and then blended. Blending coarse logits would be faster, but gives different results at the
borders of windows.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from .row_logits import LogitGrid, Model, compact, resize_rows

Blend = Literal["flat", "gaussian"]
Crop = Callable[[slice, slice], torch.Tensor]  # rows and columns -> pixel values (B, C, n, m)

SPREAD = 0.125  # standard deviation of Gaussian weights as a share of the window's side, as in MONAI and nnU-Net
MIN_WEIGHT = 1e-3


def window_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Return the first pixels of the windows along an axis; a single one if the window covers the axis."""
    last = max(length - window, 0)
    return (*range(0, last, stride), last)


def window_weights(size: tuple[int, int], blend: Blend) -> torch.Tensor:
    """Return the blending weights of a window: (h, w) float64, between `MIN_WEIGHT` and 1."""
    if blend == "flat":
        return torch.ones(size, dtype=torch.float64)
    axes = []
    for side in size:
        distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        axes.append(torch.exp(-(distance**2) / (2 * (SPREAD * side) ** 2)))
    return torch.outer(*axes).clamp(min=MIN_WEIGHT)


@dataclass(frozen=True)
class WindowGrid:
    """Windows over an image of `size` (H, W), in row-major order; the `window` is at most as large as the image.

    A `mirrored` grid has the windows of the horizontally flipped image, in coordinates of the original.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]
    blend: Blend = "flat"
    mirrored: bool = False

    @cached_property
    def tops(self) -> tuple[int, ...]:
        """First rows of the windows."""
        return window_starts(self.size[0], self.window[0], self.stride[0])

    @cached_property
    def lefts(self) -> tuple[int, ...]:
        """First columns of the windows."""
        starts = window_starts(self.size[1], self.window[1], self.stride[1])
        return tuple(self.size[1] - self.window[1] - start for start in reversed(starts)) if self.mirrored else starts

    @cached_property
    def weights(self) -> torch.Tensor:
        """The blending weights of a window, (h, w)."""
        return window_weights(self.window, self.blend)

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def corners(self) -> Iterator[tuple[int, int]]:
        """Return the (top, left) corner of every window."""
        return ((top, left) for top in self.tops for left in self.lefts)

    def overlap(self, top: int, first: int, stop: int) -> tuple[int, int]:
        """Return the rows, as (begin, end), of first .. stop - 1 that windows at `top` cover."""
        return max(first, top), min(stop, top + self.window[0])

    def total(self, first: int, stop: int) -> torch.Tensor:
        """Return the sum of all windows' weights at the rows first .. stop - 1: (n, W) float64."""
        total = torch.zeros(stop - first, self.size[1], dtype=torch.float64)
        for top in self.tops:
            begin, end = self.overlap(top, first, stop)
            if begin < end:
                rows = total[begin - first : end - first]
                for left in self.lefts:
                    rows[:, left : left + self.window[1]] += self.weights[begin - top : end - top]
        return total


class SlidingLogits:
    """Blended logits at the image's size, computed by windows as rows are read.

    It stores the coarse logits of the windows that overlap the requested rows, and of windows computed in advance to
    fill a batch. `crop` returns the pixel values of a window, `batch` is the maximum number of windows (of one image)
    in a forward pass.
    """

    def __init__(self, model: Model, crop: Crop, grid: WindowGrid, batch: int = 1):
        self.model, self.crop, self.grid, self.batch = model, crop, grid, batch
        self.upcoming = deque(grid.corners())
        self.held: dict[tuple[int, int], LogitGrid] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.grid.size

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return the blended logits of the rows first .. stop - 1: (B, n, W, K)."""
        self.compute_to(stop)
        height, width = self.grid.window
        self.held = {(top, left): grid for (top, left), grid in self.held.items() if top + height > first}
        one = next(iter(self.held.values())).pixels
        blended = one.new_zeros((len(one), stop - first, self.grid.size[1], one.shape[-1]))
        total = self.grid.total(first, stop)
        for (top, left), logits in self.held.items():
            begin, end = self.grid.overlap(top, first, stop)
            if begin >= end:
                continue
            rows, columns = slice(begin - first, end - first), slice(left, left + width)
            share = self.grid.weights[begin - top : end - top] / total[rows, columns]
            part = resize_rows(logits, self.grid.window, begin - top, end - top)
            blended[:, rows, columns].addcmul_(part, share.to(part)[..., None])
        return blended

    def compute_to(self, stop: int) -> None:
        """Run the model on the windows that begin before row `stop`, and on more to fill the last batch."""
        height, width = self.grid.window
        while self.upcoming and self.upcoming[0][0] < stop:
            corners = [self.upcoming.popleft() for _ in range(min(self.batch, len(self.upcoming)))]
            crops = [self.crop(slice(top, top + height), slice(left, left + width)) for top, left in corners]
            logits = self.model(torch.cat(crops)).chunk(len(corners))
            self.held.update(zip(corners, map(compact, logits), strict=True))


__all__ = ["Blend", "SlidingLogits", "WindowGrid", "window_starts", "window_weights"]
