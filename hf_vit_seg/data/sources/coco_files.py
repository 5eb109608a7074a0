"""Annotation files in COCO's format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import PositiveInt, TypeAdapter, ValidationError

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.data.wording import listed
from hf_vit_seg.records import expectation, settings_path, shorten

from .source import SourceError, check_present, existing_file, existing_folder

Id: TypeAlias = int | str
PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False, slots=True)
class CocoImage:
    """An image of an annotation file; the size is that of the annotations' pixels."""

    id: Id
    file_name: str
    height: PositiveInt
    width: PositiveInt


@dataclass(frozen=True, eq=False, slots=True)
class CocoAnnotation:
    """An object: `bbox` is x, y, width and height, `keypoints` x, y and visibility of each, all in pixels."""

    id: Id
    image_id: Id
    category_id: Id
    iscrowd: bool | None = None
    segmentation: Any = None
    bbox: list[float] | None = None
    area: float | None = None
    keypoints: list[float] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class CocoCategory:
    """A class, and the names of its keypoints, if it has any."""

    id: Id
    name: str
    keypoints: list[str] | None = None


@dataclass(frozen=True, eq=False)
class CocoLists:
    """What is read of an annotation file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


LISTS = TypeAdapter(CocoLists)


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file: its images by id, in the order of their files, and the rest in the file's order."""

    path: Path
    folder: Path
    images: Mapping[Id, CocoImage]
    annotations: Sequence[CocoAnnotation]
    categories: Sequence[CocoCategory]

    def category(self, name: str) -> CocoCategory:
        """A category by name."""
        for category in self.categories:
            if category.name == name:
                return category
        known = listed([category.name for category in self.categories], 10)
        raise SourceError(f"{self.path} has no category '{name}'; it has {known}")

    def file(self, image: CocoImage) -> Path:
        """Where an image lies."""
        return self.folder / image.file_name

    def read(self, image: CocoImage, bands: int) -> Any:
        """An image (C, H, W), which has to have the size of its annotations."""
        pixels = read_pixels(self.file(image), bands)
        if pixels.shape[1:] != (image.height, image.width):
            found = "x".join(map(str, pixels.shape[1:]))
            raise ImageFileError(
                f"{self.file(image)}: the image has {found} pixels (height x width), its annotations in {self.path} "
                f"are for {image.height}x{image.width}: give the images that were annotated"
            )
        return pixels


def read_coco(annotations: Path, images: Path) -> CocoFile:
    """Read an annotation file whose images lie in a folder. SourceError for what is not in COCO's format."""
    path = existing_file(annotations, "annotations")
    folder = existing_folder(images, "images")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SourceError(f"{path} is no JSON file ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in PARTS):
        raise SourceError(f"{path} is no annotation file in COCO's format, which has the lists {', '.join(PARTS)}")
    lists = checked(content, path)
    check_present([folder / image.file_name for image in lists.images], str(path))
    by_id = {image.id: image for image in sorted(lists.images, key=lambda image: image.file_name)}
    categories = {category.id for category in lists.categories}
    for part, strange in (
        ("images", [a.id for a in lists.annotations if a.image_id not in by_id]),
        ("categories", [a.id for a in lists.annotations if a.category_id not in categories]),
    ):
        if strange:
            raise SourceError(f"{path}: annotations of {part} that are not listed there: {listed(strange)}")
    return CocoFile(path, folder, by_id, lists.annotations, lists.categories)


def checked(content: Mapping[str, Any], path: Path) -> CocoLists:
    """The lists of an annotation file. SourceError names the first entry that is not as COCO's format has it."""
    try:
        return LISTS.validate_python(content)
    except ValidationError as error:
        errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":
        raise SourceError(f"{path} has an entry without '{first['loc'][-1]}', which COCO's format asks for")
    place, wanted = ".".join(map(str, settings_path(first, content))), expectation(first, errors, content)
    raise SourceError(f"{path}: {place} should be {wanted}, found {shorten(first['input'])}")


__all__ = ["CocoAnnotation", "CocoFile", "CocoImage", "Id", "read_coco"]
