"""Images padded to whole tokens. Shapes: B images, C channels, H W pixels."""

import torch
from torch.nn.functional import pad

from .grid_sizes import round_up
from .open_sizes import sizes_are_open


def padded_to_whole(pixel_values: torch.Tensor, token: tuple[int, int]) -> torch.Tensor:
    """Images (B, C, H, W) with zeros right and bottom, so that their sides are multiples of `token`'s pixels."""
    bottom, right = (round_up(side, step) - side for side, step in zip(pixel_values.shape[-2:], token, strict=True))
    if sizes_are_open() or bottom or right:
        return pad(pixel_values, (0, right, 0, bottom))
    return pixel_values


__all__ = ["padded_to_whole"]
