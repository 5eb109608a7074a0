"""Bilinear upsampling of logits a strip at a time, and its transpose, so that nothing of full size need exist.

Shapes: B images and n of a strip, K classes, h w the grid of the logits, H W that of the pixels and r rows of a strip.
A pixel's classes lie side by side, as our decode heads leave them and as the kernels like it.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch.nn.functional import interpolate, pad

from .bilinear_cells import neighbours
from .row_strips import row_strips

# On a CPU a strip stays in the cache, and below the 4 MiB from which temporaries are fresh pages each time.
CPU_STRIP_BYTES = 2 * 2**20
GPU_STRIP_BYTES = 64 * 2**20
# With fewer classes, what a loss holds of every pixel anyway weighs as much as its logits.
FEWEST_FOR_STRIPS = 5
# With fewer classes side by side a CPU's kernels do not fill their vectors.
CPU_VECTOR = 16


def working_dtype(logits: torch.Tensor) -> torch.dtype:
    """float64 for such logits, else float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def upsampled_whole(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """The plain way: logits (B, K, h, w) to (B, K, H, W)."""
    logits = logits.to(working_dtype(logits))
    return interpolate(logits, size=size, mode="bilinear", align_corners=False)


def strips_serve(logits: torch.Tensor) -> bool:
    """Whether to work in strips: not for compilers, which fuse by themselves, nor for tracers; both unroll loops.

    With `torch.use_deterministic_algorithms` on a GPU, only autograd of `interpolate` knows how to obey.
    """
    return not (
        logits.shape[1] < FEWEST_FOR_STRIPS
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (logits.is_cuda and torch.are_deterministic_algorithms_enabled())
    )


def with_idle_classes(logits: torch.Tensor) -> torch.Tensor:
    """Logits with classes added on a CPU, of probability 0, that spare its kernels a slow way."""
    lacking = CPU_VECTOR - logits.shape[1]
    if lacking <= 0 or logits.device.type != "cpu":
        return logits
    return pad(logits, (0, 0, 0, 0, 0, lacking), value=torch.finfo(logits.dtype).min / 4)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuses a second derivative, which torch's own `once_differentiable` lets pass as 0 behind a mean."""

    @wraps(backward)
    def checked(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("A loss in strips can be differentiated once, not with create_graph=True")
        return backward(*arguments)

    return checked


class Strip(NamedTuple):
    """Some rows of one image, or several whole images: an index into (B, H, W)."""

    images: slice
    rows: slice


class StripUpsampling:
    """`interpolate(logits, size, mode="bilinear", align_corners=False)` in strips, and the transpose of that.

    Rows are mixed here, at the positions that `interpolate` computes; columns are left to its own kernels.
    """

    def __init__(self, logits: torch.Tensor, size: tuple[int, ...], strip_bytes: int | None = None):
        """Logits (B, K, h, w) of any layout and float type, resized in float32 or float64."""
        self.shape, self.size = logits.shape, size
        self.dtype = working_dtype(logits)
        self.samples = logits.permute(0, 2, 3, 1).contiguous()
        self.strip_bytes = strip_bytes or (GPU_STRIP_BYTES if logits.is_cuda else CPU_STRIP_BYTES)
        lower, upper, weight = neighbours(logits.shape[2], size[0], self.dtype)
        self.lower, self.upper = lower.to(logits.device), upper.to(logits.device)
        self.weight = weight[:, None, None].to(logits.device)

    def strips(self) -> Iterator[Strip]:
        """Several whole images together while they are small, else each image from top to bottom."""
        images, classes, _, width = self.shape
        height = self.size[0]
        row_bytes = classes * max(width, self.size[1]) * self.dtype.itemsize
        together = max(self.strip_bytes // (row_bytes * height), 1)
        for first in range(0, images, together):
            for top, bottom in row_strips(height, row_bytes * together, self.strip_bytes):
                yield Strip(slice(first, first + together), slice(top, bottom))

    def upsampled(self, strip: Strip) -> torch.Tensor:
        """The logits (n, r, W, K) of a strip's pixels."""
        samples, rows = self.samples[strip.images], strip.rows
        above = samples.index_select(1, self.lower[rows]).to(self.dtype)
        below = samples.index_select(1, self.upper[rows]).to(self.dtype)
        band = torch.lerp(above, below, self.weight[rows]).permute(0, 3, 1, 2)  # (n, K, r, w)
        size = (band.shape[2], self.size[1])
        return interpolate(band, size=size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    def zeros(self) -> torch.Tensor:
        """Room for the gradient of all logits: (B, h, w, K)."""
        return torch.zeros_like(self.samples, dtype=self.dtype)

    def add_transposed(self, gradient: torch.Tensor, strip: Strip, total: torch.Tensor) -> None:
        """Add to `total`, from `zeros`, what the gradient (n, r, W, K) of a strip's pixels means for the logits."""
        images, rows, width, classes = gradient.shape
        shape = [images, classes, rows, self.shape[3]]
        band = torch.ops.aten.upsample_bilinear2d_backward(gradient.permute(0, 3, 1, 2), [rows, width], shape, False)
        band, weight = band.permute(0, 2, 3, 1), self.weight[strip.rows]
        part = total[strip.images]
        part.index_add_(1, self.lower[strip.rows], band * (1 - weight))
        part.index_add_(1, self.upper[strip.rows], band * weight)


__all__ = [
    "Strip",
    "StripUpsampling",
    "differentiable_once",
    "strips_serve",
    "upsampled_whole",
    "with_idle_classes",
    "working_dtype",
]
