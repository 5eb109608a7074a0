"""Learned position embeddings (arXiv 2010.11929, section 3.1) on grids of any size.

Shapes: P prefix slots, N = h*w tokens of the grid in row-major order, D width.
"""

import torch
from torch.nn.functional import interpolate


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
    image = interpolate(image, size=new_grid, mode=mode, align_corners=align_corners, antialias=antialias)
    return torch.cat([prefix, image.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


__all__ = ["resize_positions"]
