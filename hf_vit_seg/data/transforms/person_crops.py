"""Crops of single persons, and the mapping of keypoints between image and crop.

Sources: unbiased data processing (UDP, arXiv 1911.07524) for the geometry, mmpose 0.x for padding, scale and rotation.

Shapes: C channels, H W pixels of the image, h w of the crop, K keypoints. Points are (x, y) with the center of the
first pixel at (0, 0). By UDP, a region w pixels wide is mapped onto the w - 1 steps between the pixels of the crop.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch.nn.functional import grid_sample
from torchvision import tv_tensors
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.samples import Person
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import Factor

from .context import Share, Sides, TransformContext, TransformOptions

PADDING = 1.25  # scale of a person's box (mmpose)


@dataclass(frozen=True, eq=False)
class PersonCrop:
    """A region of an image, resampled to `size` (height, width).

    `matrix` (2, 3) float64 maps points of the image to points of the crop.
    """

    matrix: torch.Tensor
    size: tuple[int, int]

    @classmethod
    def from_box(
        cls,
        box: tuple[float, float, float, float],
        size: tuple[int, int],
        scale: float = PADDING,
        rotation: float = 0.0,
        mirrored: bool = False,
    ) -> "PersonCrop":
        """Return the region around `box` (x, y, width, height), enlarged to the aspect ratio of `size` and then by
        `scale`.

        `rotation` is in degrees, clockwise on the screen; `mirrored` crops are flipped horizontally afterwards.
        Raises HfVitSegError for a box without area.
        """
        x, y, width, height = box
        ratio = size[1] / size[0]
        width, height = (scale * side for side in (max(width, height * ratio), max(height, width / ratio)))
        if not width > 0:
            raise HfVitSegError(f"a person's box must have a positive size, found {box}")
        steps = torch.tensor([size[1] - 1, size[0] - 1], dtype=torch.float64)  # (x, y)
        pitch = steps / torch.tensor([width, height], dtype=torch.float64)
        cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        linear = pitch[:, None] * torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        offset = steps / 2 - linear @ torch.tensor([x + box[2] / 2, y + box[3] / 2], dtype=torch.float64)
        matrix = torch.cat([linear, offset[:, None]], dim=1)
        if mirrored:
            matrix[0] = torch.tensor([0.0, 0.0, size[1] - 1.0], dtype=torch.float64) - matrix[0]
        return cls(matrix, size)

    def to_crop(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (..., 2) of the image to the crop."""
        return transform_points(points, self.matrix)

    def to_image(self, points: torch.Tensor) -> torch.Tensor:
        """Map points (..., 2) of the crop to the image."""
        return transform_points(points, self.inverse)

    @property
    def inverse(self) -> torch.Tensor:
        """The matrix (2, 3) from the crop to the image."""
        linear = torch.linalg.inv(self.matrix[:, :2])
        return torch.cat([linear, -linear @ self.matrix[:, 2:]], dim=1)

    def extract(self, image: torch.Tensor) -> torch.Tensor:
        """Resample the crop (C, h, w) from an image (C, H, W): bilinear as in mmpose, zero padding, same dtype."""
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in self.size)
        points = self.to_image(torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1))  # (h, w, 2)
        image, first = window_around(image, points)
        sides = points.new_tensor([image.shape[2], image.shape[1]])
        grid = (2 * (points - first) + 1) / sides - 1  # for align_corners=False
        pixels = grid_sample(
            image[None].to(torch.float32), grid[None].to(torch.float32), padding_mode="zeros", align_corners=False
        )[0]
        if image.is_floating_point():
            return pixels
        return pixels.round_().clamp_(0, torch.iinfo(image.dtype).max).to(image.dtype)


