"""Annotation files in COCO format."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_pixels
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import expectation, settings_path, shorten
from hf_vit_seg.text_files import ANNOTATION_BYTES, read_json

from .source import Place, SourceError, check_present, existing_file, existing_folder, portable_path

Id: TypeAlias = int | str
Places: TypeAlias = Place | Annotated[tuple[Place, ...], Field(min_length=1)]
Entries = TypeVar("Entries")
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
    """A class, with the names of its keypoints and its bones (pairs of keypoints, counted from 1), if any."""

    id: Id
    name: str
    keypoints: list[str] | None = None
    skeleton: Any = None

    def bones(self) -> tuple[tuple[int, int], ...]:
        """Return the bones as pairs of keypoint indices from 0, without entries that are not pairs of keypoints."""
        numbers = range(1, len(self.keypoints or ()) + 1)
        entries = self.skeleton if isinstance(self.skeleton, list) else []
        pairs = [entry for entry in entries if isinstance(entry, list) and len(entry) == 2]
        return tuple((i - 1, j - 1) for i, j in pairs if {type(i), type(j)} == {int} and i in numbers and j in numbers)


@dataclass(frozen=True, eq=False)
class CocoLists:
    """The lists of an annotation file that are used."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


LISTS = TypeAdapter(CocoLists)


@dataclass(frozen=True, eq=False)
class CocoFile:
    """An annotation file, or several that were merged.

    `folder` contains all images, and their file names are relative to it. `title` names the files in messages. Images
    are mapped by id and sorted by file name; annotations and categories are in file order.
    """

    title: str
    folder: Path
    images: Mapping[Id, CocoImage]
    annotations: Sequence[CocoAnnotation]
    categories: Sequence[CocoCategory]

    def category(self, name: str) -> CocoCategory:
        """Find a category by name."""
        for category in self.categories:
            if category.name == normalize_name(name):
                return category
        names = format_list([category.name for category in self.categories], 10)
        raise SourceError(f"{self.title} has no category '{name}'; it has {names}")

    def file(self, image: CocoImage) -> Path:
        """Return the path of an image."""
        return self.folder / image.file_name

    def read(self, image: CocoImage, channels: int) -> Any:
        """Read an image (C, H, W). Raises ImageFileError if its size differs from that of its annotations."""
        pixels = read_pixels(self.file(image), channels)
        if pixels.shape[1:] != (image.height, image.width):
            size = "x".join(map(str, pixels.shape[1:]))
            raise ImageFileError(
                f"{self.file(image)}: the image has {size} pixels (height x width), but its annotations in "
                f"{self.title} are for {image.height}x{image.width}: use the images that were annotated"
            )
        return pixels


def read_coco(annotations: Path | Sequence[Path], images: Path | Sequence[Path]) -> CocoFile:
    """Read annotation files, merged if there are several (see `merge_lists`).

    `images` is the folder of their images, or one folder for each annotation file. Raises SourceError for files that
    are not in COCO format, and for ids or names that occur twice in a file.
    """
    paths = [annotations] if isinstance(annotations, Path) else list(annotations)
    folders = [existing_folder(each, "images") for each in ([images] if isinstance(images, Path) else images)]
    if len(folders) not in (1, len(paths)):
        raise SourceError(
            f"found {len(folders)} folders of images for {len(paths)} annotation files, expected one for all, or one "
            "for each"
        )
    folder = folders[0] if len(set(folders)) == 1 else Path(os.path.commonpath(map(os.path.abspath, folders)))
    files = []
    for path, own in zip(paths, folders if len(folders) == len(paths) else folders * len(paths), strict=True):
        lists = read_lists(existing_file(path, "annotations"))
        prefix = "" if own == folder else os.path.relpath(own, folder)
        renamed = [
            replace(image, file_name=os.path.join(prefix, portable_path(own, image.file_name)))
            for image in lists.images
        ]
        files.append((path, replace(lists, images=renamed)))
    title = format_list([path for path, _ in files])
    lists = files[0][1] if len(files) == 1 else merge_lists(files)
    check_present(folder, [image.file_name for image in lists.images], title)
    by_id = {image.id: image for image in sorted(lists.images, key=lambda image: image.file_name)}
    return CocoFile(title, folder, by_id, lists.annotations, lists.categories)


