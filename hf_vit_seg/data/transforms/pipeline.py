"""The table of transforms for training samples, and the pipeline that applies a recipe's list of them.

Shapes: C channels, H W pixels, K keypoints. Validation and prediction use the saved image processor instead of
transforms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_vit_seg.data.samples import Segments
from hf_vit_seg.entry_points import TransformRecord
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_inputs import EIGHT_BIT_WHITE, scale_pixels
from hf_vit_seg.records import RecordError, Table

from .context import WITHOUT_PERSONS, Fill, Share, TransformContext, TransformOptions
from .crops import Pad, RandomCrop, RandomResize, RandomResizedCrop, Resize
from .person_crops import PersonAffine
from .photometric import Photometric, RandAugment, RandomBlur, RandomErasing, TrivialAugment
from .sample_segments import SegmentAreas, use_areas


class RandomFlip(TransformOptions):
    """Flip with these probabilities; for pose, `person_affine` flips and swaps left and right keypoints."""

    tasks: ClassVar = WITHOUT_PERSONS
    horizontal: Share = 0.5
    vertical: Share = 0.0

    def build(self, context: TransformContext) -> Callable[..., Any]:
        return v2.Compose([v2.RandomHorizontalFlip(self.horizontal), v2.RandomVerticalFlip(self.vertical)])


class RandomRotate(TransformOptions):
    """Rotate about the center by at most `degrees` in either direction, without changing the size."""

    tasks: ClassVar = WITHOUT_PERSONS
    degrees: float = Field(10, ge=0, le=180)
    probability: Share = 0.5
    fill: Fill = 0

    def build(self, context: TransformContext) -> Callable[..., Any]:
        fill = context.fill(self.fill)
        rotation = v2.RandomRotation((-self.degrees, self.degrees), v2.InterpolationMode.BILINEAR, fill=fill)
        return v2.RandomApply([rotation], self.probability)


TRANSFORMS: Table[TransformOptions] = Table(
    "transform",
    {
        "pad": Pad,
        "person_affine": PersonAffine,
        "photometric": Photometric,
        "rand_augment": RandAugment,
        "random_blur": RandomBlur,
        "random_crop": RandomCrop,
        "random_erasing": RandomErasing,
        "random_flip": RandomFlip,
        "random_resize": RandomResize,
        "random_resized_crop": RandomResizedCrop,
        "random_rotate": RandomRotate,
        "resize": Resize,
        "trivial_augment": TrivialAugment,
    },
    kind=TransformOptions,
    group="hf_vit_seg.transforms",
    contract=TransformRecord,
)


class Pipeline:
    """A sequence of transforms, from plain tensors to plain tensors.

    A mask (H, W) int64 or the map of `Segments` is transformed together with the image. A `Person` is only changed by
    `person_affine`, a class index never.
    """

    def __init__(self, steps: Sequence[Callable[..., Any]], ignore_index: int = 255, white: float = EIGHT_BIT_WHITE):
        self.transform = v2.Compose(list(steps)) if steps else None
        # torchvision resizes and counts uint8 far faster than int64.
        self.mask_dtype = torch.uint8 if ignore_index <= 255 else torch.int32
        self.white = white  # white level of 16-bit RGB images

    def __call__(
        self, image: torch.Tensor, target: Any, stuff: frozenset[int] = frozenset()
    ) -> tuple[torch.Tensor, Any]:
        """Transform an image (C, H, W) and its target; `stuff` are the classes without objects.

        RGB images of 16 bits are scaled first, so that transforms get uint8 or float32.
        """
        image = scale_pixels(image, self.white)
        if self.transform is None:
            return image, target
        if isinstance(target, Segments):
            return self.transform_segments(image, target, stuff)
        is_mask = isinstance(target, torch.Tensor)
        wrapped = tv_tensors.Mask(target.to(self.mask_dtype)) if is_mask else target
        image, target = self.transform(tv_tensors.Image(image), wrapped)
        target = target.as_subclass(torch.Tensor).to(torch.int64) if is_mask else target
        return image.as_subclass(torch.Tensor), target

    def transform_segments(
        self, image: torch.Tensor, segments: Segments, stuff: frozenset[int]
    ) -> tuple[torch.Tensor, Segments]:
        """Transform an image and its segments; objects that are cut to slivers are removed."""
        assert self.transform is not None
        areas = SegmentAreas(segments, stuff)
        with use_areas(areas):
            image, ids = self.transform(tv_tensors.Image(image), tv_tensors.Mask(segments.ids))
        return image.as_subclass(torch.Tensor), areas.remove_slivers(ids.as_subclass(torch.Tensor).to(torch.int32))


def read_pipeline(entries: Sequence[Any], context: TransformContext, location: str = "transforms") -> Pipeline:
    """Build a recipe's list of transforms, each a name or a name with settings. Raises RecordError."""
    rows = [TRANSFORMS.read_entry(entry, f"{location}.{number}") for number, entry in enumerate(entries)]
    if context.task == "pose" and not any(isinstance(row, PersonAffine) for row in rows):
        raise RecordError(f"{location}: the task pose requires person_affine, which crops the person from the image")
    steps = [build_step(row, context, f"{location}.{number}") for number, row in enumerate(rows)]
    return Pipeline(steps, context.ignore_index, context.white)


def build_step(row: TransformOptions, context: TransformContext, location: str) -> Callable[..., Any]:
    """Build one transform. Raises RecordError if it does not support the task, model or data."""
    if context.task not in row.tasks:
        tasks = " or ".join(sorted(row.tasks))
        raise RecordError(f"{location}: this transform requires the task {tasks}, found {context.task}")
    try:
        step = row.build(context)
    except HfVitSegError as error:
        raise RecordError(f"{location}: {error}") from error
    name = type(row).__name__
    if not callable(step):
        raise RecordError(f"{location}: {name}.build returned {type(step).__name__}, expected a callable")
    return step if type(row) in TRANSFORMS.own.values() else PluginStep(step, f"{location}: {name}")


@dataclass(frozen=True)
class PluginStep:
    """A transform of another package, whose results are checked; `name` is its name in messages."""

    step: Callable[..., Any]
    name: str

    def __call__(self, image: torch.Tensor, target: Any) -> tuple[torch.Tensor, Any]:
        """Transform an image and its target. Raises RecordError if the result is not an image and a target."""
        result = self.step(image, target)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.Tensor)):
            raise RecordError(
                f"{self.name} must return an image (a tensor) and a target, found {describe_result(result)}"
            )
        return result


def describe_result(result: Any) -> str:
    """Describe the type of a transform's result."""
    if isinstance(result, tuple):
        return f"({', '.join(type(part).__name__ for part in result)})"
    return type(result).__name__


__all__ = ["TRANSFORMS", "Pipeline", "TransformContext", "TransformOptions", "read_pipeline"]
