"""Annotation files in COCO's format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image_files import ImageFileError
from .pixels import read_pixels
from .source_protocol import SourceError, check_present, existing_file, existing_folder
from .wording import listed

PARTS = ("images", "annotations", "categories")


@dataclass(frozen=True, eq=False)
class CocoImage:
    """An image of an annotation file; the size is that of the annotations' pixels."""

    id: int
    file: str
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file: its images by id, in the order of their files, and the rest as it stands there."""

    path: Path
    folder: Path
    images: Mapping[int, CocoImage]
    annotations: Sequence[Mapping[str, Any]]
    categories: Sequence[Mapping[str, Any]]

    def category(self, name: str) -> Mapping[str, Any]:
        """A category by name."""
        for category in self.categories:
            if category["name"] == name:
                return category
        known = listed([category["name"] for category in self.categories], 10)
        raise SourceError(f"{self.path} has no category '{name}'; it has {known}")

    def file(self, image: CocoImage) -> Path:
        """Where an image lies."""
        return self.folder / image.file

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
    try:
        found = [CocoImage(i["id"], i["file_name"], i["height"], i["width"]) for i in content["images"]]
        for part, keys in (("annotations", ("id", "image_id", "category_id")), ("categories", ("id", "name"))):
            for entry in content[part]:
                _ = [entry[key] for key in keys]
    except (KeyError, TypeError) as error:
        raise SourceError(f"{path} has an entry without {error}, which COCO's format asks for") from None
    check_present([folder / image.file for image in found], str(path))
    by_id = {image.id: image for image in sorted(found, key=lambda image: image.file)}
    strange = [a["id"] for a in content["annotations"] if a["image_id"] not in by_id]
    if strange:
        raise SourceError(f"{path}: annotations of images that are not listed there: {listed(strange)}")
    return CocoFile(path, folder, by_id, content["annotations"], content["categories"])


__all__ = ["CocoFile", "CocoImage", "read_coco"]
