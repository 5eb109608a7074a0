"""COCO annotations drawn as masks.

Shapes: H W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from hf_vit_seg.data.labels.raw_values import UNCOUNTED
from hf_vit_seg.data.samples import RawSample
from hf_vit_seg.data.wording import listed

from .coco_files import CocoAnnotation, CocoFile, CocoImage, Id, read_coco
from .source import Place, SourceError, SourceRecord


class CocoMasksSource(SourceRecord):
    """COCO annotations (polygons and run lengths) drawn as masks of classes, with pycocotools.

    Instances of more pixels are drawn first, so that smaller ones lie on top (of equal ones the later in the file).
    Crowd regions are drawn last and do not count. Raw values are 0 for the background and then the categories in their
    order.

    annotations: the JSON file.
    images: the folder that its file names are relative to.
    categories: the names of those that are drawn, in this order; without it all of the file by their ids.
    background: the name of the class of all other pixels; null leaves them out of training and measures.
    """

    tasks: ClassVar = ("segmentation",)

    annotations: Place
    images: Place
    categories: tuple[str, ...] | None = None
    background: str | None = "background"

    def open(self, task: str, bands: int = 3) -> "CocoMasks":
        """Read the annotations. SourceError when they cannot be drawn."""
        try:
            import pycocotools.mask  # noqa: F401
        except ImportError:
            raise SourceError("coco_masks needs pycocotools: pip install pycocotools") from None
        coco = read_coco(self.annotations, self.images)
        if self.categories is None:
            chosen = sorted(coco.categories, key=lambda category: category.id)
        else:
            chosen = [coco.category(name) for name in self.categories]
        values = {category.id: place for place, category in enumerate(chosen, 1 if self.background else 0)}
        drawn = [a for a in coco.annotations if a.category_id in values]
        if bare := [a.id for a in drawn if not a.segmentation]:
            raise SourceError(
                f"{coco.path}: {len(bare)} of {len(drawn)} annotations have no segmentation, such as {listed(bare)}: "
                "boxes alone make no masks"
            )
        names = (*([self.background] if self.background else []), *(category.name for category in chosen))
        return CocoMasks(coco, tuple(coco.images.values()), by_image(drawn), values, names, bands)


def by_image(annotations: Sequence[CocoAnnotation]) -> dict[Id, list[CocoAnnotation]]:
    """The annotations of each image."""
    lists: dict[Id, list[CocoAnnotation]] = {}
    for annotation in annotations:
        lists.setdefault(annotation.image_id, []).append(annotation)
    return lists


@dataclass(frozen=True, eq=False)
class CocoMasks:
    """Images with the annotations that are drawn on each, and the raw value of each category id."""

    coco: CocoFile
    images: Sequence[CocoImage]
    drawn: Mapping[Id, Sequence[CocoAnnotation]]
    values: Mapping[Id, int]
    class_names: tuple[str, ...]
    bands: int = 3

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def read(self, index: int) -> RawSample:
        """Decode an image and draw its mask. ImageFileError when the file cannot be used."""
        image = self.images[index]
        return RawSample(image.file_name, self.coco.read(image, self.bands), self.mask(image))

    def mask(self, image: CocoImage) -> torch.Tensor:
        """The raw mask (H, W) int64 of an image."""
        from pycocotools import mask as drawing

        uncovered = UNCOUNTED if 0 in self.values.values() else 0
        mask = np.full((image.height, image.width), uncovered, np.int64)
        outlines = [(a, *self.outline(image, a)) for a in self.drawn.get(image.id, ())]
        for annotation, shape, _ in sorted(outlines, key=lambda found: (bool(found[0].iscrowd), -found[2])):
            with self.faults_named(annotation):
                pixels = drawing.decode(shape).astype(bool)
            mask[pixels] = UNCOUNTED if annotation.iscrowd else self.values[annotation.category_id]
        return torch.from_numpy(mask)

    def outline(self, image: CocoImage, annotation: CocoAnnotation) -> tuple[Any, int]:
        """An annotation as pycocotools' run lengths, and how many pixels it has."""
        from pycocotools import mask as drawing

        shape = annotation.segmentation
        with self.faults_named(annotation):
            if isinstance(shape, list):
                shape = drawing.merge(drawing.frPyObjects(shape, image.height, image.width))
            elif isinstance(shape["counts"], list):
                shape = drawing.frPyObjects(shape, image.height, image.width)
            size, area = tuple(shape["size"]), int(drawing.area(shape))
        if size != (image.height, image.width):
            raise SourceError(
                f"{self.coco.path}: the run lengths of annotation {annotation.id} are for {size} pixels, "
                f"its image has {(image.height, image.width)}"
            )
        return shape, area

    @contextmanager
    def faults_named(self, annotation: CocoAnnotation) -> Iterator[None]:
        """Turn whatever pycocotools raises into a SourceError that names the annotation."""
        try:
            yield
        except Exception as error:  # whatever Cython gives
            raise SourceError(
                f"{self.coco.path}: the segmentation of annotation {annotation.id} is neither polygons nor run "
                f"lengths ({error})"
            ) from None

    def name(self, index: int) -> str:
        """The image's file name in the annotations."""
        return self.images[index].file_name

    def files(self, index: int) -> tuple[Path, ...]:
        """The image; the masks are all in one file."""
        return (self.coco.file(self.images[index]),)

    def group(self, index: int) -> str:
        """Every image is for itself."""
        return self.name(index)


__all__ = ["CocoMasksSource"]
