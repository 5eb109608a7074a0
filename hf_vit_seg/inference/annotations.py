"""Conversion of label maps to annotation formats: GeoJSON polygons and COCO RLE.

Label maps are read by blocks of rows or columns, as they may be larger than memory. Labels without a class, such as
the nodata label, are left out.

Shapes: H W pixels, n rows, m columns, r runs, c corners.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hf_vit_seg.drawing.joined_regions import join_regions
from hf_vit_seg.drawing.outlines import Region

ROWS = 512  # rows or columns of a label map in memory that are converted at once

# The labels of some rows or columns, and their scores or None.
Block = tuple[np.ndarray, np.ndarray | None]


class Coordinates(Protocol):
    """Coordinates of polygons other than pixels."""

    @property
    def member(self) -> dict[str, Any]:
        """Further members of the FeatureCollection."""
        ...

    def geometry_text(self, rings: Sequence[np.ndarray]) -> Iterator[str]:
        """Return the geometry of a polygon as JSON, in parts, from its rings (c, 2) in pixels."""
        ...


def label_rows(label_map: np.ndarray, scores: np.ndarray | None = None) -> Iterator[Block]:
    """Iterate over a label map (H, W) and its scores by blocks of rows."""
    for first in range(0, len(label_map), ROWS):
        rows = slice(first, first + ROWS)
        yield label_map[rows], None if scores is None else scores[rows]


def label_columns(label_map: np.ndarray, scores: np.ndarray | None = None) -> Iterator[Block]:
    """Iterate over a label map (H, W) and its scores by blocks of columns."""
    for labels, values in label_rows(label_map.T, None if scores is None else scores.T):
        yield labels.T, None if values is None else values.T


def geojson(
    label_map: np.ndarray, names: Sequence[str], palette: np.ndarray, scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Convert a label map (H, W) to a GeoJSON FeatureCollection with one polygon per 4-connected region.

    Coordinates are pixels from the upper left corner, x to the right and y down, along pixel borders. The properties
    are the region's class (`class`, `name`, `color`), its number of `pixels`, and `score`, the mean of its `scores`.
    Features are in the order of their last row, then of their first pixel.
    """
    return json.loads("".join(geojson_text(label_rows(label_map, scores), names, palette)))


def geojson_text(
    blocks: Iterable[Block], names: Sequence[str], palette: np.ndarray, coordinates: Coordinates | None = None
) -> Iterator[str]:
    """Yield the text of a GeoJSON file, in parts, from blocks of rows; without `coordinates`, these are pixels."""
    yield json.dumps({"type": "FeatureCollection", **(coordinates.member if coordinates else {})})[:-1]
    separator = ', "features": [\n'
    for region in join_regions(blocks):
        if region.label < len(names):
            yield separator + '{"type": "Feature", "geometry": '
            yield from coordinates.geometry_text(region.rings) if coordinates else polygon_text(region.rings)
            yield f', "properties": {json.dumps(properties(region, names, palette), ensure_ascii=False)}}}'
            separator = ",\n"
    yield "\n]}\n" if separator == ",\n" else ', "features": []}\n'


def properties(region: Region, names: Sequence[str], palette: np.ndarray) -> dict[str, Any]:
    """Return the properties of a region's feature."""
    fields = {
        "class": region.label,
        "name": names[region.label],
        "color": palette[region.label].tolist(),
        "pixels": region.pixels,
    }
    return fields if region.total is None else fields | {"score": round(region.total / region.pixels, 6)}


def polygon_text(rings: Sequence[np.ndarray]) -> Iterator[str]:
    """Yield a GeoJSON Polygon as text, in parts, from its rings (c, 2), which must be closed."""
    separator = '{"type": "Polygon", "coordinates": ['
    for ring in rings:
        yield separator + json.dumps(np.concatenate([ring, ring[:1]]).tolist())
        separator = ", "
    yield "]}"