def read_lists(path: Path) -> CocoLists:
    """Read an annotation file. Raises SourceError if it is not in COCO format, or has contradictory ids."""
    try:
        content = read_json(path, ANNOTATION_BYTES)
    except HfVitSegError as error:
        raise SourceError(str(error)) from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in PARTS):
        raise SourceError(f"{path} is not an annotation file in COCO format: expected the lists {', '.join(PARTS)}")
    lists = validate_entries(LISTS, content, path)
    lists = replace(
        lists,
        images=[replace(each, file_name=str(PurePath(each.file_name))) for each in lists.images],  # ./a.png is a.png
        categories=[replace(each, name=normalize_name(each.name)) for each in lists.categories],
    )
    check_unique(lists, path)
    images, categories = ({entry.id for entry in entries} for entries in (lists.images, lists.categories))
    for part, strange in (
        ("images", [a.id for a in lists.annotations if a.image_id not in images]),
        ("categories", [a.id for a in lists.annotations if a.category_id not in categories]),
    ):
        if strange:
            raise SourceError(f"{path}: found annotations of unknown {part}: {format_list(strange)}")
    return lists


def check_unique(lists: CocoLists, path: Path) -> None:
    """Raise SourceError for ids, image files or category names that occur more than once."""
    for what, names in (
        ("image ids", [(image.id, image.file_name) for image in lists.images]),
        ("category ids", [(category.id, category.name) for category in lists.categories]),
        ("annotation ids", [(annotation.id, f"image {annotation.image_id}") for annotation in lists.annotations]),
        ("image files", [(image.file_name, f"id {image.id}") for image in lists.images]),
        ("category names", [(category.name, f"id {category.id}") for category in lists.categories]),
    ):
        if repeated := format_repeated(names):
            raise SourceError(
                f"{path}: found {what} that occur more than once: {repeated}; if two files were put together, list "
                "them separately (annotations: [FIRST.json, SECOND.json], and images: [FOLDER_1, FOLDER_2] if each has "
                "its own folder), which keeps their ids apart"
            )


def format_repeated(names: Sequence[tuple[Id, str]]) -> str:
    """Format the keys that occur more than once, each with its names; empty if there are none."""
    counts = Counter(key for key, _ in names)
    if len(counts) == len(names):
        return ""
    repeated: dict[Id, list[str]] = {key: [] for key, count in counts.items() if count > 1}
    for key, name in names:
        if key in repeated:
            repeated[key].append(name)
    return format_list(f"{key} ({format_list(found)})" for key, found in repeated.items())


def merge_lists(files: Sequence[tuple[Path, CocoLists]]) -> CocoLists:
    """Merge annotation files with separate ids; new ids count from 1.

    Images with the same file name are one image, and categories with the same name are one category. Raises
    SourceError if such entries differ in size or keypoints.
    """
    merged = CocoLists([], [], [])
    images: dict[str, CocoImage] = {}
    categories: dict[str, CocoCategory] = {}
    for path, lists in files:
        for image in lists.images:
            known = images.setdefault(image.file_name, replace(image, id=len(images) + 1))
            if (known.height, known.width) != (image.height, image.width):
                raise SourceError(
                    f"{path}: the image {image.file_name} has {image.height}x{image.width} pixels (height x width), "
                    f"but {known.height}x{known.width} in another annotation file: correct one of them"
                )
        for category in lists.categories:
            same = categories.setdefault(category.name, replace(category, id=len(categories) + 1))
            if same.keypoints != category.keypoints:
                raise SourceError(
                    f"{path}: the category '{category.name}' has other keypoints than in another annotation file"
                )
        merged.annotations.extend(renumber(lists, images, categories, len(merged.annotations) + 1))
    return replace(merged, images=list(images.values()), categories=list(categories.values()))


def renumber(
    lists: CocoLists, images: Mapping[str, CocoImage], categories: Mapping[str, CocoCategory], first: int
) -> Iterable[CocoAnnotation]:
    """Annotations with ids from `first`, and with the ids of merged images and categories."""
    new_images = {image.id: images[image.file_name].id for image in lists.images}
    new_categories = {category.id: categories[category.name].id for category in lists.categories}
    for number, annotation in enumerate(lists.annotations, first):
        yield replace(
            annotation,
            id=number,
            image_id=new_images[annotation.image_id],
            category_id=new_categories[annotation.category_id],
        )


def validate_entries(form: TypeAdapter[Entries], content: Any, path: Path) -> Entries:
    """Validate the content of a file in COCO format. Raises SourceError for the first invalid entry."""
    try:
        return form.validate_python(content)
    except ValidationError as error:
        errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":
        raise SourceError(f"{path} has an entry without '{first['loc'][-1]}', which COCO format requires")
    location, expected = ".".join(map(str, settings_path(first, content))), expectation(first, errors, content)
    raise SourceError(f"{path}: {location} should be {expected}, found {shorten(first['input'])}")


__all__ = ["CocoAnnotation", "CocoFile", "CocoImage", "Id", "Places", "read_coco"]
