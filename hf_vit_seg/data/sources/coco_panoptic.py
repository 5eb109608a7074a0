"""COCO's panoptic format: a JSON file, and PNG files whose colors are the ids of segments.

Shapes: H W pixels, n segments.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import ClassVar

import torch
from pydantic import TypeAdapter

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.data.images.pixels import read_mask, read_pixels
from hf_vit_seg.data.labels.raw_values import encode_color
from hf_vit_seg.data.labels.unicode_names import normalize_name
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import RawSample, RawSegments
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.text_files import ANNOTATION_BYTES, read_json

from .coco_files import CocoImage, Id, validate_entries
from .source import Place, SourceError, SourceRecord, check_present, existing_file, existing_folder, portable_path

PARTS = ("images", "annotations", "categories")
ABSENT = "annotations of segments that are not in the PNG file"


@dataclass(frozen=True, eq=False, slots=True)
class PanopticSegment:
    """A segment: its id in the PNG file is red + 256 * green + 256^2 * blue."""

    id: int
    category_id: Id
    iscrowd: bool | None = None


@dataclass(frozen=True, eq=False, slots=True)
class PanopticAnnotation:
    """The segments of an image, and their PNG file."""

    image_id: Id
    file_name: str
    segments_info: list[PanopticSegment]


@dataclass(frozen=True, eq=False, slots=True)
class PanopticCategory:
    """A class; without `isthing` it is a thing."""

    id: Id
    name: str
    isthing: bool | None = None


@dataclass(frozen=True, eq=False)
class PanopticLists:
    """The lists of an annotation file that are used."""

    images: list[CocoImage]
    annotations: list[PanopticAnnotation]
    categories: list[PanopticCategory]


LISTS = TypeAdapter(PanopticLists)


class CocoPanopticSource(SourceRecord):
    """COCO's panoptic format, as of COCO, ADE20K and Mapillary Vistas.

    Id 0 in the PNG files, and crowds, are ignored. For the task instance, only the things are read, and stuff is
    background.

    annotations: the JSON file, with `segments_info` of each image.
    images: the folder that the file names of its images are relative to.
    masks: the folder of the PNG files.
    """

    tasks: ClassVar = ("panoptic", "instance")

    annotations: Place
    images: Place
    masks: Place

    def open(self, task: str, channels: int = 3) -> "CocoPanoptic":
        """Read the annotations. Raises SourceError if entries are invalid or files are missing."""
        path = existing_file(self.annotations, "annotations")
        lists = read_panoptic(path)
        folders = existing_folder(self.images, "images"), existing_folder(self.masks, "masks")
        by_id = {annotation.image_id: annotation for annotation in lists.annotations}
        images = [replace(image, file_name=portable_path(folders[0], image.file_name)) for image in lists.images]
        images.sort(key=lambda image: image.file_name)
        masks = [portable_path(folders[1], by_id[image.id].file_name) for image in images]
        check_present(folders[0], [image.file_name for image in images], str(path))
        check_present(folders[1], masks, str(path))
        categories = sorted(lists.categories, key=lambda category: (isinstance(category.id, str), category.id))
        things = {category.id: category.isthing is not False for category in categories}
        kept = [category for category in categories if task == "panoptic" or things[category.id]]
        return CocoPanoptic(
            title=str(path),
            image_folder=folders[0],
            images=images,
            mask_folder=folders[1],
            masks=masks,
            segments=[by_id[image.id].segments_info for image in images],
            values={category.id: value for value, category in enumerate(kept)},
            class_names=tuple(category.name for category in kept),
            things=tuple(category.name for category in kept if things[category.id]),
            channels=channels,
        )


def read_panoptic(path: Path) -> PanopticLists:
    """Read an annotation file. Raises SourceError if it is not in the panoptic format, or has contradictory ids."""
    try:
        content = read_json(path, ANNOTATION_BYTES)
    except HfVitSegError as error:
        raise SourceError(str(error)) from None
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in PARTS):
        raise SourceError(f"{path} is not an annotation file in COCO format: expected the lists {', '.join(PARTS)}")
    if any(isinstance(each, dict) and "segments_info" not in each for each in content["annotations"]):
        raise SourceError(
            f"{path} has annotations without segments_info, expected COCO's panoptic format: use kind: coco_masks for "
            "single objects"
        )
    lists = validate_entries(LISTS, content, path)
    lists = replace(
        lists,
        images=[replace(each, file_name=str(PurePath(each.file_name))) for each in lists.images],  # ./a.png is a.png
        annotations=[replace(each, file_name=str(PurePath(each.file_name))) for each in lists.annotations],
        categories=[replace(each, name=normalize_name(each.name)) for each in lists.categories],
    )
    check_ids(lists, path)
    return lists


def check_ids(lists: PanopticLists, path: Path) -> None:
    """Raise SourceError for repeated ids, images without an annotation, and unknown images and categories."""
    images = {image.id for image in lists.images}
    categories = {category.id for category in lists.categories}
    annotated = [annotation.image_id for annotation in lists.annotations]
    for what, keys in (
        ("image ids", [image.id for image in lists.images]),
        ("category ids", [category.id for category in lists.categories]),
        ("category names", [category.name for category in lists.categories]),
        ("annotations of an image", annotated),
        ("image files", [image.file_name for image in lists.images]),
        ("PNG files of annotations", [annotation.file_name for annotation in lists.annotations]),
        (
            "segment ids of an image",
            [f"{a.image_id} ({each.id})" for a in lists.annotations for each in a.segments_info],
        ),
    ):
        if repeated := [key for key, count in Counter(keys).items() if count > 1]:
            raise SourceError(f"{path}: found {what} that occur more than once: {format_list(repeated)}")
    if strange := [key for key in annotated if key not in images]:
        raise SourceError(f"{path}: found annotations of unknown images: {format_list(strange)}")
    if missing := sorted(image.file_name for image in lists.images if image.id not in set(annotated)):
        raise SourceError(f"{path}: {len(missing)} images have no annotation: {format_list(missing)}")
    segments = [segment for annotation in lists.annotations for segment in annotation.segments_info]
    if unknown := [segment.id for segment in segments if segment.category_id not in categories]:
        raise SourceError(f"{path}: found segments of unknown categories: {format_list(unknown)}")


@dataclass(frozen=True, eq=False)
class CocoPanoptic:
    """Images, their PNG files and segments, and the raw value of each category id that is read."""

    title: str
    image_folder: Path
    images: Sequence[CocoImage]
    mask_folder: Path
    masks: Sequence[str]
    segments: Sequence[Sequence[PanopticSegment]]
    values: Mapping[Id, int]
    class_names: tuple[str, ...]
    things: tuple[str, ...]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Read an image and its segments. Raises ImageFileError."""
        image = read_pixels(self.image_folder / self.images[index].file_name, self.channels)
        target, notes = self.target(index)
        return RawSample(self.name(index), image, target, notes)

    def target(self, index: int) -> tuple[RawSegments, tuple[str, ...]]:
        """Read the segments of an image, and notes on them."""
        path = self.mask_folder / self.masks[index]
        colors = read_mask(path)
        if colors.ndim != 3:
            raise ImageFileError(f"{path}: found one value per pixel, expected the colors of COCO's panoptic format")
        codes = encode_color(*colors.flip(0).to(torch.int64).unbind())  # red is the lowest byte
        rows = {segment.id: segment for segment in self.segments[index]}
        distinct, places = torch.unique(codes, return_inverse=True)
        ids = [code for code in distinct.tolist() if code]
        if unknown := [code for code in ids if code not in rows]:
            raise ImageFileError(
                f"{path}: found segments that {self.title} does not list: {format_list(unknown)}: use the PNG files of "
                "this annotation file"
            )
        kept = [code for code in ids if rows[code].category_id in self.values]
        numbers = {0: -1} | {code: number for number, code in enumerate(kept, 1)}
        table = torch.tensor([numbers.get(code, 0) for code in distinct.tolist()], dtype=torch.int32)
        crowds = frozenset(numbers[code] for code in kept if rows[code].iscrowd)
        stuff = frozenset(numbers[code] for code in kept if self.is_stuff(rows[code]))
        segments = RawSegments(
            table[places], tuple(self.values[rows[code].category_id] for code in kept), crowds | stuff
        )
        return segments, (ABSENT,) if len(ids) < len(rows) else ()

    def is_stuff(self, segment: PanopticSegment) -> bool:
        """Return whether the class of a segment has no single objects."""
        return self.class_names[self.values[segment.category_id]] not in self.things

    def name(self, index: int) -> str:
        """Return the image's file name in the annotations."""
        return self.images[index].file_name

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the image and the PNG file."""
        return (self.image_folder / self.images[index].file_name, self.mask_folder / self.masks[index])

    def group(self, index: int) -> str:
        """Return the image's file name: samples are independent."""
        return self.name(index)


__all__ = ["CocoPanopticSource"]
