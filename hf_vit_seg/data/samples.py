"""What a source of data gives, before label map and transforms.

Shapes: C bands, H W pixels, K keypoints.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Person:
    """One person (or animal) of an image, as COCO annotates it.

    `box` is (x, y, width, height) in pixels of the image, `keypoints` (K, 3) are x, y and a visibility of which 0
    means unlabelled; `area` is that of the person's outline in pixels, which the keypoint similarity divides by.
    """

    box: tuple[float, float, float, float]
    keypoints: torch.Tensor
    area: float
    image_id: int
    annotation_id: int


@dataclass(frozen=True, eq=False)
class RawSample:
    """An image (C, H, W), uint8 or float32, and its target.

    `target` is a raw mask, (H, W) int64 of values or (3, H, W) uint8 of colors; a class index; a person; or None.
    `name` is unique within the source and tells people where the sample comes from.
    """

    name: str
    image: torch.Tensor
    target: "torch.Tensor | int | Person | None"
