"""What a segmenter found in one image."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from .overlays import draw_overlay


@dataclass(frozen=True)
class ClassCount:
    """How much of an image is of one class."""

    index: int
    name: str
    colour: tuple[int, int, int]
    pixels: int
    share: float  # of all pixels, 0 .. 1


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map at the image's own size, with what is needed to show it.

    `label_map` is (H, W), uint8 for up to 256 classes, else uint16; `scores`, where they were asked for, (H, W)
    float32 of 0 .. 1, the probability of each pixel's class (with a model of one class: of that class). `timings` are
    milliseconds per step. `image` is None where the input was no picture, such as an array of five bands.
    """

    image: Image.Image | None
    label_map: np.ndarray
    scores: np.ndarray | None
    names: tuple[str, ...]
    palette: np.ndarray
    protocol: str
    timings: Mapping[str, float]

    def counts(self) -> list[ClassCount]:
        """The classes that occur, the most frequent first."""
        pixels = self.pixels_per_class
        order = sorted(np.flatnonzero(pixels), key=lambda index: (-pixels[index], index))
        total = self.label_map.size
        return [
            ClassCount(int(i), self.names[i], tuple(self.palette[i].tolist()), int(pixels[i]), float(pixels[i]) / total)
            for i in order
        ]

    @cached_property
    def pixels_per_class(self) -> np.ndarray:
        """(K,) int64."""
        labels = torch.from_numpy(np.ascontiguousarray(self.label_map))
        labels = labels.flatten() if labels.dtype == torch.uint8 else labels.flatten().int()
        return torch.bincount(labels, minlength=len(self.names)).numpy()

    def label_image(self) -> Image.Image:
        """The label map as a picture that PNG keeps exactly: with a palette, or 16-bit beyond 256 classes."""
        picture = Image.fromarray(self.label_map)
        if self.label_map.dtype == np.uint8:
            picture.putpalette(self.palette.tobytes())
        return picture

    def score_image(self) -> Image.Image:
        """The scores as 8-bit grey: 255 is certainty."""
        if self.scores is None:
            raise ValueError("Scores were not computed: call the segmenter with scores=True")
        return Image.fromarray((self.scores * 255 + 0.5).astype(np.uint8))

    def overlay(self, opacity: float = 0.5, legend: bool = True, longest_side: int | None = 1600) -> Image.Image:
        """The image under its classes' colours; see `overlays.draw_overlay`."""
        if self.image is None:
            raise ValueError("There is no picture to lay colours over: the input was no RGB or grey image")
        rows = [(count.name, count.colour, count.share) for count in self.counts()] if legend else []
        return draw_overlay(self.image, self.label_map, self.palette, rows, opacity, longest_side)
