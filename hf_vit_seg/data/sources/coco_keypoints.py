"""COCO keypoint annotations: one sample per person (or other object with keypoints).

Shapes: K keypoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from hf_vit_seg.data.samples import Person, RawSample
from hf_vit_seg.records import Count, shorten

from .coco_files import CocoAnnotation, CocoFile, CocoImage, Id, Places, read_coco
from .coco_geometry import MAX_EXTENT, check_extent, check_pixel_units, check_within
from .source import SourceError, SourceRecord

ID_RANGE = range(-(2**63), 2**63)  # range of int64
AREA_NOTE = (
    "the person's area is 0, so that no predicted keypoints match it: set it to the area of the outline or of the box, "
    "or remove `area`, which means that of the box"
)
VISIBILITIES = frozenset((0.0, 1.0, 2.0))


class CocoKeypointsSource(SourceRecord):
    """COCO keypoint annotations: a sample is one person of an image, cropped to its box by the transforms.

    Crowd regions, people with fewer labeled keypoints than `keypoints`, and people without a box inside the image are
    skipped, as in ViTPose (mmpose). Boxes are clipped to the image for the crops. Scores are computed from all
    unmodified annotations of the category, as pycocotools does: with boxes that are not clipped, and
    crowds and people with fewer labeled keypoints than `keypoints` are ignored. If an annotation has no `area`, it is
    that of its box, not clipped.

    annotations: the JSON file; or a list of files with separate ids, which are merged by file and category names.
    images: the folder that its file names are relative to; or a list with one folder for each annotation file.
    category: the name of the category with keypoints.
    keypoints: the minimum number of labeled keypoints (hidden or visible).
    """

    tasks: ClassVar = ("pose",)

    annotations: Places
    images: Places
    category: str = "person"
    keypoints: Count = 1

    def open(self, task: str, channels: int = 3) -> "CocoKeypoints":
        """Read the annotations. Raises SourceError if none has enough keypoints."""
        coco = read_coco(self.annotations, self.images)
        category = coco.category(self.category)
        names = category.keypoints
        if not names:
            raise SourceError(f"{coco.title}: the category '{self.category}' has no keypoints")
        ordered: dict[Id, list[CocoAnnotation]] = {image: [] for image in coco.images}
        for annotation in coco.annotations:
            if annotation.category_id == category.id:
                ordered[annotation.image_id].append(annotation)
        everyone = People.of(coco, [a for group in ordered.values() for a in group], len(names))
        samples = everyone.select_samples(coco, self.keypoints)
        if not len(samples):
            raise SourceError(f"{coco.title}: no '{self.category}' has {self.keypoints} or more labeled keypoints")
        keypoints = everyone.keypoints[samples]
        check_pixel_units(keypoints[keypoints[..., 2] > 0][:, :2].tolist(), coco.title)
        return CocoKeypoints(coco, everyone, samples, tuple(names), channels, self.keypoints, category.bones())


@dataclass(frozen=True, eq=False)
class People:
    """Annotations as arrays, which forked loader processes share, in the order of their images.

    `ids`, `images`, `areas` and `crowds` are (N,), `boxes` (N, 4) as annotated, `keypoints` (N, K, 3).
    """

    ids: np.ndarray
    images: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray
    crowds: np.ndarray

    @classmethod
    def of(cls, coco: CocoFile, annotations: Sequence[CocoAnnotation], count: int) -> "People":
        """Read annotations with `count` keypoints. Those without keypoints have visibility 0 everywhere."""
        rows = []
        for annotation in annotations:
            flat, bbox = annotation.keypoints or [0] * 3 * count, annotation.bbox or []
            if annotation.iscrowd and not bbox:
                continue  # nothing can match it
            if len(flat) != 3 * count or len(bbox) != 4:
                raise SourceError(
                    f"{coco.title}: annotation {annotation.id} has {len(flat)} keypoint numbers and {len(bbox)} bbox "
                    f"numbers, expected {3 * count} and 4"
                )
            for number in (annotation.id, annotation.image_id):
                if not isinstance(number, int) or number not in ID_RANGE:
                    raise SourceError(
                        f"{coco.title}: ids of annotations and images must be integers of at most 64 bits for "
                        f"keypoints, found {shorten(number)}"
                    )
            points = keypoint_array(coco, annotation, flat, bbox)
            area = bbox[2] * bbox[3] if annotation.area is None else annotation.area
            rows.append((annotation.id, annotation.image_id, bbox, area, points, bool(annotation.iscrowd)))
        ids, images, boxes, areas, keypoints, crowds = zip(*rows, strict=True) if rows else ((),) * 6
        return cls(
            ids=np.array(ids, np.int64),
            images=np.array(images, np.int64),
            boxes=np.array(boxes, np.float64).reshape(-1, 4),
            areas=np.array(areas, np.float64),
            keypoints=np.array(keypoints, np.float64).reshape(-1, count, 3),
            crowds=np.array(crowds, bool),
        )

    def select_samples(self, coco: CocoFile, min_keypoints: int) -> np.ndarray:
        """Indices of people with `min_keypoints` or more labeled keypoints and a box in the image, without crowds."""
        sizes = np.array([(coco.images[i].width, coco.images[i].height) for i in self.images.tolist()]).reshape(-1, 2)
        clipped = clip_boxes(self.boxes, sizes)
        labeled = (self.keypoints[..., 2] > 0).sum(axis=1) >= min_keypoints
        return np.flatnonzero(labeled & ~self.crowds & (clipped[:, 2:] > 0).all(axis=1))


def keypoint_array(
    coco: CocoFile, annotation: CocoAnnotation, flat: Sequence[float], box: Sequence[float]
) -> np.ndarray:
    """Convert the keypoints of an annotation to (K, 3). Raises SourceError for numbers that do not fit the image.

    Keypoints that are not labeled become 0, 0, 0, as in COCO.
    """
    where = f"{coco.title}: annotation {annotation.id}"
    if not np.isfinite([*flat, *box, annotation.area or 0]).all():
        raise SourceError(f"{where} has numbers that are not finite")
    if (annotation.area or 0) < 0:
        raise SourceError(f"{where} has the area {annotation.area}, expected 0 or more")
    points = np.array(flat, np.float64).reshape(-1, 3)
    if strange := sorted(set(points[:, 2].tolist()) - VISIBILITIES):
        raise SourceError(
            f"{where} has a keypoint of visibility {strange[0]:g}, expected 0 (not labeled), 1 (hidden) or 2 (visible)"
        )
    points[points[:, 2] == 0] = 0
    check_extent(box, where)
    image = coco.images[annotation.image_id]
    if (annotation.area or 0) > MAX_EXTENT * image.height * image.width:
        raise SourceError(f"{where} has the area {annotation.area}, which is larger than its image ({image.file_name})")
    x, y, width, height = box
    try:
        check_within(points[:, :2].flatten().tolist(), image.height, image.width)
        check_within([x, y, x + width, y + height], image.height, image.width)
    except SourceError as error:
        raise SourceError(f"{where} ({image.file_name}): {error}") from None
    return points


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Clip boxes (N, 4) as x, y, width, height to images of `sizes` (N, 2) as width, height."""
    start = np.maximum(boxes[:, :2], 0)
    return np.concatenate([start, np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - start], axis=1)


