"""The objects (and stuff) of one image, stored as crops of their masks.

An image of 20,000 x 20,000 pixels with 10,000 objects would need 4 TB for full masks; crops, packed to bits, need a few
megabytes.

Shapes: H W pixels, r c a box, n objects.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from hf_vit_seg.drawing.object_overlays import draw_numbers
from hf_vit_seg.drawing.outlines import extract_regions
from hf_vit_seg.errors import HfVitSegError

from .annotations import Coordinates, RunLengths, polygon_text

MAX_PNG_OBJECTS = 2**16 - 1  # objects of a 16-bit instance map
COLUMNS = ("id", "class", "name", "score", "area", "centroid_x", "centroid_y", "left", "top", "width", "height")


@dataclass(frozen=True, eq=False)
class FoundObject:
    """One object: its class index, score, and mask in a box that begins at row `top` and column `left`.

    `bits` are the rows of the mask (r, c), one after another, packed to bytes; `shape` is (r, c). Lengths are pixels of
    the image.
    """

    label: int
    score: float
    top: int
    left: int
    shape: tuple[int, int]
    bits: bytes
    area: int
    centroid: tuple[float, float]  # (x, y) of the mean of the pixels' centers

    @classmethod
    def from_mask(cls, label: int, score: float, top: int, left: int, mask: np.ndarray) -> "FoundObject":
        """Build an object from a mask (r, c) bool with at least one pixel; empty borders are cut off."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            raise HfVitSegError("an object needs at least one pixel")
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left, area = top + int(rows[0]), left + int(columns[0]), int(mask.sum())
        across, down = mask.sum(0), mask.sum(1)
        x = float(across @ (np.arange(len(across)) + 0.5)) / area + left
        y = float(down @ (np.arange(len(down)) + 0.5)) / area + top
        shape = (mask.shape[0], mask.shape[1])
        return cls(label, score, top, left, shape, np.packbits(mask).tobytes(), area, (x, y))

    def translate(self, rows: int, columns: int) -> "FoundObject":
        """Return the same object further down and to the right."""
        x, y = self.centroid
        return replace(self, top=self.top + rows, left=self.left + columns, centroid=(x + columns, y + rows))

    @property
    def mask(self) -> np.ndarray:
        """The mask (r, c) bool in its box."""
        rows, columns = self.shape
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=rows * columns).view(bool).reshape(self.shape)

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the box in the image."""
        return slice(self.top, self.top + self.shape[0]), slice(self.left, self.left + self.shape[1])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """COCO's (x, y, width, height)."""
        return self.left, self.top, self.shape[1], self.shape[0]

    def polygons(self) -> list[list[np.ndarray]]:
        """Return the rings of each 4-connected part, the outer one first: corners (c, 2) as x, y in pixels of the
        image.
        """
        offset = np.array([self.left, self.top])
        padded = np.pad(self.mask, 1).view(np.uint8)
        regions = (region for region in extract_regions(padded) if region.label)
        return [[ring + offset - 1 for ring in region.rings] for region in regions]

    def rle(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return a COCO annotation for an image of `size` (H, W): compressed RLE, area, bbox and iscrowd."""
        flat = np.pad(self.mask, ((1, 1), (0, 0))).ravel(order="F").view(np.int8)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # the padding separates runs of neighboring columns
        begin, end = changes[::2], changes[1::2]
        column, row = np.divmod(begin, self.shape[0] + 2)
        start = (self.left + column) * size[0] + self.top + row - 1
        return run_annotation(start, start + end - begin, size)


def run_annotation(begin: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of a COCO annotation from runs [begin, end) of pixels in column-major order; adjacent ones
    join.
    """
    apart = np.concatenate([[True], begin[1:] != end[:-1]])
    lengths = RunLengths()
    lengths.add(begin[apart], end[np.append(apart[1:], True)], size[0], None)
    return lengths.annotation(size)


@dataclass(frozen=True, eq=False)
class FoundSegments:
    """The objects of an image of `size` (H, W), with class names and palette. They never overlap.

    Objects are numbered from 1 in the order of `objects`. `stuff` are the indices of the stuff classes. `timings` are
    milliseconds per step. `image` is None if the input has no RGB image.
    """

    size: tuple[int, int]
    objects: Sequence[FoundObject]
    names: tuple[str, ...]
    palette: np.ndarray
    image: Image.Image | None = None
    protocol: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    stuff: frozenset[int] = frozenset()

    @classmethod
    def from_map(
        cls, numbers: np.ndarray, classes: Sequence[int], scores: Sequence[float], **rest: Any
    ) -> "FoundSegments":
        """Build from a map (H, W) of numbers from 1, with the class and score of each; empty ones are left out."""
        objects = objects_of_map(numbers, classes, scores)
        return cls((numbers.shape[0], numbers.shape[1]), objects, **rest)

    def instance_map(self, rows: slice | None = None) -> np.ndarray:
        """Return the number of the object of each pixel (H, W), or of some rows; uint16, or uint32 for over 65535
        objects.
        """
        first, stop, _ = (rows or slice(None)).indices(self.size[0])
        numbers = np.zeros((stop - first, self.size[1]), instance_dtype(len(self.objects)))
        for number, instance in enumerate(self.objects, 1):
            top, bottom = max(instance.top, first), min(instance.top + instance.shape[0], stop)
            if top < bottom:
                part = numbers[top - first : bottom - first, instance.slices[1]]
                part[instance.mask[top - instance.top : bottom - instance.top]] = number
        return numbers

    def label_map(self, background: int) -> np.ndarray:
        """Return the class of each pixel (H, W) int32; `background` for pixels of no object."""
        table = np.array([background, *(instance.label for instance in self.objects)], np.int32)
        return table[self.instance_map()]

    def instance_image(self) -> Image.Image:
        """Return the instance map as an image that PNG stores with 16 bits. Raises HfVitSegError for over 65535
        objects.
        """
        if len(self.objects) > MAX_PNG_OBJECTS:
            raise HfVitSegError(
                f"found {len(self.objects)} objects, but a 16-bit image stores {MAX_PNG_OBJECTS}: use GeoJSON or COCO"
            )
        return Image.fromarray(self.instance_map())

    def counts(self) -> dict[str, int]:
        """Return the number of objects of each class that occurs, the most frequent first."""
        labels = [instance.label for instance in self.objects]
        order = sorted(set(labels), key=lambda label: (-labels.count(label), label))
        return {self.names[label]: labels.count(label) for label in order}

    def table(self) -> list[dict[str, Any]]:
        """Return a row for each object with the entries `COLUMNS`; lengths are pixels, areas square pixels."""
        return [dict(zip(COLUMNS, self.row(number), strict=True)) for number in range(1, len(self.objects) + 1)]

    def row(self, number: int) -> tuple[Any, ...]:
        """Return the entries of an object's row."""
        instance = self.objects[number - 1]
        x, y = (round(value, 3) for value in instance.centroid)
        return (
            number,
            instance.label,
            self.names[instance.label],
            round(instance.score, 6),
            instance.area,
            x,
            y,
            *instance.box,
        )

    def geojson(self) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection with one feature per object: a Polygon, or a MultiPolygon for several
        parts.

        Coordinates are pixels from the upper left corner, x to the right and y down.
        """
        return json.loads("".join(self.geojson_text()))

    def geojson_text(self, coordinates: Coordinates | None = None) -> Iterator[str]:
        """Yield the text of a GeoJSON file, in parts; without `coordinates`, these are pixels."""
        yield json.dumps({"type": "FeatureCollection", **(coordinates.member if coordinates else {})})[:-1]
        separator = ', "features": [\n'
        for number, instance in enumerate(self.objects, 1):
            yield separator + '{"type": "Feature", "geometry": '
            yield geometry_text(instance.polygons(), coordinates)
            yield f', "properties": {json.dumps(self.properties(number), ensure_ascii=False)}}}'
            separator = ",\n"
        yield "\n]}\n" if self.objects else ', "features": []}\n'

    def properties(self, number: int) -> dict[str, Any]:
        """Return the properties of an object's feature."""
        instance = self.objects[number - 1]
        return {
            "id": number,
            "class": instance.label,
            "name": self.names[instance.label],
            "color": self.palette[instance.label].tolist(),
            "pixels": instance.area,
            "score": round(instance.score, 6),
        }

    def coco(self, file_name: str = "") -> dict[str, Any]:
        """Return a COCO dataset of this image, with `file_name` and the RLE of every object."""
        return {
            "images": [{"id": 1, "file_name": file_name, "height": self.size[0], "width": self.size[1]}],
            "annotations": [
                {
                    "id": number,
                    "image_id": 1,
                    "category_id": instance.label,
                    **instance.rle(self.size),
                    "score": round(instance.score, 6),
                }
                for number, instance in enumerate(self.objects, 1)
            ],
            "categories": [{"id": index, "name": name} for index, name in enumerate(self.names)],
        }

    def overlay(
        self, opacity: float = 0.5, longest_side: int | None = 1600, colors: np.ndarray | None = None
    ) -> Image.Image:
        """Return the image blended with a color for each object (default: `object_colors`); `colors` are (n,
        3).
        """
        if self.image is None:
            raise HfVitSegError("an overlay requires an RGB or gray image, and the input was not one")
        return draw_numbers(self.image, self.instance_map().astype(np.int64), colors, opacity, longest_side)


def instance_dtype(count: int) -> np.dtype:
    """Return the type of the pixels of an instance map: uint16, or uint32 for over 65535 objects."""
    return np.dtype(np.uint16 if count <= MAX_PNG_OBJECTS else np.uint32)


def geometry_text(polygons: Sequence[Sequence[np.ndarray]], coordinates: Coordinates | None) -> str:
    """Return the geometry of an object as JSON: a Polygon, or a MultiPolygon for several parts."""
    texts = ["".join(coordinates.geometry_text(rings) if coordinates else polygon_text(rings)) for rings in polygons]
    if len(texts) == 1:
        return texts[0]
    parts = []
    for text in texts:
        geometry = json.loads(text)
        parts += [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    return json.dumps({"type": "MultiPolygon", "coordinates": parts})


def objects_of_map(numbers: np.ndarray, classes: Sequence[int], scores: Sequence[float]) -> list[FoundObject]:
    """Return the objects of a map (H, W) of numbers from 1 that have pixels."""
    objects = []
    for number, (top, left, bottom, right) in boxes_of_map(numbers):
        mask = numbers[top:bottom, left:right] == number
        objects.append(FoundObject.from_mask(int(classes[number - 1]), float(scores[number - 1]), top, left, mask))
    return objects


def boxes_of_map(numbers: np.ndarray) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yield the numbers from 1 that occur in a map (H, W), with their boxes (top, left, bottom, right)."""
    count = int(numbers.max(initial=0))
    if count < 1:
        return
    sides = np.stack([np.full(count + 1, max(numbers.shape)), np.zeros(count + 1, np.int64)])
    boxes = [sides.copy(), sides.copy()]
    rows, columns = np.nonzero(numbers > 0)
    found = numbers[rows, columns]
    for (first, last), indices in zip(boxes, (rows, columns), strict=True):
        np.minimum.at(first, found, indices)
        np.maximum.at(last, found, indices + 1)
    for number in range(1, count + 1):
        (top, bottom), (left, right) = (side[:, number].tolist() for side in boxes)
        if bottom > top:
            yield number, (top, left, bottom, right)


__all__ = ["COLUMNS", "FoundObject", "FoundSegments", "instance_dtype", "objects_of_map"]
