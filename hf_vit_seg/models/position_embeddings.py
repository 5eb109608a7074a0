"""Learned position embeddings (arXiv 2010.11929, section 3.1) on grids of any size.

Shapes: P prefix slots, N = h*w tokens of the grid in row-major order, D width.
"""

import torch
from torch.nn.functional import interpolate

from .open_sizes import sizes_are_open

KEYS = -0.5


def resize_positions(
    positions: torch.Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    mode: str,
    align_corners: bool,
    antialias: bool,
) -> torch.Tensor:
    """(1, P + h*w, D) to (1, P + h'*w', D): the grid is resized like an image, in float32 at least.

    Section 3.2 interpolates "according to their location in the original image" and leaves the filter open.
    """
    slots = positions.shape[1] - old_grid[0] * old_grid[1]
    prefix, grid = positions[:, :slots], positions[:, slots:]
    image = grid.unflatten(1, old_grid).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    if antialias and not align_corners and sizes_are_open():  # OpenVINO's own filter of this kind is off by far
        rows, columns = (filter_matrix(*sides, mode, image) for sides in zip(old_grid, new_grid, strict=True))
        image = rows @ image @ columns.T
    else:
        image = interpolate(image, size=new_grid, mode=mode, align_corners=align_corners, antialias=antialias)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def filter_matrix(old: int, new: int, mode: str, like: torch.Tensor) -> torch.Tensor:
    """(new, old): torch's antialiased filter along one side, with pixels' centres at halves, as a product."""
    places, centres = (0.5 + torch.arange(side, dtype=like.dtype, device=like.device) for side in (old, new))
    scale = places.new_ones(1) * (old / new)  # a tensor, whatever sizes are in the program that is recorded
    distances = (places - centres[:, None] * scale).abs() / scale.clamp_min(1)
    weights = FILTERS[mode](distances)
    return weights / weights.sum(dim=1, keepdim=True)


def triangle(distances: torch.Tensor) -> torch.Tensor:
    """Bilinear weights."""
    return (1 - distances).clamp_min(0)


def cubic(distances: torch.Tensor) -> torch.Tensor:
    """Bicubic weights (Keys 1981), with torch's parameter for antialiased filters."""
    near = ((KEYS + 2) * distances - (KEYS + 3)) * distances**2 + 1
    far = KEYS * (((distances - 5) * distances + 8) * distances - 4)
    return torch.where(distances < 1, near, far.where(distances < 2, 0))


FILTERS = {"bilinear": triangle, "bicubic": cubic}

__all__ = ["resize_positions"]
