"""The options that transforms share, and the context that they are built with.

Sizes are (height, width). Images are tv_tensors.Image (C, H, W), uint8 or float32 with their raw values; masks are
tv_tensors.Mask (H, W) of class indices, so torchvision's transforms can be used together with ours.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torchvision import tv_tensors
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_inputs import EIGHT_BIT_WHITE, UINT16_MAX, highest_value
from hf_vit_seg.models.image_processing_segmentation import target_sides
from hf_vit_seg.records import Record

TASKS = frozenset({"segmentation", "classification", "pose", *SEGMENT_TASKS})
WITHOUT_PERSONS = TASKS - {"pose"}  # tasks of transforms that move pixels but not boxes and keypoints


def check_ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the bounds, or raise if the first exceeds the second."""
    if bounds[0] > bounds[1]:
        raise HfVitSegError(f"the lower bound must come first, found {list(bounds)}")
    return bounds


MAX_BOUND = 1000  # limit for scales, ratios and standard deviations
Bound = Annotated[float, Field(gt=0, le=MAX_BOUND)]
PositiveBounds = Annotated[tuple[Bound, Bound], AfterValidator(check_ascending)]
MAX_SIDE = 2**16  # longest side of transformed images, in pixels
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Sides = Side | tuple[Side, Side]
Share = Annotated[float, Field(ge=0, le=1)]
Fill = float | Literal["mean"]


def as_height_width(sides: int | tuple[int, int]) -> tuple[int, int]:
    """Expand one side length to (height, width)."""
    return (sides, sides) if isinstance(sides, int) else sides


def keep_size(height: int, width: int) -> tuple[int, int]:
    return height, width


def find_image(inputs: list[Any]) -> tv_tensors.Image:
    """Find the image in a transform's inputs."""
    return next(value for value in inputs if isinstance(value, tv_tensors.Image))


@dataclass(frozen=True)
class TransformContext:
    """The properties of the task, the data and the saved image processor that transforms depend on.

    `output_size` maps the (height, width) of an image to the size that the processor resizes it to, `input_size` is
    the model's input size if it is constant, `resample` is PIL's number of the filter (2: bilinear). `mean` and `std`
    have one entry per channel, in raw values of the images, and `white` is that of RGB images of 16 bits, see
    `scale_pixels`. `keypoint_flip_pairs` are swapped by horizontal flips; None if they are unknown. `ignore_index` is
    -1 for maps of segments.
    """

    task: str
    output_size: Callable[[int, int], tuple[int, int]]
    input_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 2
    white: float = EIGHT_BIT_WHITE
    ignore_index: int = 255
    keypoint_flip_pairs: tuple[tuple[int, int], ...] | None = None

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.mean)

    @classmethod
    def from_processor(
        cls,
        processor: BaseImageProcessor,
        task: str,
        ignore_index: int = 255,
        keypoint_flip_pairs: tuple[tuple[int, int], ...] | None = None,
    ) -> "TransformContext":
        """Read the context from the fields of an image processor."""
        fields = processor.to_dict()
        size = SizeDict(**(fields.get("size") or {}))
        rule = partial(target_sides, size=size, divisor=fields.get("size_divisor"))
        output_size = rule if fields.get("do_resize", True) else keep_size
        raw = fields["rescale_factor"] if fields.get("do_rescale", True) else 1.0
        mean, std = fields.get("image_mean") or (0.0,) * 3, fields.get("image_std") or (1.0,) * 3
        return cls(
            task=task,
            output_size=output_size,
            input_size=constant_output_size(fields, output_size),
            mean=tuple(value / raw for value in mean),
            std=tuple(value / raw for value in std),
            white=processor_white(processor),
            resample=int(fields.get("resample", 2)),
            ignore_index=-1 if task in SEGMENT_TASKS else ignore_index,
            keypoint_flip_pairs=keypoint_flip_pairs,
        )

    def stored_mean(self, image: torch.Tensor) -> tuple[float, ...]:
        """Return the mean of each channel in the values of an image before `scale_pixels`."""
        share = UINT16_MAX / self.white if image.dtype == torch.uint16 and self.white != 1 else 1.0
        return tuple(value * share for value in self.mean)

    def fill(self, image: Fill) -> dict[type | str, Any]:
        """Return the `fill` argument of torchvision's transforms; masks are filled with the ignore index."""
        return {
            tv_tensors.Image: list(self.mean) if image == "mean" else image,
            tv_tensors.Mask: self.ignore_index,
        }

    def transform_size(self, sides: int | tuple[int, int] | None, location: str) -> tuple[int, int]:
        """Return a transform's `size` as (height, width); the model's input size if None."""
        if sides is not None:
            return as_height_width(sides)
        if self.input_size is None:
            raise HfVitSegError(
                f"{location} needs a size, because the image processor's output size depends on the image"
            )
        return self.input_size


def processor_white(processor: Any) -> float:
    """Return the value of white that an image processor expects, see `highest_value`."""
    return highest_value(getattr(processor, "do_rescale", True), getattr(processor, "rescale_factor", 1 / 255))


def constant_output_size(
    fields: dict[str, Any], output_size: Callable[[int, int], tuple[int, int]]
) -> tuple[int, int] | None:
    """Return the (height, width) of a processor's outputs, or None if it depends on the image."""
    crop, size = (SizeDict(**(fields.get(key) or {})) for key in ("crop_size", "size"))
    if fields.get("do_center_crop") and crop.height and crop.width:
        return crop.height, crop.width
    return output_size(1, 1) if fields.get("do_resize", True) and size.height and size.width else None


class TransformOptions(Record):
    """The options of a transform in a recipe; base class of the entries in the table of transforms."""

    tasks: ClassVar[frozenset[str]] = TASKS

    def build(self, context: TransformContext) -> Callable[..., Any]:
        """Build the transform: a callable from image and target to image and target."""
        raise NotImplementedError


__all__ = ["TransformContext", "TransformOptions", "as_height_width", "find_image", "processor_white"]
