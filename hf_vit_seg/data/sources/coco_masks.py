"""COCO annotations rasterized to masks or segments.

Shapes: H W pixels.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hf_vit_seg.data.labels.raw_values import IGNORED_VALUE
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import RawSample, RawSegments

from .coco_files import CocoAnnotation, CocoFile, CocoImage, Id, Places, read_coco
from .coco_geometry import check_pixel_units, encode_shape
from .source import SourceError, SourceRecord

INVISIBLE = "annotations that cover no pixel (outside the image, or fewer than three points)"


class CocoMasksSource(SourceRecord):
    """COCO annotations (polygons and run-length encodings) rasterized with pycocotools to masks, or to objects.

    Larger instances are drawn first, so that smaller ones are on top (of equal ones, the later in the file). Crowd
    regions are drawn last and ignored. In masks, raw value 0 is the background; the categories follow in order. For the
    task instance, each annotation is an object, and other pixels are background.

    annotations: the JSON file; or a list of files with separate ids, which are merged by file and category names.
    images: the folder that its file names are relative to; or a list with one folder for each annotation file.
    categories: the names of the categories to draw, in class order; default: all, sorted by id.
    background: the name of the class of all other pixels; null ignores them in training and evaluation. Without effect
        for the task instance.
    """

    tasks: ClassVar = ("segmentation", "instance")

    annotations: Places
    images: Places
    categories: tuple[str, ...] | None = None
    background: str | None = "background"

    def open(self, task: str, channels: int = 3) -> "CocoMasks":
        """Read the annotations. Raises SourceError if some have no segmentation."""
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError:
            raise SourceError("coco_masks needs pycocotools: pip install pycocotools") from None
        coco = read_coco(self.annotations, self.images)
        if self.categories is None:
            chosen = sorted(coco.categories, key=lambda category: (isinstance(category.id, str), category.id))
        else:
            chosen = [coco.category(name) for name in self.categories]
        background = self.background if task == "segmentation" else None
        values = {category.id: index for index, category in enumerate(chosen, 1 if background else 0)}
        drawn = [a for a in coco.annotations if a.category_id in values]
        if bare := [a.id for a in drawn if not a.segmentation]:
            raise SourceError(
                f"{coco.title}: {len(bare)} of {len(drawn)} annotations have no segmentation: {format_list(bare)}; "
                "masks cannot be drawn from boxes"
            )
        check_pixel_units(polygon_coordinates(drawn), coco.title)
        names = (*([background] if background else []), *(category.name for category in chosen))
        kind = CocoMasks if task == "segmentation" else CocoObjects
        return kind(coco, tuple(coco.images.values()), group_by_image(drawn), values, names, channels)


def group_by_image(annotations: Sequence[CocoAnnotation]) -> dict[Id, list[CocoAnnotation]]:
    """Group annotations by image id."""
    lists: dict[Id, list[CocoAnnotation]] = {}
    for annotation in annotations:
        lists.setdefault(annotation.image_id, []).append(annotation)
    return lists


def polygon_coordinates(annotations: Iterable[CocoAnnotation]) -> Iterator[Sequence[Any]]:
    """Yield the coordinates of each polygon."""
    for annotation in annotations:
        parts = annotation.segmentation if isinstance(annotation.segmentation, list) else []
        yield from (part for part in parts if isinstance(part, list))


@dataclass(frozen=True, eq=False)
class Outline:
    """An annotation as pycocotools' RLE, and its number of pixels."""

    annotation: CocoAnnotation
    shape: Any
    area: int


@dataclass(frozen=True, eq=False)
class CocoMasks:
    """Images with the annotations to draw on each, and the raw value of each category id."""

    coco: CocoFile
    images: Sequence[CocoImage]
    drawn: Mapping[Id, Sequence[CocoAnnotation]]
    values: Mapping[Id, int]
    class_names: tuple[str, ...]
    channels: int = 3

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Read an image and draw its mask. Raises ImageFileError."""
        image = self.images[index]
        pixels = self.coco.read(image, self.channels)
        outlines = self.outlines(image)
        notes = (INVISIBLE,) if len(outlines) < len(self.drawn.get(image.id, ())) else ()
        return RawSample(image.file_name, pixels, self.target(image, outlines), notes)

    def target(self, image: CocoImage, outlines: Sequence[Outline]) -> torch.Tensor | RawSegments:
        """Draw the raw mask (H, W) int64 of an image."""
        uncovered = IGNORED_VALUE if 0 in self.values.values() else 0
        mask = np.full((image.height, image.width), uncovered, np.int64)
        for outline, pixels in drawn_pixels(outlines):
            crowd = outline.annotation.iscrowd
            mask[pixels] = IGNORED_VALUE if crowd else self.values[outline.annotation.category_id]
        return torch.from_numpy(mask)

    def outlines(self, image: CocoImage) -> list[Outline]:
        """Encode the annotations of an image that cover pixels."""
        outlines = [self.outline(image, annotation) for annotation in self.drawn.get(image.id, ())]
        return [outline for outline in outlines if outline is not None]

    def outline(self, image: CocoImage, annotation: CocoAnnotation) -> Outline | None:
        """Encode an annotation as pycocotools' RLE; None if it covers no pixel."""
        from pycocotools import mask as drawing

        with self.locate_faults(image, annotation):
            shape = encode_shape(annotation.segmentation, image.height, image.width)
            area = 0 if shape is None else int(drawing.area(shape))
        return Outline(annotation, shape, area) if area else None

    @contextmanager
    def locate_faults(self, image: CocoImage, annotation: CocoAnnotation) -> Iterator[None]:
        """Add the annotation to SourceErrors, and convert exceptions of pycocotools."""
        where = f"{self.coco.title}: the segmentation of annotation {annotation.id} ({image.file_name})"
        try:
            yield
        except SourceError as error:
            raise SourceError(f"{where} is not valid: {error}") from None
        except Exception as error:  # Cython code raises any type
            raise SourceError(f"{where} is not a valid polygon list or RLE ({error})") from None

    def name(self, index: int) -> str:
        """Return the image's file name in the annotations."""
        return self.images[index].file_name

    def files(self, index: int) -> tuple[Path, ...]:
        return (self.coco.file(self.images[index]),)

    def group(self, index: int) -> str:
        return self.name(index)


def drawn_pixels(outlines: Sequence[Outline]) -> Iterator[tuple[Outline, np.ndarray]]:
    """Yield the annotations in drawing order, later ones on top, and their pixels (H, W) bool."""
    from pycocotools import mask as drawing

    for outline in sorted(outlines, key=lambda each: (bool(each.annotation.iscrowd), -each.area)):
        yield outline, drawing.decode(outline.shape).astype(bool)


class CocoObjects(CocoMasks):
    """The same images with a segment for each annotation."""

    def target(self, image: CocoImage, outlines: Sequence[Outline]) -> RawSegments:
        """Draw the segments of an image; a pixel of several annotations belongs to the one on top."""
        ids = np.zeros((image.height, image.width), np.int32)
        classes, crowds, overlaps = [], [], 0
        for number, (outline, pixels) in enumerate(drawn_pixels(outlines), 1):
            overlaps += int((ids[pixels] > 0).sum())
            ids[pixels] = number
            classes.append(self.values[outline.annotation.category_id])
            crowds += [number] if outline.annotation.iscrowd else []
        return RawSegments(torch.from_numpy(ids), tuple(classes), frozenset(crowds), overlaps)


__all__ = ["CocoMasksSource"]
