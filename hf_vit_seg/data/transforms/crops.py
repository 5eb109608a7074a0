"""Transforms that change the size of an image and its mask: resizing, cropping, padding.

Images are resized with antialiasing, as in the image processor, and masks with nearest-exact interpolation, unlike in
torchvision's transforms. Padding has the value `fill` in images and the ignore index in masks.

Resizing a 700x1000 RGB image by 1.3 takes 1 ms on one core (2 ms by 2.0) in channels-last layout, which decoders
return, and three times as long in other layouts. Images are therefore converted to channels-last first; cropping
before resizing would not be faster.
"""

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.grid_sizes import round_up
from hf_vit_seg.records import Count

from .context import (
    WITHOUT_PERSONS,
    Fill,
    PositiveBounds,
    Share,
    Sides,
    TransformContext,
    TransformOptions,
    as_height_width,
    check_ascending,
    find_image,
)
from .sample_segments import current_areas, rescale_areas

TRIES = 10  # for a crop that is not dominated by one class (mmseg)


def resize_value(value: Any, size: tuple[int, int], resample: int) -> Any:
    """Resize an image or a mask to `size`; other values are returned unchanged."""
    if isinstance(value, tv_tensors.Mask):
        labels = F.resize_image(value.as_subclass(torch.Tensor)[None], list(size), InterpolationMode.NEAREST_EXACT)
        return tv_tensors.Mask(labels[0])
    if not isinstance(value, tv_tensors.Image):
        return value
    pixels = value.as_subclass(torch.Tensor)[None].contiguous(memory_format=torch.channels_last)
    return tv_tensors.Image(F.resize_image(pixels, list(size), resample, antialias=True)[0])


class RandomScaleResize(v2.Transform):
    """Resize to the context's output size for the image, or to the image's size, times a random scale."""

    def __init__(self, options: "RandomResize", context: TransformContext):
        super().__init__()
        self.options, self.context = options, context

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the target `size`."""
        scale = torch.empty(()).uniform_(*self.options.scale).item()
        sides = find_image(flat_inputs).shape[-2:]
        target = sides if self.options.relative_to == "image" else self.context.output_size(*sides)
        factors = [scale * target / side for side, target in zip(sides, target, strict=True)]
        if self.options.keep_ratio:
            factors = [max(factors)] * 2
        size = tuple(max(round(side * factor), 1) for side, factor in zip(sides, factors, strict=True))
        rescale_areas(size[0] * size[1] / (sides[0] * sides[1]))
        return {"size": size}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize an image or a mask."""
        return resize_value(inpt, params["size"], self.context.resample)


class Resize(TransformOptions):
    """Resize as the image processor does."""

    tasks: ClassVar = WITHOUT_PERSONS

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `RandomScaleResize` with a fixed scale."""
        return RandomScaleResize(RandomResize(scale=(1, 1), keep_ratio=False), context)


class RandomResize(TransformOptions):
    """Resize by a random scale, relative to the image processor's output size or to the image's own size.

    With `keep_ratio` the aspect ratio is kept, and the image covers the target size if the ratios differ.
    """

    tasks: ClassVar = WITHOUT_PERSONS
    scale: PositiveBounds = (0.5, 2.0)
    keep_ratio: bool = True
    relative_to: Literal["processor", "image"] = "processor"

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `RandomScaleResize`."""
        return RandomScaleResize(self, context)