def transform_points(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Apply an affine matrix (2, 3) to points (..., 2)."""
    matrix = matrix.to(points.device, torch.float64)
    return (points.to(torch.float64) @ matrix[:, :2].T + matrix[:, 2]).to(points.dtype)


def window_around(image: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop an image (C, H, W) to the pixels needed to sample it at `points` (..., 2); also return its (x, y) offset."""
    edge = points.new_tensor([image.shape[2] - 1, image.shape[1] - 1])
    first = torch.minimum(points.flatten(0, -2).amin(0).floor().sub(1).clamp(min=0), edge)
    last = torch.minimum(points.flatten(0, -2).amax(0).ceil().add(1).clamp(min=0), edge)
    left, top, right, bottom = torch.cat([first, last]).to(torch.int64).tolist()
    return image[:, top : bottom + 1, left : right + 1], first


def flip_order(keypoints: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """Return the index of the original keypoint for each keypoint of the flipped person."""
    order = list(range(keypoints))
    for left, right in pairs:
        if max(left, right) >= keypoints:
            raise HfVitSegError(
                f"the model's pose_flip_pairs contain {left, right}, but the data has {keypoints} keypoints"
            )
        order[left], order[right] = right, left
    return order


class RandomPersonCrop:
    """Crop a person with random scale, rotation and flip, and map the keypoints (K, 3) to the crop."""

    def __init__(self, options: "PersonAffine", size: tuple[int, int], pairs: tuple[tuple[int, int], ...]):
        self.options, self.size, self.pairs = options, size, pairs

    def __call__(self, image: torch.Tensor, person: Person) -> tuple[tv_tensors.Image, torch.Tensor]:
        """Map an image (C, H, W) and a person to a crop (C, h, w) and keypoints (K, 3) as x, y, visibility."""
        options = self.options
        chances, spread = torch.rand(2).tolist(), torch.randn(2).clamp(-2, 2).tolist()
        scale = options.padding * (1 + options.scale * max(min(spread[0], 1), -1))
        rotation = options.rotation * spread[1] * (chances[0] < options.rotation_probability)
        mirrored = chances[1] < options.flip
        crop = PersonCrop.from_box(person.box, self.size, scale, rotation, mirrored)
        keypoints = person.keypoints.to(torch.float32)
        if mirrored:
            keypoints = keypoints[flip_order(len(keypoints), self.pairs)]
        points = torch.cat([crop.to_crop(keypoints[:, :2]), keypoints[:, 2:]], dim=1)
        return tv_tensors.Image(crop.extract(image.as_subclass(torch.Tensor))), points


class PersonAffine(TransformOptions):
    """Crop a person with random scale, rotation and flip, as in the training of ViTPose (mmpose).

    The box is enlarged by 1.25 * (1 + `scale` * z) with a normal z clamped to -1 .. 1, and rotated by `rotation` * z
    degrees with z clamped to -2 .. 2. With all of them 0 this is the crop used in evaluation.
    """

    tasks: ClassVar = frozenset({"pose"})
    size: Sides | None = None
    padding: Factor = PADDING
    scale: float = Field(0.5, ge=0, lt=1)
    rotation: float = Field(40, ge=0, le=90)
    rotation_probability: Share = 0.6
    flip: Share = 0.5

    def build(self, context: TransformContext) -> RandomPersonCrop:
        """Build a `RandomPersonCrop`. Raises HfVitSegError for `flip` without flip pairs."""
        size = context.transform_size(self.size, "person_affine")
        if self.flip and context.keypoint_flip_pairs is None:
            raise HfVitSegError(
                "person_affine with flip requires the left and right keypoints, and no names differ by left and right: "
                "set data.flip_pairs ([] if a flip swaps none), or set flip to 0"
            )
        return RandomPersonCrop(self, size, context.keypoint_flip_pairs or ())


def person_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """Return the (height, width) of the crops that a pose model is evaluated on."""
    return TransformContext.from_processor(processor, "pose").transform_size(None, "a pose model")


def crop_person(image: torch.Tensor, person: Person, size: tuple[int, int]) -> tuple[torch.Tensor, PersonCrop]:
    """Crop a person (C, h, w) for evaluation; also return the `PersonCrop`, to map keypoints back to the image."""
    crop = PersonCrop.from_box(person.box, size)
    return crop.extract(image), crop


__all__ = ["PADDING", "PersonAffine", "PersonCrop", "crop_person", "person_size"]
