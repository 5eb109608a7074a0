"""COCO keypoint annotations: one sample per person (or other object with keypoints).

Shapes: K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from hf_vit_seg.data.samples import Person, RawSample

from .coco_files import AnnotationPlaces, CocoAnnotation, CocoFile, CocoImage, Id, read_coco
from .coco_shapes import check_pixel_units, check_within
from .source import Place, SourceError, SourceRecord


class CocoKeypointsSource(SourceRecord):
    """COCO keypoint annotations: a sample is one person of an image, cropped to its box by the transforms.

    Crowd regions, people with fewer labeled keypoints than `keypoints`, and people without a box inside the image are
    skipped, as in ViTPose (mmpose). Boxes are clipped to the image.

    annotations: the JSON file; or a list of files with separate ids, which are merged by file and category names.
    images: the folder that its file names are relative to.
    category: the name of the category with keypoints.
    keypoints: the minimum number of labeled keypoints (hidden or visible).
    """

    tasks: ClassVar = ("pose",)

    annotations: AnnotationPlaces
    images: Place
    category: str = "person"
    keypoints: int = Field(1, ge=1)

    def open(self, task: str, channels: int = 3) -> "CocoKeypoints":
        """Read the annotations. Raises SourceError if none has enough keypoints."""
        coco = read_coco(self.annotations, self.images)
        category = coco.category(self.category)
        names = category.keypoints
        if not names:
            raise SourceError(f"{coco.title}: the category '{self.category}' has no keypoints")
        ordered: dict[Id, list[CocoAnnotation]] = {image: [] for image in coco.images}
        for annotation in coco.annotations:
            if annotation.category_id == category.id and not annotation.iscrowd:
                ordered[annotation.image_id].append(annotation)
        people = People.of(coco, [a for group in ordered.values() for a in group], len(names), self.keypoints)
        if not len(people.ids):
            raise SourceError(f"{coco.title}: no '{self.category}' has {self.keypoints} or more labeled keypoints")
        labeled = (people.keypoints[..., 2] > 0).nonzero()
        check_pixel_units(people.keypoints[labeled][:, :2].tolist(), coco.title)
        return CocoKeypoints(coco, people, tuple(names), channels)


@dataclass(frozen=True, eq=False)
class People:
    """Annotations as arrays, which forked loader processes share.

    `ids`, `images` and `areas` are (N,), `boxes` (N, 4), `keypoints` (N, K, 3).
    """

    ids: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray

    @classmethod
    def of(cls, coco: CocoFile, annotations: Sequence[CocoAnnotation], count: int, least: int) -> "People":
        """Select annotations with at least `least` labeled keypoints (of `count`) and a box inside the image."""
        rows = []
        for annotation in annotations:
            flat, bbox = annotation.keypoints or [0] * 3 * count, annotation.bbox or []
            if len(flat) != 3 * count or len(bbox) != 4:
                raise SourceError(
                    f"{coco.title}: annotation {annotation.id} has {len(flat)} keypoint numbers and {len(bbox)} bbox "
                    f"numbers, expected {3 * count} and 4"
                )
            if not isinstance(annotation.id, int) or not isinstance(annotation.image_id, int):
                raise SourceError(
                    f"{coco.title}: ids of annotations and images must be integers, found {annotation.id!r}"
                )
            points = keypoint_array(coco, annotation, flat, bbox)
            box = clip_box(bbox, coco.images[annotation.image_id])
            if (points[:, 2] > 0).sum() >= least and box[2] > 0 and box[3] > 0:
                area = annotation.area or box[2] * box[3]
                rows.append((annotation.id, annotation.image_id, box, area, points))
        ids, images, boxes, areas, keypoints = zip(*rows, strict=True) if rows else ((),) * 5
        return cls(np.array(ids), np.array(images), np.array(boxes), np.array(areas), np.array(keypoints))


def keypoint_array(
    coco: CocoFile, annotation: CocoAnnotation, flat: Sequence[float], box: Sequence[float]
) -> np.ndarray:
    """Convert the keypoints of an annotation to (K, 3). Raises SourceError for numbers that do not fit the image."""
    where = f"{coco.title}: annotation {annotation.id}"
    if not np.isfinite([*flat, *box, annotation.area or 0]).all():
        raise SourceError(f"{where} has numbers that are not finite")
    if (annotation.area or 0) < 0:
        raise SourceError(f"{where} has the area {annotation.area}, expected 0 or more")
    points = np.array(flat, np.float32).reshape(-1, 3)
    image = coco.images[annotation.image_id]
    try:
        check_within(points[points[:, 2] > 0, :2].flatten().tolist(), image.height, image.width)
    except SourceError as error:
        raise SourceError(f"{where} ({image.file_name}): {error}") from None
    return points


def clip_box(box: Sequence[float], image: CocoImage) -> tuple[float, float, float, float]:
    """Clip a box (x, y, width, height) to its image."""
    x, y, width, height = box
    left, top = max(0.0, x), max(0.0, y)
    return left, top, min(image.width, x + width) - left, min(image.height, y + height) - top


@dataclass(frozen=True, eq=False)
class CocoKeypoints:
    """People in the order of their images; `class_names` are the names of the keypoints."""

    coco: CocoFile
    people: People
    class_names: tuple[str, ...]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.people.ids)

    def read(self, index: int) -> RawSample:
        """Read the whole image of a person. Raises ImageFileError."""
        return RawSample(self.name(index), self.coco.read(self.image(index), self.channels), self.person(index))

    def image(self, index: int) -> CocoImage:
        """The image of a person."""
        return self.coco.images[int(self.people.images[index])]

    def person(self, index: int) -> Person:
        """A person's box and keypoints, in pixels of the image."""
        x, y, width, height = self.people.boxes[index].tolist()
        return Person(
            box=(x, y, width, height),
            keypoints=torch.from_numpy(self.people.keypoints[index].copy()),
            area=float(self.people.areas[index]),
            image_id=int(self.people.images[index]),
            annotation_id=int(self.people.ids[index]),
        )

    def name(self, index: int) -> str:
        """The image's file name and the annotation's id."""
        return f"{self.image(index).file_name}#{self.people.ids[index]}"

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.coco.file(self.image(index)),)

    def group(self, index: int) -> int:
        """The image id: people of one image stay in one split."""
        return int(self.people.images[index])


__all__ = ["CocoKeypointsSource"]