class BalancedCrop(v2.RandomCrop):
    """A random crop, redrawn up to ten times while one class exceeds `largest_share` of the pixels not ignored.

    With `class_probability`, the crop has a pixel of a class drawn uniformly from those of the mask instead.
    """

    def __init__(
        self,
        size: tuple[int, int],
        fill: dict[type | str, Any],
        largest_share: float,
        ignore_index: int,
        class_probability: float = 0.0,
    ):
        super().__init__(size, pad_if_needed=True, fill=fill)
        self.largest_share, self.ignore_index = largest_share, ignore_index
        self.class_probability = class_probability

    def place_on_class(self, mask: torch.Tensor, window: dict[str, Any]) -> dict[str, Any]:
        """Move the window to a random place with a random pixel of a random class; unchanged if all is ignored.

        In a class map of segments, negative values are pixels without a segment.
        """
        classes = mask.unique()
        classes = classes[(classes != self.ignore_index) & (classes >= 0)]
        if not len(classes):
            return window
        pixels = (mask == classes[torch.randint(len(classes), ())]).nonzero()
        row, column = pixels[torch.randint(len(pixels), ())].tolist()
        left, upper, right, lower = window["padding"]
        height, width = mask.shape[-2] + upper + lower, mask.shape[-1] + left + right
        return window | {
            "top": random_start(row + upper, window["height"], height),
            "left": random_start(column + left, window["width"], width),
        }

    def is_balanced(self, mask: torch.Tensor, window: dict[str, Any]) -> bool:
        """Return whether the window has at least two classes, and none exceeds `largest_share`."""
        left, top = (window["padding"][side] for side in (0, 1))
        rows = slice(max(window["top"] - top, 0), window["top"] - top + window["height"])
        columns = slice(max(window["left"] - left, 0), window["left"] - left + window["width"])
        ignored = max(self.ignore_index, 0)  # 0 in a class map of segments
        pixels = torch.bincount(mask[rows, columns].flatten(), minlength=ignored + 1)
        pixels[ignored] = 0
        return bool((pixels > 0).sum() > 1 and pixels.max() < self.largest_share * pixels.sum())

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window."""
        window = super().make_params(flat_inputs)
        masks = [value for value in flat_inputs if isinstance(value, tv_tensors.Mask)]
        if not masks:
            return window
        mask, areas = masks[0].as_subclass(torch.Tensor), current_areas()
        if self.class_probability and torch.rand(()) < self.class_probability:
            return self.place_on_class(mask if areas is None else areas.class_map(mask) - 2, window)
        if areas is not None:
            mask = areas.class_map(mask)
        if self.largest_share >= 1:
            return window
        for _ in range(TRIES - 1):
            if self.is_balanced(mask, window):
                break
            window = super().make_params(flat_inputs)
        return window


def random_start(position: int, length: int, whole: int) -> int:
    """Draw the start of a window of `length` in 0 .. `whole` that contains `position`."""
    first, last = max(0, position - length + 1), min(position, whole - length)
    return int(torch.randint(first, last + 1, ()))


class RandomCrop(TransformOptions):
    """A random crop of `size` (default: the model's input size); smaller images are padded at random sides.

    `max_class_share` is mmseg's `cat_max_ratio`: if it is below 1, crops in which one class exceeds it are redrawn.
    `class_probability` is the share of crops that are placed on a class: one of the mask's classes is drawn uniformly,
    and the crop contains a random pixel of it (as nnU-Net oversamples the foreground).
    """

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    max_class_share: float = Field(1.0, gt=0, le=1)
    class_probability: Share = 0.0
    fill: Fill = 0

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `BalancedCrop`."""
        size = context.transform_size(self.size, "random_crop")
        fill = context.fill(self.fill)
        return BalancedCrop(size, fill, self.max_class_share, context.ignore_index, self.class_probability)


class BottomRightPad(v2.Transform):
    """Pad at the bottom and on the right."""

    def __init__(self, options: "Pad", fill: dict[type | str, Any]):
        super().__init__()
        self.options, self.fill = options, fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Compute the padding."""
        height, width = find_image(flat_inputs).shape[-2:]
        return {
            "padding": [
                0,
                0,
                self.options.padded_length(width, 1) - width,
                self.options.padded_length(height, 0) - height,
            ]
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad an image or a mask."""
        fill = self.fill.get(type(inpt))
        return inpt if fill is None else F.pad(inpt, params["padding"], fill=fill)


class Pad(TransformOptions):
    """Pad to at least `size`, or to a multiple of `divisor`, at the bottom and on the right, as the image processor."""

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    divisor: Count | None = None
    fill: Fill = 0

    @model_validator(mode="after")
    def _check_target(self) -> "Pad":
        if (self.size is None) == (self.divisor is None):
            raise HfVitSegError("set either size or divisor")
        return self

    def padded_length(self, side: int, axis: int) -> int:
        """Return the length of `side` after padding (axis 0: height, 1: width)."""
        if self.divisor is not None:
            return round_up(side, self.divisor)
        return max(side, as_height_width(self.size or side)[axis])

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `BottomRightPad`."""
        return BottomRightPad(self, context.fill(self.fill))


class ExactResizedCrop(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop with nearest-exact masks, and images in channels-last layout."""

    def __init__(self, options: "RandomResizedCrop", size: tuple[int, int], resample: int):
        super().__init__(size, options.scale, options.ratio)
        self.target, self.resample = size, resample

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop."""
        crop = super().make_params(flat_inputs)
        rescale_areas(self.target[0] * self.target[1] / (crop["height"] * crop["width"]))
        return crop

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop and resize an image or a mask."""
        if not isinstance(inpt, tv_tensors.Image | tv_tensors.Mask):
            return inpt
        return resize_value(F.crop(inpt, **params), self.target, self.resample)


class RandomResizedCrop(TransformOptions):
    """Crop a random share (`scale`) of the image's area with a random aspect ratio, and resize it to `size`."""

    tasks: ClassVar = WITHOUT_PERSONS
    size: Sides | None = None
    scale: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], Share], AfterValidator(check_ascending)] = (0.08, 1.0)
    ratio: PositiveBounds = (3 / 4, 4 / 3)

    def build(self, context: TransformContext) -> v2.Transform:
        """Build an `ExactResizedCrop`."""
        size = context.transform_size(self.size, "random_resized_crop")
        return ExactResizedCrop(self, size, context.resample)


__all__ = ["Pad", "RandomCrop", "RandomResize", "RandomResizedCrop", "Resize"]
