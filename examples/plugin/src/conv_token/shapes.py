"""A data source for recipes that needs no files: `data: {train: {kind: shapes, count: 200}}`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.sources.source import SourceError, SourceRecord

# Distance of the offset (y, x) from the center, by class name; pixels closer than the radius belong to the shape.
DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "disc": torch.hypot,
    "square": lambda y, x: torch.maximum(y.abs(), x.abs()),
    "diamond": lambda y, x: y.abs() + x.abs(),
}


class ShapesSource(SourceRecord):
    """Discs, squares and diamonds of random colors on a noisy background: `count` images of `size` x `size` pixels.

    An image depends only on `seed` and its index.
    """

    tasks: ClassVar = ("segmentation",)

    count: int = Field(default=100, ge=1)
    size: int = Field(default=64, ge=16)
    seed: int = 0

    def open(self, task: str, channels: int = 3) -> "Shapes":
        """Open the source without drawing anything. Raises SourceError unless `channels` is 3."""
        if channels != 3:
            raise SourceError(
                f"the data source shapes has 3 channels, but data.bands is {channels}: set data.bands to 3"
            )
        return Shapes(self.count, self.size, self.seed)


@dataclass(frozen=True)
class Shapes:
    """Images that are drawn when they are read."""

    count: int
    size: int
    seed: int
    class_names: tuple[str, ...] = ("ground", *DISTANCES)

    def __len__(self) -> int:
        """The number of images."""
        return self.count

    def read(self, index: int) -> RawSample:
        """One image (3, H, W) uint8 and its mask (H, W) int64."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        lines = torch.arange(self.size)
        rows, columns = torch.meshgrid(lines, lines, indexing="ij")
        mask = torch.zeros(self.size, self.size, dtype=torch.int64)
        image = torch.full((3, self.size, self.size), 100.0)
        for label, distance in enumerate(DISTANCES.values(), start=1):
            y, x, radius = (torch.rand(3, generator=generator) * self.size).tolist()
            inside = distance(rows - y, columns - x) < self.size / 10 + radius / 8
            mask[inside] = label
            image[:, inside] = torch.rand(3, 1, generator=generator) * 255
        noise = torch.randn(image.shape, generator=generator) * 12
        return RawSample(self.name(index), (image + noise).clamp(0, 255).to(torch.uint8), mask)

    def name(self, index: int) -> str:
        """The seed and the index, which identify an image across splits."""
        return f"shapes {self.seed}.{index}"

    def files(self, index: int) -> tuple[Path, ...]:
        """No files: images are generated."""
        return ()

    def group(self, index: int) -> str:
        """Every image is its own group."""
        return self.name(index)


__all__ = ["Shapes", "ShapesSource"]
