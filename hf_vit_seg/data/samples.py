"""Samples as a data source returns them, before the class table and the transforms are applied.

Shapes: C channels, H W pixels, K keypoints or classes, n segments.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from hf_vit_seg.data.images.files import ImageBytes


@dataclass(frozen=True, eq=False)
class Person:
    """One person (or animal) of an image, as COCO annotates it.

    `box` is (x, y, width, height) in pixels of the image, `keypoints` (K, 3) are x, y and visibility (0: unlabeled).
    `area` is the area of the person's outline in pixels, which normalizes the keypoint similarity. A `crowd` is a
    group of persons, which is not a sample: predictions that match it are ignored in the evaluation.
    """

    box: tuple[float, float, float, float]
    keypoints: torch.Tensor
    area: float
    image_id: int
    annotation_id: int
    crowd: bool = False


@dataclass(frozen=True)
class Labels:
    """The classes of an image that may have any number of them."""

    indices: tuple[int, ...]

    def as_vector(self, num_classes: int) -> torch.Tensor:
        """Return the classes as (K,) float32 of 0 and 1."""
        vector = torch.zeros(num_classes)
        vector[list(self.indices)] = 1
        return vector


@dataclass(frozen=True, eq=False)
class Segments:
    """The objects (things) and regions (stuff) of an image, which never overlap.

    `ids` (H, W) int32: 0 is background, -1 is ignored, and i >= 1 is the segment of class `classes[i - 1]`. `crowds`
    (H, W) int32 are the classes of ignored pixels in groups of things that are not annotated one by one, -1 elsewhere;
    None without groups. Only metrics read them: transforms do not keep them.
    """

    ids: torch.Tensor
    classes: tuple[int, ...]
    crowds: torch.Tensor | None = None

    def areas(self) -> torch.Tensor:
        """Return the number of pixels of each segment (n,) int64."""
        return torch.bincount(self.ids.flatten().clamp(min=0), minlength=len(self.classes) + 1)[1:]

    def label_map(self, background: int, ignored: int) -> torch.Tensor:
        """Return the class of each pixel (H, W) int64; `background` for pixels of no segment, `ignored` for ignored
        ones.
        """
        return torch.tensor([ignored, background, *self.classes])[self.ids.to(torch.int64) + 1]


@dataclass(frozen=True, eq=False)
class RawSegments:
    """Segments with raw values as classes, before the class table is applied.

    `ids` is as in `Segments`, and `classes` are raw values; None if the source knows no classes, and the recipe has
    one. `regions` are the numbers of the segments that are not single objects: stuff, or a group of things that are not
    annotated one by one (a crowd), whose pixels are ignored. `overlaps` counts the pixels that more than one
    annotation covers.
    """

    ids: torch.Tensor
    classes: tuple[int, ...] | None
    regions: frozenset[int] = frozenset()
    overlaps: int = 0


@dataclass(frozen=True, eq=False)
class RawSample:
    """An image (C, H, W), uint8, uint16 (RGB of 16 bits, see `scale_pixels`) or float32, and its target.

    `target` is a raw mask, (H, W) int64 of values or (3, H, W) uint8 of colors; a class index; several, as `Labels`; a
    person; the segments of an image; or None.
    `missing` (H, W) are pixels of the image without data, and `unlabeled` (H, W) those whose label is ignored because
    image or mask have no data there; None if there are none.
    `name` is unique within the source and identifies the sample in messages. `notes` are warnings of the source, the
    same text for the same kind of finding: `check-data` counts the samples that have it. `encoded` are the files that
    image and mask were read from, None for arrays; empty if they are those of `Source.files`.
    """

    name: str
    image: torch.Tensor
    target: "torch.Tensor | int | Labels | Person | RawSegments | Segments | None"
    notes: tuple[str, ...] = ()
    missing: torch.Tensor | None = None
    unlabeled: torch.Tensor | None = None
    encoded: tuple[Path | ImageBytes | None, ...] = field(default=(), repr=False)
