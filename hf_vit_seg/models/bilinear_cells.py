"""Which pixels of a bilinearly resized map lie between which samples (`align_corners=False`).

Shapes: h samples and H pixels of one axis, P pixels of a cell.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Axis:
    """How the pixels of one axis fall into the h + 1 cells between its h samples; the outer two cells are flat.

    Cell i lies between the samples `lower[i]` and `upper[i]` and has the pixels `start[i]` .. `start[i + 1]`:
    listed in `pixels` (h + 1, P), with their `weights` (h + 1, P) on the upper sample. Where a cell has fewer than
    P pixels its first one is repeated.
    """

    lower: torch.Tensor
    upper: torch.Tensor
    start: torch.Tensor
    pixels: torch.Tensor
    weights: torch.Tensor
    cell: torch.Tensor  # the cell of each pixel

    def cells(self, first: int, stop: int) -> "Axis":
        """The cells first .. stop alone, with their samples and pixels counted from their own first."""
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
    """Where the pixels of an axis lie among its samples 0 .. h - 1, rounded as `interpolate` rounds: -0.5 and up."""
    scale = torch.tensor(samples, dtype=dtype) / pixels
    return scale * (torch.arange(pixels, dtype=dtype) + 0.5) - 0.5


def neighbours(samples: int, pixels: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two samples between which each pixel of an axis lies, and its weight on the second: (H,) each."""
    position = positions(samples, pixels, dtype).clamp(min=0)
    lower = position.long().clamp(max=samples - 1)
    return lower, (lower + 1).clamp(max=samples - 1), (position - lower).clamp(0, 1)


def split_axis(samples: int, pixels: int, dtype: torch.dtype, device: torch.device) -> Axis:
    """The cells of an axis."""
    position = positions(samples, pixels, dtype)
    cell = position.floor().long().clamp(-1, samples - 1) + 1
    start = torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(cell, minlength=samples + 1).cumsum(0)])
    slots = torch.arange(int(start.diff().max()))
    listed = start[:-1, None] + torch.where(slots < start.diff()[:, None], slots, 0)
    listed = listed.clamp(max=pixels - 1)  # cells without pixels, which nobody asks for
    sample = torch.arange(-1, samples)
    weights = (position[listed].clamp(min=0) - sample[:, None].clamp(min=0)).clamp(0, 1)
    fields = (sample.clamp(min=0), (sample + 1).clamp(max=samples - 1), start, listed, weights, cell)
    return Axis(*(field.to(device) for field in fields))


__all__ = ["Axis", "neighbours", "split_axis"]
