"""Mean and standard deviation of each band over a data set, as an image processor takes them.

Shapes: C bands, H W pixels.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from hf_vit_seg.errors import HfVitSegError

from .samples import RawSample


class StatisticsError(HfVitSegError):
    """Images of which no common mean and standard deviation can be taken."""


class Statistics(NamedTuple):
    """One mean and one standard deviation per band, of pixels times `rescale_factor`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float

    def processor_fields(self) -> dict[str, Any]:
        """The fields of an image processor that normalizes by these numbers."""
        return {
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "rescale_factor": self.rescale_factor,
            "do_rescale": True,
            "do_normalize": True,
        }


class BandMoments:
    """Sums over pixels, one image at a time: exact to float64 however far the mean is from 0 (Chan et al. 1979)."""

    def __init__(self, bands: int):
        self.pixels = 0
        self.mean = torch.zeros(bands, dtype=torch.float64)
        self.squares = torch.zeros(bands, dtype=torch.float64)  # of distances from the mean

    def add(self, image: torch.Tensor) -> None:
        """Take in an image (C, H, W)."""
        values = image.flatten(1).to(torch.float64)
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        pixels, distance = values.shape[1], mean - self.mean
        total = self.pixels + pixels
        self.squares += pixels * variance + distance.square() * (self.pixels * pixels / total)
        self.mean += distance * (pixels / total)
        self.pixels = total

    @property
    def std(self) -> torch.Tensor:
        """(C,), of all pixels; 1 for a band that never changes, which would else be divided by 0."""
        std = (self.squares / self.pixels).sqrt()
        return torch.where(std > 0, std, 1.0)


def measure(samples: Iterable[RawSample]) -> Statistics:
    """Statistics of all pixels of all images: those of 8-bit images are rescaled to 0 .. 1, others keep their values.

    StatisticsError names an image of other bands or depth than the first one's, or with pixels that are not finite.
    """
    moments, first = None, None
    for sample in samples:
        if first is None or moments is None:
            moments, first = BandMoments(sample.image.shape[0]), sample
        if (sample.image.shape[0], sample.image.dtype) != (first.image.shape[0], first.image.dtype):
            raise StatisticsError(
                f"All images have the bands and depth of the first: {first.name} has {described(first.image)}, "
                f"{sample.name} {described(sample.image)}"
            )
        moments.add(sample.image)
        if not torch.isfinite(moments.mean).all():
            raise StatisticsError(f"{sample.name} has pixels that are not finite: write the missing ones as a number")
    if first is None or moments is None:
        raise StatisticsError("There are no images to measure")
    factor = 1 / 255 if first.image.dtype == torch.uint8 else 1.0
    scaled = [tuple((values * factor).tolist()) for values in (moments.mean, moments.std)]
    return Statistics(scaled[0], scaled[1], factor)


def described(image: torch.Tensor) -> str:
    """Bands and depth in words."""
    return f"{image.shape[0]} of {str(image.dtype).removeprefix('torch.')}"


__all__ = ["Statistics", "StatisticsError", "measure"]
