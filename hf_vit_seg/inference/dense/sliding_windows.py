"""Sliding windows: the model sees one window at a time, and overlapping logits are blended.

Shapes: B images of equal size, C channels, K classes, H W the picture that the windows slide over, n rows of it, h w a
window.

Windows lie as in mmsegmentation's `slide_inference` and MONAI's `sliding_window_inference`: every `stride` pixels, the
last of a row or column moved back so that it ends at the border. As there, a window's logits are resized to the
window's size first and blended then. Adding up coarse logits instead would be faster, but is another function: at the
border of a window it would mix logits with those of its neighbors.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from .row_logits import LogitGrid, Model, compact, resized_rows

Blend = Literal["flat", "gaussian"]
Crop = Callable[[slice, slice], torch.Tensor]  # rows and columns -> pixel values (B, C, n, m)

SPREAD = 0.125  # standard deviation of Gaussian weights as a share of the window's side, as in MONAI and nnU-Net
LEAST_WEIGHT = 1e-3


def window_starts(length: int, window: int, stride: int) -> tuple[int, ...]:
    """Where windows begin along an axis; a single one where the axis is no longer than the window."""
    last = max(length - window, 0)
    return (*range(0, last, stride), last)


def window_weights(size: tuple[int, int], blend: Blend) -> torch.Tensor:
    """How much each pixel of a window counts: (h, w) float64, at most 1 and at least `LEAST_WEIGHT`."""
    if blend == "flat":
        return torch.ones(size, dtype=torch.float64)
    axes = []
    for side in size:
        distance = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        axes.append(torch.exp(-(distance**2) / (2 * (SPREAD * side) ** 2)))
    return torch.outer(*axes).clamp(min=LEAST_WEIGHT)


@dataclass(frozen=True)
class WindowGrid:
    """Windows over a picture of `size` (H, W), in order of rows; no `window` is larger than the picture.

    A `mirrored` grid is that of the picture flipped left to right, seen from the picture itself.
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
        """How much each pixel of a window counts."""
        return window_weights(self.window, self.blend)

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.tops) * len(self.lefts)

    def corners(self) -> Iterator[tuple[int, int]]:
        """(top, left) of every window."""
        return ((top, left) for top in self.tops for left in self.lefts)

    def overlap(self, top: int, first: int, stop: int) -> tuple[int, int]:
        """The first and last + 1 of the rows first .. stop - 1 that windows beginning at `top` cover."""
        return max(first, top), min(stop, top + self.window[0])

    def total(self, first: int, stop: int) -> torch.Tensor:
        """The sum of all windows' weights at the rows first .. stop - 1: (n, W) float64."""
        total = torch.zeros(stop - first, self.size[1], dtype=torch.float64)
        for top in self.tops:
            begin, end = self.overlap(top, first, stop)
            if begin < end:
                rows = total[begin - first : end - first]
                for left in self.lefts:
                    rows[:, left : left + self.window[1]] += self.weights[begin - top : end - top]
        return total


class SlidingLogits:
    """A canvas at the picture's size whose windows go through the model when their rows are asked for.

    Held are the coarse logits of the windows that the asked rows touch, and of those computed in advance to fill a
    batch. `crop` gives the pixel values of a window, `batch` is the number of windows (of one image) that go through
    the model together, at most.
    """

    def __init__(self, model: Model, crop: Crop, grid: WindowGrid, batch: int = 1):
        self.model, self.crop, self.grid, self.batch = model, crop, grid, batch
        self.upcoming = deque(grid.corners())
        self.held: dict[tuple[int, int], LogitGrid] = {}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return self.grid.size

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """The blended logits of the rows first .. stop - 1: (B, n, W, K)."""
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
            part = resized_rows(logits, self.grid.window, begin - top, end - top)
            blended[:, rows, columns].addcmul_(part, share.to(part)[..., None])
        return blended

    def compute_to(self, stop: int) -> None:
        """Send the windows that begin before row `stop` through the model, and some more to fill the last batch."""
        height, width = self.grid.window
        while self.upcoming and self.upcoming[0][0] < stop:
            corners = [self.upcoming.popleft() for _ in range(min(self.batch, len(self.upcoming)))]
            crops = [self.crop(slice(top, top + height), slice(left, left + width)) for top, left in corners]
            logits = self.model(torch.cat(crops)).chunk(len(corners))
            self.held.update(zip(corners, map(compact, logits), strict=True))


__all__ = ["Blend", "SlidingLogits", "WindowGrid", "window_starts", "window_weights"]
