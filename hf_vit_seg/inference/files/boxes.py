"""Boxes of persons for pose models, from an annotation or results file in COCO format.

Boxes are (x, y, width, height) in pixels of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from pydantic import TypeAdapter

from hf_vit_seg.data.images.files import ImageFile
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.sources.coco_files import CocoCategory, CocoLists, Id, read_lists, validate_entries
from hf_vit_seg.data.sources.coco_geometry import check_extent
from hf_vit_seg.data.sources.coco_keypoints import clip_boxes
from hf_vit_seg.data.sources.source import SourceError
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.pose_estimator import Box
from hf_vit_seg.text_files import ANNOTATION_BYTES, read_json

PERSON = "person"


class BoxesError(HfVitSegError):
    """A file of boxes that cannot be used."""


@dataclass(frozen=True)
class CocoResult:
    """A detected object; `file_name` is an addition to COCO's format, for images without an integer in their name."""

    image_id: Id
    bbox: tuple[float, float, float, float]
    score: float = 1.0
    category_id: Id = 1
    file_name: str | None = None


RESULTS = TypeAdapter(list[CocoResult])


@dataclass(frozen=True)
class PersonBox:
    """The box of a person, and the score of its detection (1 for annotations)."""

    box: Box
    score: float = 1.0


@dataclass(frozen=True)
class Boxes:
    """Boxes by image: `images` maps names of files to ids, `persons` ids to boxes. `bones` is the skeleton of the
    category.

    In `complete` files (annotations) all images are listed; an image that is missing in others has no persons.
    """

    path: Path
    images: dict[str, Id]
    persons: dict[Id, list[PersonBox]]
    category: Id = 1
    bones: tuple[tuple[int, int], ...] = ()
    complete: bool = True

    def image_id(self, image: ImageFile) -> Id | None:
        """Return the id of an image, found by the longest matching end of its path; None if there is no match."""
        parts = PurePath(normalize_name(image.path.as_posix())).parts
        for start in range(len(parts)):
            if (image_id := self.images.get("/".join(parts[start:]))) is not None:
                return image_id
        named = [number for name, number in self.images.items() if PurePath(name).name == parts[-1]]
        if len(named) == 1:
            return named[0]
        stem = PurePath(parts[-1]).stem
        if self.complete:
            return None
        candidates: list[Id] = [stem, *([int(stem)] if stem.isdecimal() else [])]
        return next((number for number in candidates if number in self.persons), None)

    def find(self, image: ImageFile, height: int, width: int) -> list[PersonBox]:
        """Return the boxes of an image, clipped to it, without boxes outside. BoxesError if it is not listed."""
        number = self.image_id(image)
        if number is None and self.complete:
            raise BoxesError(f"{image.path}: the image is not listed in {self.path}")
        persons = self.persons.get(number, []) if number is not None else []
        cut = clip_boxes(np.array([person.box for person in persons]).reshape(-1, 4), np.array([[width, height]]))
        return [
            PersonBox((x, y, across, down), person.score)
            for person, (x, y, across, down) in zip(persons, cut.tolist(), strict=True)
            if across > 0 and down > 0
        ]


def read_boxes(path: Path) -> Boxes:
    """Read a file of boxes. BoxesError if it is neither an annotation nor a results file in COCO format."""
    try:
        content = read_json(path, ANNOTATION_BYTES)
    except HfVitSegError as error:
        raise BoxesError(f"--boxes {error}") from None
    return boxes_of_results(path, content) if isinstance(content, list) else boxes_of_annotations(path)


def boxes_of_annotations(path: Path) -> Boxes:
    """Return the boxes of annotated persons, without crowds."""
    lists = read_lists(path)
    category = person_category(lists, path)
    persons: dict[Id, list[PersonBox]] = {image.id: [] for image in lists.images}
    for annotation in lists.annotations:
        if annotation.category_id == category.id and not annotation.iscrowd:
            box = annotation.bbox or []
            if len(box) != 4:
                raise BoxesError(f"{path}: annotation {annotation.id} has {len(box)} bbox numbers, expected 4")
            persons[annotation.image_id].append(PersonBox(finite_box(path, box, f"annotation {annotation.id}")))
    images = {normalize_name(image.file_name.replace("\\", "/")): image.id for image in lists.images}
    return Boxes(path, images, persons, category.id, category.bones())


def person_category(lists: CocoLists, path: Path) -> CocoCategory:
    """Return the category with keypoints, or named person, or the only one."""
    for candidates in (
        [category for category in lists.categories if category.keypoints],
        [category for category in lists.categories if category.name == PERSON],
        lists.categories,
    ):
        if len(candidates) == 1:
            return candidates[0]
    names = format_list([category.name for category in lists.categories])
    raise BoxesError(f"{path} has the categories {names or 'none'}: keep only the category whose poses to estimate")


def boxes_of_results(path: Path, content: list[object]) -> Boxes:
    """Return the boxes of detections of one category."""
    results = validate_entries(RESULTS, content, path)
    if len(categories := {result.category_id for result in results}) > 1:
        raise BoxesError(f"{path} has boxes of the categories {format_list(categories)}: keep only those of persons")
    persons: dict[Id, list[PersonBox]] = {}
    images: dict[str, Id] = {}
    for index, result in enumerate(results):
        box = finite_box(path, result.bbox, f"entry {index}")
        persons.setdefault(result.image_id, []).append(PersonBox(box, result.score))
        if result.file_name is not None:
            images[normalize_name(result.file_name.replace("\\", "/"))] = result.image_id
    return Boxes(path, images, persons, next(iter(categories), 1), complete=False)


def finite_box(path: Path, box: Sequence[float], where: str) -> Box:
    """Return a box of four finite numbers, with a width and height of at least 0. Raise BoxesError for others."""
    if not np.isfinite(box).all():
        raise BoxesError(f"{path}: {where} has a bbox with numbers that are not finite")
    try:
        check_extent(box, f"{path}: {where}")
    except SourceError as error:
        raise BoxesError(str(error)) from None
    x, y, width, height = box
    return x, y, width, height


__all__ = ["Boxes", "BoxesError", "PersonBox", "read_boxes"]
