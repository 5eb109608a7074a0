"""What transforms have in common: the options they are written down as, and what they know of the run around them.

Sizes are (height, width). Images are tv_tensors.Image (C, H, W), uint8 or float32 with their raw values; masks are
tv_tensors.Mask (H, W) of classes. So torchvision's own transforms apply, and ours stand beside them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, PositiveInt
from torchvision import tv_tensors
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_segmentation import target_sides
from hf_vit_seg.records import Record

TASKS = frozenset({"segmentation", "classification", "pose"})
WITHOUT_PERSONS = TASKS - {"pose"}  # of transforms that move pixels: a person's box and keypoints would stay behind


def ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    """Bounds as they are, if the first is not above the second."""
    if bounds[0] > bounds[1]:
        raise HfVitSegError(f"the lower bound stands first, found {list(bounds)}")
    return bounds


PositiveBounds = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(ascending)
]
Sides = PositiveInt | tuple[PositiveInt, PositiveInt]
Share = Annotated[float, Field(ge=0, le=1)]
Fill = float | Literal["mean"]


def both_sides(sides: int | tuple[int, int]) -> tuple[int, int]:
    """One length as the two of a square; (height, width) as they are."""
    return (sides, sides) if isinstance(sides, int) else sides


def as_they_are(height: int, width: int) -> tuple[int, int]:
    """The size of images that are not resized."""
    return height, width


def image_of(inputs: list[Any]) -> tv_tensors.Image:
    """The image among a transform's inputs."""
    return next(value for value in inputs if isinstance(value, tv_tensors.Image))


@dataclass(frozen=True)
class TransformContext:
    """What a transform knows of the task, the data and the saved image processor.

    `resized` gives the size that the processor resizes an image of (height, width) to, `input_size` what the model
    then sees if that is one size for all images, `resample` PIL's number of the filter (2: bilinear). `mean` and `std`
    have one entry per band, in the raw values of the images. `keypoint_flip_pairs` are the keypoints that change
    places in a mirror.
    """

    task: str
    resized: Callable[[int, int], tuple[int, int]]
    input_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: int = 2
    ignore_index: int = 255
    keypoint_flip_pairs: tuple[tuple[int, int], ...] = ()

    @property
    def bands(self) -> int:
        """Bands of an image."""
        return len(self.mean)

    @classmethod
    def from_processor(
        cls,
        processor: BaseImageProcessor,
        task: str,
        ignore_index: int = 255,
        keypoint_flip_pairs: tuple[tuple[int, int], ...] = (),
    ) -> "TransformContext":
        """As an image processor of any architecture is set."""
        fields = processor.to_dict()
        size = SizeDict(**(fields.get("size") or {}))
        rule = partial(target_sides, size=size, divisor=fields.get("size_divisor"))
        resized = rule if fields.get("do_resize", True) else as_they_are
        raw = fields["rescale_factor"] if fields.get("do_rescale", True) else 1.0
        mean, std = fields.get("image_mean") or (0.0,) * 3, fields.get("image_std") or (1.0,) * 3
        return cls(
            task=task,
            resized=resized,
            input_size=fixed_size(fields, resized),
            mean=tuple(value / raw for value in mean),
            std=tuple(value / raw for value in std),
            resample=int(fields.get("resample", 2)),
            ignore_index=ignore_index,
            keypoint_flip_pairs=keypoint_flip_pairs,
        )

    def fill(self, image: Fill) -> dict[type | str, Any]:
        """What stands beyond an image's border, as torchvision's transforms take it: masks are always ignored there."""
        return {
            tv_tensors.Image: list(self.mean) if image == "mean" else image,
            tv_tensors.Mask: self.ignore_index,
        }

    def size_of(self, sides: int | tuple[int, int] | None, place: str) -> tuple[int, int]:
        """A transform's `size` as (height, width), or without one that of the model's input."""
        if sides is not None:
            return both_sides(sides)
        if self.input_size is None:
            raise HfVitSegError(
                f"{place} needs a size: the image processor resizes each image by its own shape, so that its "
                "`size` gives none"
            )
        return self.input_size


def fixed_size(fields: dict[str, Any], resized: Callable[[int, int], tuple[int, int]]) -> tuple[int, int] | None:
    """(height, width) of every image that leaves a processor, or None where it depends on the image."""
    crop, size = (SizeDict(**(fields.get(key) or {})) for key in ("crop_size", "size"))
    if fields.get("do_center_crop") and crop.height and crop.width:
        return crop.height, crop.width
    return resized(1, 1) if fields.get("do_resize", True) and size.height and size.width else None


class TransformOptions(Record):
    """A transform as a recipe writes it down; rows of the table of transforms are its subclasses.

    `build` gives a callable that takes image and target, and returns both: one of torchvision's transforms, or ours.
    """

    tasks: ClassVar[frozenset[str]] = TASKS

    def build(self, context: TransformContext) -> Callable[..., Any]:
        """The transform itself."""
        raise NotImplementedError


__all__ = ["TransformContext", "TransformOptions", "both_sides", "image_of"]
