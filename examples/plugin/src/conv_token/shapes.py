"""A data source for recipes, which needs no file: `data: {train: {kind: shapes, count: 200}}`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.sources.source import SourceError, SourceRecord

# How far a point (y, x) from the middle is away, by class name; a class is where that is below the radius.
DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "disc": torch.hypot,
    "square": lambda y, x: torch.maximum(y.abs(), x.abs()),
    "diamond": lambda y, x: y.abs() + x.abs(),
}


class ShapesSource(SourceRecord):
    """Discs, squares and diamonds in any colour on a noisy ground, `count` pictures of `size` x `size` pixels.

    Pictures follow from `seed` and their number alone.
    """

    tasks: ClassVar = ("segmentation",)

    count: int = Field(default=100, ge=1)
    size: int = Field(default=64, ge=16)
    seed: int = 0

    def open(self, task: str, bands: int = 3) -> "Shapes":
        """Nothing is drawn yet. SourceError unless images have 3 bands."""
        if bands != 3:
            raise SourceError(f"shapes are in colour, with 3 bands, and data.bands is {bands}")
        return Shapes(self.count, self.size, self.seed)


@dataclass(frozen=True)
class Shapes:
    """Pictures that are drawn when they are read."""

    count: int
    size: int
    seed: int
    class_names: tuple[str, ...] = ("ground", *DISTANCES)

    def __len__(self) -> int:
        """Count the pictures."""
        return self.count

    def read(self, index: int) -> RawSample:
        """One picture (3, H, W) uint8 and its mask (H, W)."""
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
        """The picture's number, and the seed, by which splits differ."""
        return f"shapes {self.seed}.{index}"

    def files(self, index: int) -> tuple[Path, ...]:
        """None."""
        return ()

    def group(self, index: int) -> str:
        """Every picture is for itself."""
        return self.name(index)


__all__ = ["Shapes", "ShapesSource"]
