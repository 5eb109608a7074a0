"""One person cut out of an image, and keypoints from the image into the crop and back.

Sources: unbiased data processing (UDP, arXiv 1911.07524) for the geometry, mmpose 0.x for padding, scale and rotation.

Shapes: C bands, H W pixels of the image, h w of the crop, K keypoints. Points are (x, y), the first pixel's center is
(0, 0). By UDP a region w pixels wide is mapped onto the w - 1 steps between the crop's pixels.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, PositiveFloat
from torch.nn.functional import grid_sample
from torchvision import tv_tensors
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.samples import Person
from hf_vit_seg.errors import HfVitSegError

from .context import Share, Sides, TransformContext, TransformOptions

PADDING = 1.25  # of a person's box (mmpose)


@dataclass(frozen=True, eq=False)
class PersonCrop:
    """A region of an image and the size it is brought to.

    `matrix` (2, 3) float64 takes a point of the image to one of the crop, whose `size` is (height, width).
    """

    matrix: torch.Tensor
    size: tuple[int, int]

    @classmethod
    def around(
        cls,
        box: tuple[float, float, float, float],
        size: tuple[int, int],
        scale: float = PADDING,
        rotation: float = 0.0,
        mirrored: bool = False,
    ) -> "PersonCrop":
        """The region around `box` (x, y, width, height), widened to the shape of `size`, and times `scale`.

        `rotation` is in degrees, clockwise on the screen; `mirrored` crops change left and right afterwards.
        """
        x, y, width, height = box
        ratio = size[1] / size[0]
        width, height = (scale * side for side in (max(width, height * ratio), max(height, width / ratio)))
        if not width > 0:
            raise HfVitSegError(f"a person's box has a width and a height, found {box}")
        steps = torch.tensor([size[1] - 1, size[0] - 1], dtype=torch.float64)  # (x, y)
        pitch = steps / torch.tensor([width, height], dtype=torch.float64)
        cosine, sine = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
        linear = pitch[:, None] * torch.tensor([[cosine, -sine], [sine, cosine]], dtype=torch.float64)
        offset = steps / 2 - linear @ torch.tensor([x + box[2] / 2, y + box[3] / 2], dtype=torch.float64)
        matrix = torch.cat([linear, offset[:, None]], dim=1)
        if mirrored:
            matrix[0] = torch.tensor([0.0, 0.0, size[1] - 1.0], dtype=torch.float64) - matrix[0]
        return cls(matrix, size)

    def into(self, points: torch.Tensor) -> torch.Tensor:
        """Points (..., 2) of the image as points of the crop."""
        return moved(points, self.matrix)

    def back(self, points: torch.Tensor) -> torch.Tensor:
        """Points (..., 2) of the crop as points of the image."""
        return moved(points, self.inverse)

    @property
    def inverse(self) -> torch.Tensor:
        """The matrix (2, 3) from the crop to the image."""
        linear = torch.linalg.inv(self.matrix[:, :2])
        return torch.cat([linear, -linear @ self.matrix[:, 2:]], dim=1)

    def cut(self, image: torch.Tensor) -> torch.Tensor:
        """The crop (C, h, w) of an image (C, H, W): bilinear as in mmpose, 0 beyond the image, of the image's dtype."""
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in self.size)
        places = self.back(torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1))  # (h, w, 2)
        image, first = window_around(image, places)
        sides = places.new_tensor([image.shape[2], image.shape[1]])
        grid = (2 * (places - first) + 1) / sides - 1  # as align_corners=False counts
        pixels = grid_sample(
            image[None].to(torch.float32), grid[None].to(torch.float32), padding_mode="zeros", align_corners=False
        )[0]
        return pixels.round_().clamp_(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else pixels


def moved(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Points (..., 2) through a matrix (2, 3)."""
    matrix = matrix.to(points.device, torch.float64)
    return (points.to(torch.float64) @ matrix[:, :2].T + matrix[:, 2]).to(points.dtype)


def window_around(image: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The part of an image (C, H, W) that is needed to read it at `places` (..., 2), and its first pixel's (x, y)."""
    edge = places.new_tensor([image.shape[2] - 1, image.shape[1] - 1])
    first = torch.minimum(places.flatten(0, -2).amin(0).floor().sub(1).clamp(min=0), edge)
    last = torch.minimum(places.flatten(0, -2).amax(0).ceil().add(1).clamp(min=0), edge)
    left, top, right, bottom = torch.cat([first, last]).to(torch.int64).tolist()
    return image[:, top : bottom + 1, left : right + 1], first


def mirrored_order(keypoints: int, pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """Which keypoint of the person each one of the mirrored person is."""
    order = list(range(keypoints))
    for left, right in pairs:
        if max(left, right) >= keypoints:
            raise HfVitSegError(
                f"the model's pose_flip_pairs name {left, right}, but the data has {keypoints} keypoints"
            )
        order[left], order[right] = right, left
    return order


class RandomPersonCrop:
    """A person's image and target as the model takes them: the crop, and keypoints (K, 3) in its pixels."""

    def __init__(self, options: "PersonAffine", size: tuple[int, int], pairs: tuple[tuple[int, int], ...]):
        self.options, self.size, self.pairs = options, size, pairs

    def __call__(self, image: torch.Tensor, person: Person) -> tuple[tv_tensors.Image, torch.Tensor]:
        """Image (C, H, W) and person to image (C, h, w) and keypoints (K, 3): x, y, visibility."""
        options = self.options
        chances, spread = torch.rand(2).tolist(), torch.randn(2).clamp(-2, 2).tolist()
        scale = options.padding * (1 + options.scale * max(min(spread[0], 1), -1))
        rotation = options.rotation * spread[1] * (chances[0] < options.rotation_probability)
        mirrored = chances[1] < options.flip
        crop = PersonCrop.around(person.box, self.size, scale, rotation, mirrored)
        keypoints = person.keypoints.to(torch.float32)
        if mirrored:
            keypoints = keypoints[mirrored_order(len(keypoints), self.pairs)]
        points = torch.cat([crop.into(keypoints[:, :2]), keypoints[:, 2:]], dim=1)
        return tv_tensors.Image(crop.cut(image.as_subclass(torch.Tensor))), points


class PersonAffine(TransformOptions):
    """Cut a person out, with random scale, rotation and mirroring as ViTPose is trained with (mmpose).

    The box is padded by 1.25 times 1 + `scale` * z, z normal within -1 .. 1, and turned by `rotation` * z degrees, z
    within -2 .. 2. All zero: the crop that a model is measured with.
    """

    tasks: ClassVar = frozenset({"pose"})
    size: Sides | None = None
    padding: PositiveFloat = PADDING
    scale: float = Field(0.5, ge=0, lt=1)
    rotation: float = Field(40, ge=0, le=90)
    rotation_probability: Share = 0.6
    flip: Share = 0.5

    def build(self, context: TransformContext) -> RandomPersonCrop:
        """The transform itself."""
        size = context.size_of(self.size, "person_affine")
        if self.flip and not context.keypoint_flip_pairs:
            raise HfVitSegError(
                "person_affine cannot mirror: the model's config has no pose_flip_pairs (left and right keypoints); "
                "set flip to 0 or give them"
            )
        return RandomPersonCrop(self, size, context.keypoint_flip_pairs)


def person_size(processor: BaseImageProcessor) -> tuple[int, int]:
    """(height, width) of the crops that a pose model is measured with."""
    return TransformContext.from_processor(processor, "pose").size_of(None, "a pose model")


def person_input(image: torch.Tensor, person: Person, size: tuple[int, int]) -> tuple[torch.Tensor, PersonCrop]:
    """What a pose model is measured with: the crop (C, h, w), and the map whose `back` brings keypoints home."""
    crop = PersonCrop.around(person.box, size)
    return crop.cut(image), crop


__all__ = ["PADDING", "PersonAffine", "PersonCrop", "person_input", "person_size"]
