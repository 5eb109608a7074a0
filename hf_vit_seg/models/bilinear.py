"""Bilinear resizing (`align_corners=False`) of a few rows at a time, its transpose, and its matrix.

Full-size tensors, which are large for many classes, are never stored.

Shapes: B images and n of a strip, C channels, K classes, h w the coarse grid, H W the pixels, r rows of a strip. Along
one axis: h samples and H pixels, P pixels of a cell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, wraps
from typing import Any, NamedTuple

import torch
from torch.nn.functional import interpolate, pad

from .cpu_kernels import STRIP_BYTES, is_dynamic_export, row_strips, upsample_bilinear_backward
from .grid_sizes import ceil_div, round_up

GPU_STRIP_BYTES = 64 * 2**20
MIN_STRIP_CLASSES = 5  # with fewer classes, a loss's other values per pixel take as much memory as the logits
CPU_VECTOR = 16  # with fewer classes, the CPU kernels do not fill their vectors
CUBIC_A = -0.5  # the parameter of Keys' bicubic filter that torch takes for antialiasing


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return float64 for tensors in float64, otherwise float32."""
    return torch.promote_types(tensor.dtype, torch.float32)


def to_working_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32 or float64."""
    return tensor.to(working_dtype(tensor))


# One axis


@dataclass(frozen=True)
class Axis:
    """How the pixels of one axis are distributed over the h + 1 cells between its h samples; the outer two are flat.

    Cell i lies between the samples `lower[i]` and `upper[i]` and has the pixels `start[i]` .. `start[i + 1]`:
    listed in `pixels` (h + 1, P), with their `weights` (h + 1, P) on the upper sample. If a cell has fewer than
    P pixels, its first one is repeated.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    start: torch.Tensor
    pixels: torch.Tensor
    weights: torch.Tensor
    cell: torch.Tensor  # the cell of each pixel

    def cells(self, first: int, stop: int) -> "Axis":
        """Return the cells first .. stop - 1; sample and pixel numbers start at 0."""
        part, lowest, origin = slice(first, stop), self.lower[first], self.start[first]
        return replace(
            self,
            lower=self.lower[part] - lowest,
            upper=self.upper[part] - lowest,
            start=self.start[first : stop + 1] - origin,
            pixels=self.pixels[part] - origin,
            weights=self.weights[part],
            cell=self.cell[origin : self.start[stop]] - first,
        )


