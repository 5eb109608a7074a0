"""Annotation files in COCO format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import PositiveInt, TypeAdapter, ValidationError

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.data.wording import format_list
from hf_vit_seg.records import expectation, settings_path, shorten

from .source import SourceError, check_present, existing_file, existing_folder

Id: TypeAlias = int | str
PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False, slots=True)
class CocoImage:
    """An image of an annotation file, with the size that its annotations refer to."""

    id: Id
    file_name: str
    height: PositiveInt
    width: PositiveInt


@dataclass(frozen=True, eq=False, slots=True)
class CocoAnnotation:
    """An object: `bbox` is (x, y, width, height), `keypoints` are x, y, visibility of each in turn, all in pixels."""

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
    """A class, with the names of its keypoints, if any."""

    id: Id
    name: str
    keypoints: list[str] | None = None


@dataclass(frozen=True, eq=False)
class CocoLists:
    """The lists of an annotation file that are used."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


LISTS = TypeAdapter(CocoLists)


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file: images by id, sorted by file name; annotations and categories in file order."""

    path: Path
    folder: Path
    images: Mapping[Id, CocoImage]
    annotations: Sequence[CocoAnnotation]
    categories: Sequence[CocoCategory]

    def category(self, name: str) -> CocoCategory:
        """Find a category by name."""
        for category in self.categories:
            if category.name == name:
                return category
        known = format_list([category.name for category in self.categories], 10)
        raise SourceError(f"{self.path} has no category '{name}'; it has {known}")

    def file(self, image: CocoImage) -> Path:
        """The path of an image."""
        return self.folder / image.file_name

    def read(self, image: CocoImage, channels: int) -> Any:
        """Read an image (C, H, W). Raises ImageFileError if its size differs from that of its annotations."""
        pixels = read_pixels(self.file(image), channels)
        if pixels.shape[1:] != (image.height, image.width):
            found = "x".join(map(str, pixels.shape[1:]))
            raise ImageFileError(
                f"{self.file(image)}: the image has {found} pixels (height x width), but its annotations in "
                f"{self.path} are for {image.height}x{image.width}: use the images that were annotated"
            )
        return pixels


def read_coco(annotations: Path, images: Path) -> CocoFile:
    """Read an annotation file with images in a folder. Raises SourceError if it is not in COCO format."""
    path = existing_file(annotations, "annotations")
    folder = existing_folder(images, "images")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SourceError(f"{path} is not a JSON file ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in PARTS):
        raise SourceError(f"{path} is not an annotation file in COCO format: expected the lists {', '.join(PARTS)}")
    lists = validate_lists(content, path)
    check_present([folder / image.file_name for image in lists.images], str(path))
    by_id = {image.id: image for image in sorted(lists.images, key=lambda image: image.file_name)}
    categories = {category.id for category in lists.categories}
    for part, strange in (
        ("images", [a.id for a in lists.annotations if a.image_id not in by_id]),
        ("categories", [a.id for a in lists.annotations if a.category_id not in categories]),
    ):
        if strange:
            raise SourceError(f"{path}: found annotations of unknown {part}: {format_list(strange)}")
    return CocoFile(path, folder, by_id, lists.annotations, lists.categories)


def validate_lists(content: Mapping[str, Any], path: Path) -> CocoLists:
    """Validate the lists of an annotation file. Raises SourceError for the first invalid entry."""
    try:
        return LISTS.validate_python(content)
    except ValidationError as error:
        errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":
        raise SourceError(f"{path} has an entry without '{first['loc'][-1]}', which COCO format requires")
    place, expected = ".".join(map(str, settings_path(first, content))), expectation(first, errors, content)
    raise SourceError(f"{path}: {place} should be {expected}, found {shorten(first['input'])}")


__all__ = ["CocoAnnotation", "CocoFile", "CocoImage", "Id", "read_coco"]
