"""Transforms that change an image's size, and its mask's with it: resizing, cropping, padding.

Images are resized with antialiasing, as the image processor does; masks take the value under each pixel's center
(nearest-exact), which torchvision's own transforms do not. Beyond the border an image has `fill` and a mask is ignored.

Measured on one core: a whole 700x1000 RGB image resized by 1.3 takes 1 ms (2 ms by 2.0) if its bands lie side by side
in memory, as decoders leave them, and three times that if not. So images are brought into that layout first, and
nothing is gained by cropping before resizing.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.grid_sizes import round_up

from .context import (
    WITHOUT_PERSONS,
    Fill,
    PositiveBounds,
    Share,
    Sides,
    TransformContext,
    TransformOptions,
    ascending,
    both_sides,
    image_of,
)

TRIES = 10  # for a crop that no class fills (mmseg)


def resized(value: Any, size: tuple[int, int], resample: int) -> Any:
    """An image or a mask at `size`; anything else as it is."""
    if isinstance(value, tv_tensors.Mask):
        labels = F.resize_image(value.as_subclass(torch.Tensor)[None], list(size), InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Mask(labels[0])
    if not isinstance(value, tv_tensors.Image):
        return value
    pixels = value.as_subclass(torch.Tensor)[None].contiguous(memory_format=torch.channels_last)
    return tv_tensors.Image(F.resize_image(pixels, list(size), resample, antialias=True)[0])


class ScaledSize(v2.Transform):
    """Resize to what the context's rule gives for the image, times a random scale."""

    def __init__(self, options: "RandomResize", context: TransformContext):
        super().__init__()
        self.options, self.context = options, context

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The size that is aimed at."""
        scale = torch.empty(()).uniform_(*self.options.scale).item()
        sides = image_of(flat_inputs).shape[-2:]
        aim = sides if self.options.relative_to == "image" else self.context.resized(*sides)
        factors = [scale * target / side for side, target in zip(sides, aim, strict=True)]
        if self.options.keep_ratio:
            factors = [max(factors)] * 2
        return {"size": tuple(max(round(side * factor), 1) for side, factor in zip(sides, factors, strict=True))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Image or mask, resized."""
        return resized(inpt, params["size"], self.context.resample)


class Resize(TransformOptions):
    """Resize as the image processor does."""

    tasks: ClassVar = WITHOUT_PERSONS

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        return ScaledSize(RandomResize(scale=(1, 1), keep_ratio=False), context)


class RandomResize(TransformOptions):
    """Resize by a random scale, relative to the size that the image processor gives, or to the image's own.

    With `keep_ratio` the image keeps its shape, and covers that size where the processor squeezes images into one.
    """

    tasks: ClassVar = WITHOUT_PERSONS
    scale: PositiveBounds = (0.5, 2.0)
    keep_ratio: bool = True
    relative_to: Literal["processor", "image"] = "processor"

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        return ScaledSize(self, context)


class MixedCrop(v2.RandomCrop):
    """A random window, drawn again up to ten times while one class has more than its share of the pixels that count."""

    def __init__(self, size: tuple[int, int], fill: dict[type | str, Any], largest_share: float, ignore_index: int):
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.largest_share, self.ignore_index = largest_share, ignore_index

    def is_mixed(self, mask: torch.Tensor, window: dict[str, Any]) -> bool:
        """Whether at least two classes lie in the window, none of them with too large a share."""
        left, top = (window["padding"][side] for side in (0, 1))
        rows = slice(max(window["top"] - top, 0), window["top"] - top + window["height"])
        columns = slice(max(window["left"] - left, 0), window["left"] - left + window["width"])
        pixels = torch.bincount(mask[rows, columns].flatten(), minlength=self.ignore_index + 1)
        pixels[self.ignore_index] = 0
        return bool((pixels > 0).sum() > 1 and pixels.max() < self.largest_share * pixels.sum())

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where the window lies."""
        window = super().make_params(flat_inputs)
        masks = [value for value in flat_inputs if isinstance(value, tv_tensors.Mask)]
        if not masks or self.largest_share >= 1:
            return window
        mask = masks[0].as_subclass(torch.Tensor)
        for _ in range(TRIES - 1):
            if self.is_mixed(mask, window):
                break
            window = super().make_params(flat_inputs)
        return window


class RandomCrop(TransformOptions):
    """A random window of `size`, without one of the model's input; smaller images are padded at random sides.

    `max_class_share` is mmseg's category ratio: below 1 a window is avoided that one class fills beyond it.
    """

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    max_class_share: float = Field(1.0, gt=0, le=1)
    fill: Fill = 0

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        size = context.size_of(self.size, "random_crop")
        return MixedCrop(size, context.fill(self.fill), self.max_class_share, context.ignore_index)


class BottomRightPad(v2.Transform):
    """Add rows below and columns to the right."""

    def __init__(self, options: "Pad", fill: dict[type | str, Any]):
        super().__init__()
        self.options, self.fill = options, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """How many rows and columns are missing."""
        height, width = image_of(flat_inputs).shape[-2:]
        return {"padding": [0, 0, self.options.padded(width, 1) - width, self.options.padded(height, 0) - height]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Image or mask, padded."""
        fill = self.fill.get(type(inpt))
        return inpt if fill is None else F.pad(inpt, params["padding"], fill=fill)


class Pad(TransformOptions):
    """Pad to at least `size`, or to a multiple of `divisor`, below and to the right as the image processor does."""

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    divisor: PositiveInt | None = None
    fill: Fill = 0

    @model_validator(mode="after")
    def _one_aim(self) -> "Pad":
        if (self.size is None) == (self.divisor is None):
            raise HfVitSegError("give either size or divisor")
        return self

    def padded(self, side: int, axis: int) -> int:
        """The length of a side that is `side` long before."""
        if self.divisor is not None:
            return round_up(side, self.divisor)
        return max(side, both_sides(self.size or side)[axis])

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        return BottomRightPad(self, context.fill(self.fill))


class ExactResizedCrop(v2.RandomResizedCrop):
    """torchvision's, with masks resized by nearest-exact and images in the fast layout."""

    def __init__(self, options: "RandomResizedCrop", size: tuple[int, int], resample: int):
        super().__init__(size, options.scale, options.ratio)
        self.aim, self.resample = size, resample

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Image or mask, cut and resized."""
        if not isinstance(inpt, tv_tensors.Image | tv_tensors.Mask):
            return inpt
        return resized(F.crop(inpt, **params), self.aim, self.resample)


class RandomResizedCrop(TransformOptions):
    """A window of a random share (`scale`) of the image's area and a random ratio of its sides, resized to `size`."""

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    scale: Annotated[tuple[PositiveFloat, Share], AfterValidator(ascending)] = (0.08, 1.0)
    ratio: PositiveBounds = (3 / 4, 4 / 3)

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        size = context.size_of(self.size, "random_resized_crop")
        return ExactResizedCrop(self, size, context.resample)


__all__ = ["Pad", "RandomCrop", "RandomResize", "RandomResizedCrop", "Resize"]