def positions(samples: int, pixels: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the pixels' positions among the samples 0 .. h - 1, from -0.5, rounded as `interpolate` does: (H,)."""
    scale = torch.tensor(samples, dtype=dtype) / pixels
    return scale * (torch.arange(pixels, dtype=dtype) + 0.5) - 0.5


def neighbors(samples: int, pixels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the lower and upper sample next to each pixel, and the weight of the upper one: (H,) each."""
    position = positions(samples, pixels, dtype).clamp(min=0)
    lower = position.long().clamp(max=samples - 1)
    return lower, (lower + 1).clamp(max=samples - 1), (position - lower).clamp(0, 1)


def split_axis(samples: int, pixels: int, dtype: torch.dtype, device: torch.device) -> Axis:
    """Divide the pixels of an axis into cells between neighboring samples, and compute their weights."""
    position = positions(samples, pixels, dtype)
    cell = position.floor().long().clamp(-1, samples - 1) + 1
    start = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(cell, minlength=samples + 1).cumsum(0)])
    slots = torch.arange(int(start.diff().max()))
    listed = start[:-1, None] + torch.where(slots < start.diff()[:, None], slots, 0)
    listed = listed.clamp(max=pixels - 1)  # cells without pixels are never read
    sample = torch.arange(-1, samples)
    weights = (position[listed].clamp(min=0) - sample[:, None].clamp(min=0)).clamp(0, 1)
    fields = (sample.clamp(min=0), (sample + 1).clamp(max=samples - 1), start, listed, weights, cell)
    return Axis(*(field.to(device) for field in fields))


class RowResizing:
    """Resizes a map from h to H rows, a range of rows at a time."""

    def __init__(self, samples: int, pixels: int, dtype: torch.dtype, device: torch.device | str = "cpu"):
        lower, upper, weight = neighbors(samples, pixels, dtype)
        self.lower, self.upper, self.weight = lower.to(device), upper.to(device), weight.to(device)

    def source(self, rows: slice) -> slice:
        """Return the coarse rows that these rows are computed from."""
        return slice(int(self.lower[rows][0]), int(self.upper[rows][-1]) + 1)

    def resize(
        self,
        samples: torch.Tensor,
        rows: slice,
        dim: int,
        origin: int = 0,
        convert: Callable[[torch.Tensor], torch.Tensor] = to_working_dtype,
    ) -> torch.Tensor:
        """Compute rows of the resized map along `dim` from coarse rows, the first of which has the number `origin`.

        `convert` is applied to the coarse rows that are read, and returns float32 or float64.
        """
        lower, upper = ((index[rows] - origin).to(samples.device) for index in (self.lower, self.upper))
        above, below = (convert(select(samples, dim, index)) for index in (lower, upper))
        return torch.lerp(above, below, self.weight[rows].to(above).view(-1, *[1] * (samples.ndim - 1 - dim)))


def select(tensor: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    """Compute `tensor.index_select(dim, index)`, which is up to 9 times slower for non-contiguous tensors."""
    if tensor.is_contiguous():
        return tensor.index_select(dim, index)
    return tensor[(slice(None),) * dim + (index,)]


def resize_columns(rows: torch.Tensor, width: int) -> torch.Tensor:
    """Resize columns: (B, C, r, w) to (B, C, r, W)."""
    return interpolate(rows, size=(rows.shape[2], width), mode="bilinear", align_corners=False)


@lru_cache(maxsize=64)
def upsampling_matrix(samples: int, pixels: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix (H, h) of bilinear interpolation along one axis."""
    position = positions(samples, pixels, torch.float64).clamp(0, samples - 1)
    return (1 - (position[:, None] - torch.arange(samples)).abs()).clamp(min=0).to(dtype)


def add_upsampled_rows(total: torch.Tensor, coarse: torch.Tensor, first: int, height: int) -> None:
    """Add the rows from `first` of a coarse map (h, w, C), upsampled to `height` rows, to `total` (r, W, C).

    Columns are interpolated by torch, rows by one small matrix product, which includes the addition.
    """
    rows, width, _ = total.shape
    samples = coarse.shape[0]
    top = max(int((first + 0.5) * samples / height - 0.5), 0)
    bottom = min(int((first + rows - 0.5) * samples / height - 0.5) + 2, samples)
    wide = resize_columns(coarse[None, top:bottom].permute(0, 3, 1, 2), width)  # (1, C, bottom - top, W)
    matrix = upsampling_matrix(samples, height, total.dtype)[first : first + rows, top:bottom]
    total.flatten(1).addmm_(matrix, wide.permute(0, 2, 3, 1)[0].flatten(1))


def triangle(distances: torch.Tensor) -> torch.Tensor:
    """Return the weights of the bilinear filter."""
    return (1 - distances).clamp_min(0)


def cubic(distances: torch.Tensor) -> torch.Tensor:
    """Return the weights of the bicubic filter (Keys 1981)."""
    near = ((CUBIC_A + 2) * distances - (CUBIC_A + 3)) * distances**2 + 1
    far = CUBIC_A * (((distances - 5) * distances + 8) * distances - 4)
    return torch.where(distances < 1, near, far.where(distances < 2, 0))


FILTERS = {"bilinear": triangle, "bicubic": cubic}


def antialiasing_matrix(samples: int, pixels: int, mode: str, like: torch.Tensor) -> torch.Tensor:
    """Return the matrix (H, h) of torch's antialiased "bilinear" or "bicubic" filter along one axis."""
    sources, targets = (0.5 + torch.arange(n, dtype=like.dtype, device=like.device) for n in (samples, pixels))
    scale = targets.new_ones(1) * (samples / pixels)  # a tensor even where sizes are symbols of an exported program
    distances = (sources - targets[:, None] * scale).abs() / scale.clamp_min(1)
    weights = FILTERS[mode](distances)
    return weights / weights.sum(dim=1, keepdim=True)


# Padded images


def pad_to_multiple(pixel_values: torch.Tensor, multiple: tuple[int, int]) -> torch.Tensor:
    """Zero-pad images (B, C, H, W) on the right and at the bottom, to multiples of (height, width)."""
    bottom, right = (round_up(side, step) - side for side, step in zip(pixel_values.shape[-2:], multiple, strict=True))
    if is_dynamic_export() or bottom or right:
        return pad(pixel_values, (0, right, 0, bottom))
    return pixel_values


def crop_to_image_extent(logits: torch.Tensor, size: tuple[int, int], multiple: tuple[int, int]) -> torch.Tensor:
    """Resample logits (B, K, h, w) of an image that `pad_to_multiple` padded, so that they cover the image without the
    padding.

    `size` is the image's (height, width). There are one or more cells of logits per multiple. All code that reads
    logits assumes that they span the image from border to border, so they are sampled bilinearly at the centers of a
    grid over the image, with as many cells as cover it at the logits' stride.
    """
    if not is_dynamic_export() and all(length % step == 0 for length, step in zip(size, multiple, strict=True)):
        return logits
    sampled = logits.to(working_dtype(logits))  # positions in bfloat16 would be wrong by whole cells
    for dim, length, step in zip((-2, -1), size, multiple, strict=True):
        cells, padded = sampled.shape[dim], round_up(length, step)
        count = ceil_div(length * (cells // ceil_div(length, step)), step)
        sampled = sample_at_centers(sampled, dim, count, length * cells / (count * padded))
    return sampled.to(logits.dtype)


def sample_at_centers(values: torch.Tensor, dim: int, count: int, spacing: float) -> torch.Tensor:
    """Sample values linearly along one axis, at the centers of `count` cells of `spacing` values each.

    A spacing of 1 gives the values exactly. Positions beyond the first and last value take these.
    """
    last = values.shape[dim] - 1
    centers = torch.arange(count, device=values.device, dtype=values.dtype) + 0.5
    centers = (centers * (centers.new_ones(1) * spacing) - 0.5).clamp(0, last)  # a tensor even for symbols of an export
    below = centers.floor()
    shares = (centers - below).reshape(-1, *[1] * (-dim - 1))
    lower, upper = below.long(), (below.long() + 1).clamp(max=last)
    return torch.lerp(values.index_select(dim, lower), values.index_select(dim, upper), shares)


# Strips of upsampled logits, for losses


def upsample(logits: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Upsample logits (B, K, h, w) to (B, K, H, W) in one step, in float32 or float64."""
    return interpolate(to_working_dtype(logits), size=size, mode="bilinear", align_corners=False)


def use_upsampling_strips(logits: torch.Tensor) -> bool:
    """Return whether to upsample in strips: not under compilers and tracers, which unroll loops (compilers also fuse).

    With `torch.use_deterministic_algorithms` on a GPU, only autograd of `interpolate` is deterministic.
    """
    return not (
        logits.shape[1] < MIN_STRIP_CLASSES
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (logits.is_cuda and torch.are_deterministic_algorithms_enabled())
    )


def pad_classes(logits: torch.Tensor) -> torch.Tensor:
    """Add classes of probability 0 on a CPU, up to the width at which its kernels are fast."""
    lacking = CPU_VECTOR - logits.shape[1]
    if lacking <= 0 or logits.device.type != "cpu":
        return logits
    return pad(logits, (0, 0, 0, 0, 0, lacking), value=torch.finfo(logits.dtype).min / 4)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a backward pass to raise on second derivatives; torch's `once_differentiable` can return 0 instead."""

    @wraps(backward)
    def wrapper(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("A loss in strips can be differentiated once, not with create_graph=True")
        return backward(*arguments)

    return wrapper


class Strip(NamedTuple):
    """Some rows of one image, or several complete images: an index into (B, H, W)."""

    images: slice
    rows: slice


class StripUpsampling:
    """`interpolate(logits, size, mode="bilinear", align_corners=False)` in strips, and its transpose.

    The classes of a pixel are contiguous in memory, as in the output of our decode heads;
    the kernels are fastest with this layout.
    """

    def __init__(self, logits: torch.Tensor, size: tuple[int, ...], strip_bytes: int | None = None):
        """Logits (B, K, h, w) of any memory layout and float type, resized in float32 or float64."""
        self.shape, self.size = logits.shape, size
        self.dtype = working_dtype(logits)
        self.samples = logits.permute(0, 2, 3, 1).contiguous()
        self.strip_bytes = strip_bytes or (GPU_STRIP_BYTES if logits.is_cuda else STRIP_BYTES)
        self.resizing = RowResizing(logits.shape[2], size[0], self.dtype, logits.device)

    def strips(self) -> Iterator[Strip]:
        """Yield several complete images at a time if they are small, otherwise each image from top to bottom."""
        images, classes, _, width = self.shape
        height = self.size[0]
        row_bytes = classes * max(width, self.size[1]) * self.dtype.itemsize
        together = max(self.strip_bytes // (row_bytes * height), 1)
        for first in range(0, images, together):
            for top, bottom in row_strips(height, row_bytes * together, self.strip_bytes):
                yield Strip(slice(first, first + together), slice(top, bottom))

    def upsample(self, strip: Strip) -> torch.Tensor:
        """Return the logits (n, r, W, K) of a strip's pixels."""
        rows = self.resizing.resize(self.samples[strip.images], strip.rows, dim=1)
        return resize_columns(rows.permute(0, 3, 1, 2), self.size[1]).permute(0, 2, 3, 1)

    def zeros(self) -> torch.Tensor:
        """Return a buffer (B, h, w, K) for the gradient of all logits."""
        return torch.zeros_like(self.samples, dtype=self.dtype)

    def add_transposed(self, gradient: torch.Tensor, strip: Strip, total: torch.Tensor) -> None:
        """Add the gradient of the logits, given that of a strip's pixels (n, r, W, K), to `total` (see `zeros`)."""
        images, rows, _, classes = gradient.shape
        coarse = upsample_bilinear_backward(gradient.permute(0, 3, 1, 2), [images, classes, rows, self.shape[3]])
        coarse, weight = coarse.permute(0, 2, 3, 1), self.resizing.weight[strip.rows, None, None]
        part = total[strip.images]
        part.index_add_(1, self.resizing.lower[strip.rows], coarse * (1 - weight))
        part.index_add_(1, self.resizing.upper[strip.rows], coarse * weight)


__all__ = [
    "Axis",
    "RowResizing",
    "Strip",
    "StripUpsampling",
    "add_upsampled_rows",
    "antialiasing_matrix",
    "crop_to_image_extent",
    "differentiable_once",
    "pad_classes",
    "pad_to_multiple",
    "resize_columns",
    "split_axis",
    "upsample",
    "upsampling_matrix",
    "use_upsampling_strips",
    "working_dtype",
]