def coco(
    label_map: np.ndarray, names: Sequence[str], file_name: str = "", scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Convert a label map (H, W) to a COCO dataset of one image, with one annotation per class.

    Masks are compressed RLE, as in pycocotools; `score` is the mean of a class's `scores` (H, W).
    """
    size = label_map.shape[0], label_map.shape[1]
    return coco_dataset(label_columns(label_map, scores), size, names, file_name)


def coco_dataset(
    blocks: Iterable[Block], size: tuple[int, int], names: Sequence[str], file_name: str = ""
) -> dict[str, Any]:
    """Convert blocks of columns (H, m) of a label map of `size` (H, W) to a COCO dataset, as in `coco`."""
    masks, position = dict[int, RunLengths](), 0
    for labels, values in blocks:
        flat = labels.ravel(order="F")
        begin = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        end = np.append(begin[1:], flat.size)
        sums = None if values is None else np.add.reduceat(values.ravel(order="F").astype(np.float64), begin)
        for label in np.unique(flat[begin]).tolist():
            mine = flat[begin] == label
            total = None if sums is None else float(sums[mine].sum())
            masks.setdefault(label, RunLengths()).add(begin[mine] + position, end[mine] + position, size[0], total)
        position += flat.size
    labeled_masks = [(label, mask) for label, mask in sorted(masks.items()) if label < len(names)]
    return {
        "images": [{"id": 1, "file_name": file_name, "height": size[0], "width": size[1]}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": label, **mask.annotation(size)}
            for number, (label, mask) in enumerate(labeled_masks, start=1)
        ],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
    }


@dataclass
class RunLengths:
    """The mask of a class as run-length encoding in column-major order, which grows by blocks of columns."""

    characters: bytearray = field(default_factory=bytearray)
    count: int = 0  # number of lengths in `characters`
    previous: tuple[int, int] = (0, 0)  # the last two of them
    closed: int = 0  # the end of the last run in `characters`
    run: tuple[int, int] | None = None  # the last one, which may continue in the next block
    pixels: int = 0
    total: float | None = None
    sides: tuple[int, int, int, int] | None = None  # first and last column, first and last row

    def add(self, begin: np.ndarray, end: np.ndarray, height: int, total: float | None) -> None:
        """Add runs (r,) [begin, end) of a map with columns of `height`, and the sum of their scores."""
        self.total = total if self.total is None or total is None else self.total + total
        self.pixels += int((end - begin).sum())
        found = box(begin, end - 1, height)
        if self.sides is not None:
            old = self.sides
            found = min(old[0], found[0]), max(old[1], found[1]), min(old[2], found[2]), max(old[3], found[3])
        self.sides = found
        if self.run is not None:
            joined = self.run[1] == begin[0]
            begin = np.concatenate([[self.run[0]], begin[1:] if joined else begin])
            end = end if joined else np.concatenate([[self.run[1]], end])
        self.encode(np.diff(np.stack([begin, end], axis=1)[:-1].ravel(), prepend=self.closed).tolist())
        self.closed = int(end[-2]) if len(end) > 1 else self.closed
        self.run = int(begin[-1]), int(end[-1])

    def encode(self, lengths: list[int]) -> None:
        """Add run lengths, alternately outside and inside, to the compressed code.

        As in COCO, it has differences to the length two before, with 5 bits per character, lowest first.
        """
        for length in lengths:
            rest = length - self.previous[0] if self.count > 2 else length
            while True:
                bits, rest = rest & 31, rest >> 5
                more = rest != (-1 if bits & 16 else 0)
                self.characters.append(48 + bits + 32 * more)
                if not more:
                    break
            self.count, self.previous = self.count + 1, (self.previous[1], length)

    def annotation(self, size: tuple[int, int]) -> dict[str, Any]:
        """Return the fields of a COCO annotation of an image of `size` (H, W); the mask is complete."""
        height, width = size
        if self.run is not None:
            rest = height * width - self.run[1]
            self.encode([self.run[0] - self.closed, self.run[1] - self.run[0], *([rest] if rest else [])])
            self.closed, self.run = self.run[1], None
        left, right, top, bottom = self.sides or (0, -1, 0, -1)
        found = {
            "segmentation": {"size": [height, width], "counts": self.characters.decode("ascii")},
            "area": self.pixels,
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "iscrowd": 0,
        }
        return found if self.total is None else found | {"score": round(self.total / self.pixels, 6)}


def box(first: np.ndarray, last: np.ndarray, height: int) -> tuple[int, int, int, int]:
    """Return the first and last column and row of runs (r,) of pixels first .. last, in column-major order."""
    (left, top), (right, bottom) = divmod(first, height), divmod(last, height)
    crossing = left != right  # these runs include the bottom of one column and the top of the next
    highest = int(np.where(crossing, 0, top).min())
    lowest = int(np.where(crossing, height - 1, bottom).max())
    return int(left.min()), int(right.max()), highest, lowest


__all__ = ["Block", "Coordinates", "coco", "coco_dataset", "geojson", "geojson_text", "polygon_text"]
