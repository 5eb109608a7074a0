"""Polygons and run-length encodings of COCO annotations, checked against their image before pycocotools draws them.

pycocotools reads beyond its memory, or needs any amount of it, for numbers that do not fit the image.

Shapes: H W pixels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .source import SourceError

CORNERS = 3  # points that enclose an area
MAX_EXTENT = 10  # longer sides of the image: objects may reach beyond the image, but not further than this
MAX_COUNT_BITS = 65  # bits of a compressed count
MAX_OUTLINE_LENGTH = 5_000_000  # pixels: pycocotools needs about 100 bytes for each


def encode_shape(shape: Any, height: int, width: int) -> Any:
    """Encode a list of polygons or an RLE as pycocotools' compressed RLE; None if it encloses no area.

    Polygons of fewer than three points enclose no area. Raises SourceError for other shapes and numbers.
    """
    from pycocotools import mask as drawing

    if isinstance(shape, Mapping):
        encoded: Any = {"size": [height, width], "counts": run_lengths(shape, height, width)}
        return drawing.frPyObjects(encoded, height, width)
    if not isinstance(shape, list) or not all(isinstance(part, list) for part in shape):
        raise SourceError("expected a list of polygons, each a list of x, y, x, y ..., or an RLE with size and counts")
    polygons = [points for part in shape if len(points := polygon_points(part, height, width)) >= CORNERS]
    if not polygons:
        return None
    length = sum(outline_length(points) for points in polygons)
    if length > MAX_OUTLINE_LENGTH:
        raise SourceError(f"its outline has a length of {length:.0f} pixels, more than {MAX_OUTLINE_LENGTH}")
    return drawing.merge(drawing.frPyObjects([points.flatten().tolist() for points in polygons], height, width))


def polygon_points(part: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Convert the coordinates of a polygon to points (N, 2). Raises SourceError for those that do not fit the image."""
    numbers = finite_numbers(part, "polygon coordinates")
    if len(numbers) % 2:
        raise SourceError(f"a polygon has {len(numbers)} coordinates, expected an even number (x and y of each point)")
    check_within(numbers, height, width)
    return numbers.reshape(-1, 2)


def finite_numbers(values: Sequence[Any], what: str) -> np.ndarray:
    """Convert numbers to an array (N,) float64. Raises SourceError for other values, NaN and infinity."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            raise SourceError(f"{what} must be finite numbers, found {value!r}")
    return np.array(values, np.float64)


def is_finite(value: float) -> bool:
    """Return whether a number is finite as a float; integers may be too large for one."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_within(numbers: Iterable[float], height: int, width: int) -> None:
    """Raise SourceError for coordinates much farther away than the sides of the image."""
    limit = MAX_EXTENT * max(height, width)
    far = [number for number in numbers if abs(number) > limit]
    if far:
        raise SourceError(
            f"the coordinate {far[0]:.17g} is far outside the image of {height}x{width} pixels (height x width): use "
            "pixel coordinates of the image"
        )


def check_extent(box: Sequence[float], where: str) -> None:
    """Raise SourceError for a box (x, y, width, height) of negative width or height."""
    if min(box[2:]) < 0:
        raise SourceError(
            f"{where} has the bbox {list(box)}, expected x, y, width and height of at least 0: convert corners "
            "(x1, y1, x2, y2) to x1, y1, x2 - x1, y2 - y1"
        )


def check_pixel_units(coordinates: Iterable[Sequence[Any]], title: str) -> None:
    """Raise SourceError if all coordinates of a file are in 0 .. 1: they are shares of the image's sides."""
    has_numbers = False
    for numbers in coordinates:
        has_numbers = has_numbers or bool(numbers)
        if not all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers):
            return
    if has_numbers:
        raise SourceError(
            f"{title}: all coordinates are in 0 .. 1, expected pixels: multiply x by the width and y by the height of "
            "the image"
        )


def outline_length(points: np.ndarray) -> float:
    """Return the number of pixels along a closed polygon (N, 2)."""
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def run_lengths(shape: Mapping[str, Any], height: int, width: int) -> list[int]:
    """Return the uncompressed counts of an RLE. Raises SourceError unless they cover the image exactly."""
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise SourceError(f"its RLE has the size {size}, but its image has {[height, width]}")
    if isinstance(counts, str):
        counts = decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise SourceError("the counts of its RLE must be a list of integers from 0, or their compressed string")
    if sum(counts) != height * width:
        raise SourceError(f"the counts of its RLE cover {sum(counts)} pixels, but its image has {height * width}")
    return counts


def decompress(text: str) -> list[int]:
    """Decode the compressed counts of an RLE, as COCO's rleFrString.

    A character has 5 bits of a number; from the fourth on, numbers are differences from the count before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii", "replace"):
        code = character - 48
        if not 0 <= code < 64:
            raise SourceError(f"the compressed counts of its RLE have the invalid character {chr(character)!r}")
        value |= (code & 31) << shift
        shift += 5
        if shift > MAX_COUNT_BITS:
            raise SourceError("the compressed counts of its RLE have a number of more than 64 bits")
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise SourceError("the compressed counts of its RLE are incomplete")
    return counts


__all__ = ["MAX_EXTENT", "check_extent", "check_pixel_units", "check_within", "encode_shape", "finite_numbers"]
