"""Mean and standard deviation of each channel over a dataset, for the image processor.

Shapes: C channels, H W pixels.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_inputs import EIGHT_BIT_WHITE, scale_pixels

from .samples import RawSample


class StatisticsError(HfVitSegError):
    """Images that have no common mean and standard deviation."""


class Statistics(NamedTuple):
    """One mean and one standard deviation per channel, of pixels times `rescale_factor`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale_factor: float

    def processor_fields(self) -> dict[str, Any]:
        """Return the fields of an image processor that normalizes with these statistics."""
        return {
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "rescale_factor": self.rescale_factor,
            "do_rescale": True,
            "do_normalize": True,
        }


class ChannelMoments:
    """Running mean and variance, one image at a time; stable for means far from 0 (Chan et al. 1979)."""

    def __init__(self, channels: int):
        self.pixels = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)  # sum of squared distances from the mean

    def add(self, image: torch.Tensor) -> None:
        values = image.flatten(1).to(torch.float64)
        if not values.numel():
            return
        variance, mean = torch.var_mean(values, dim=1, correction=0)
        pixels, distance = values.shape[1], mean - self.mean
        total = self.pixels + pixels
        self.squares += pixels * variance + distance.square() * (self.pixels * pixels / total)
        self.mean += distance * (pixels / total)
        self.pixels = total

    @property
    def std(self) -> torch.Tensor:
        """Standard deviations (C,); 1 for constant channels, as the processor divides by them."""
        std = (self.squares / self.pixels).sqrt()
        return torch.where(std > 0, std, 1.0)


def compute_statistics(samples: Iterable[RawSample], white: float = EIGHT_BIT_WHITE) -> Statistics:
    """Compute the statistics over all pixels with data.

    8-bit images, and RGB images of 16 bits, which are scaled to `white`, are rescaled to 0 .. 1; others are not, nor
    are any 16-bit images if `white` is 1, see `scale_pixels`. Raises StatisticsError if the images differ in channels
    or scale, or if pixels are not finite.
    """
    moments, first = None, None
    for sample in samples:
        if first is None or moments is None:
            moments, first = ChannelMoments(sample.image.shape[0]), sample
        if pixel_scale(sample.image, white) != pixel_scale(first.image, white):
            raise StatisticsError(
                f"images must have equal channels and depth: {first.name} has {describe_channels(first.image)}, "
                f"{sample.name} has {describe_channels(sample.image)}"
            )
        image = scale_pixels(sample.image, white)
        moments.add(image if sample.missing is None else image[:, ~sample.missing])
        if not torch.isfinite(moments.mean).all():
            raise StatisticsError(f"{sample.name} has pixels that are not finite: replace missing values")
    if first is None or moments is None or not moments.pixels:
        raise StatisticsError("found no images to compute statistics from")
    factor = 1 / pixel_scale(first.image, white)[1]
    scaled = [tuple((values * factor).tolist()) for values in (moments.mean, moments.std)]
    return Statistics(scaled[0], scaled[1], factor)


def pixel_scale(image: torch.Tensor, white: float) -> tuple[int, float]:
    """Return the number of channels of an image, and the value that is rescaled to 1."""
    return len(image), {torch.uint8: EIGHT_BIT_WHITE, torch.uint16: white}.get(image.dtype, 1.0)


def describe_channels(image: torch.Tensor) -> str:
    return f"{image.shape[0]} of {str(image.dtype).removeprefix('torch.')}"


__all__ = ["Statistics", "StatisticsError", "compute_statistics"]