@dataclass(frozen=True, eq=False)
class CocoKeypoints:
    """People in the order of their images; `class_names` are the names of the keypoints.

    `people` are all annotations of the category, and `samples` the indices of those that are samples.
    """

    coco: CocoFile
    people: People
    samples: np.ndarray
    class_names: tuple[str, ...]
    channels: int = 3
    min_keypoints: int = 1  # labeled keypoints of a person
    bones: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> RawSample:
        """Read the whole image of a person. Raises ImageFileError."""
        person = self.person(index)
        notes = () if person.area else (AREA_NOTE,)
        return RawSample(self.name(index), self.coco.read(self.image(index), self.channels), person, notes)

    def image(self, index: int) -> CocoImage:
        """Return the image that contains the person of a sample; several samples may share one."""
        return self.coco.images[self.group(index)]

    def person(self, index: int) -> Person:
        """Return a person's box, clipped to the image, and keypoints, in pixels of the image."""
        image, row = self.image(index), int(self.samples[index])
        x, y, width, height = clip_boxes(self.people.boxes[[row]], np.array([[image.width, image.height]]))[0].tolist()
        return replace(self.annotation(row), box=(x, y, width, height))

    def annotation(self, row: int) -> Person:
        """Return an annotated person with its box as in the file."""
        people = self.people
        x, y, width, height = people.boxes[row].tolist()
        return Person(
            box=(x, y, width, height),
            keypoints=torch.tensor(people.keypoints[row], dtype=torch.float32),
            area=float(people.areas[row]),
            image_id=int(people.images[row]),
            annotation_id=int(people.ids[row]),
            crowd=bool(people.crowds[row]),
        )

    def labeled_persons(self, images: Iterable[int]) -> list[Person]:
        """Return all annotated persons of images (ids) for the evaluation of predictions, keypoints in float64.

        Boxes are not clipped. Persons with fewer labeled keypoints than the source requires are without keypoints.
        """
        persons = []
        for row in np.flatnonzero(np.isin(self.people.images, list(images))).tolist():
            keypoints = torch.tensor(self.people.keypoints[row])
            if (keypoints[:, 2] > 0).sum() < self.min_keypoints:
                keypoints[:, 2] = 0
            persons.append(replace(self.annotation(row), keypoints=keypoints))
        return persons

    def name(self, index: int) -> str:
        """Return the image's file name and the annotation's id."""
        return f"{self.image(index).file_name}#{self.people.ids[self.samples[index]]}"

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.coco.file(self.image(index)),)

    def group(self, index: int) -> int:
        """Return the image id: people of one image stay in one split."""
        return int(self.people.images[self.samples[index]])


__all__ = ["CocoKeypointsSource"]
