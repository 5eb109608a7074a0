"""Numbers of an image as they are stored, a region at a time: mapped arrays, and TIFFs by tiles or strips.

Shapes: S numbers per pixel, H W the image, n m a region.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from hf_vit_seg.data.images.orientation import TURNS, turn_upright, upright_size
from hf_vit_seg.models.grid_sizes import ceil_div


class Stored(Protocol):
    """Numbers of an image as they are stored."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        ...

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The numbers of a region that lies within the image, (S, n, m)."""
        ...


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array (S, H, W) that is mapped from a file."""

    array: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.array.shape[1], self.array.shape[2]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The numbers of a region, (S, n, m)."""
        return np.array(self.array[:, rows, columns])


@dataclass(frozen=True, eq=False)
class StoredUpright:
    """Numbers that are stored turned or mirrored (see `TURNS`), read as an upright image."""

    stored: Stored
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return upright_size(*self.stored.size, self.orientation)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The numbers of a region of the upright image, (S, n, m)."""
        swapped, *reversed_sides = TURNS[self.orientation]
        height, width = [
            slice(side - part.stop, side - part.start) if turned else part
            for part, side, turned in zip((rows, columns), self.size, reversed_sides, strict=True)
        ]
        numbers = self.stored.read(width, height) if swapped else self.stored.read(height, width)
        return turn_upright(numbers, self.orientation)


class StoredSegments:
    """Pages of a TIFF, S numbers per pixel in all; the tiles or strips that a region touches are decoded."""

    def __init__(self, pages: list[Any], cache_bytes: int):
        self.pages, self.cache_bytes = pages, cache_bytes
        self.cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self.cached = 0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.pages[0].imagelength, self.pages[0].imagewidth

    @cached_property
    def segment(self) -> tuple[int, int]:
        """(height, width) of a tile, or of a strip."""
        page = self.pages[0]
        if page.is_tiled:
            return page.tilelength, page.tilewidth
        return min(page.rowsperstrip, page.imagelength), page.imagewidth

    @property
    def segment_bytes(self) -> int:
        """What a decoded tile or strip takes."""
        page, (height, width) = self.pages[0], self.segment
        return height * width * (1 if self.planar else page.samplesperpixel) * page.dtype.itemsize

    @property
    def planar(self) -> bool:
        """Whether each band has tiles of its own."""
        return self.pages[0].samplesperpixel > 1 and int(self.pages[0].planarconfig) == 2

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The numbers of a region, (S, n, m)."""
        page = self.pages[0]
        samples, shape = page.samplesperpixel, (rows.stop - rows.start, columns.stop - columns.start)
        found = np.empty((len(self.pages), samples, *shape), page.dtype)
        for i in range(len(self.pages)):
            for band in range(samples if self.planar else 1):
                out = found[i, band : band + 1] if self.planar else found[i]
                for index, top, left in self.touched(rows, columns, band):
                    copy_overlap(self.decoded(i, index), (top, left), out, (rows.start, columns.start))
        return found.reshape(-1, *shape)

    def touched(self, rows: slice, columns: slice, band: int) -> Iterator[tuple[int, int, int]]:
        """Index, first row and first column of every tile or strip that a region touches, in one band if planar."""
        height, width = self.segment
        down, across = (ceil_div(side, step) for side, step in zip(self.size, self.segment, strict=True))
        for i in range(rows.start // height, ceil_div(rows.stop, height)):
            for j in range(columns.start // width, ceil_div(columns.stop, width)):
                yield (band * down + i) * across + j, i * height, j * width

    def decoded(self, page: int, index: int) -> np.ndarray:
        """A tile or strip, (samples, n, m), at the border cut to the image or not."""
        key = page, index
        if key in self.cache:
            self.cache.move_to_end(key)
            return self.cache[key]
        segment = decode(self.pages[page], index)
        self.cache[key] = segment
        self.cached += segment.nbytes
        while self.cached > self.cache_bytes and len(self.cache) > 1:
            self.cached -= self.cache.popitem(last=False)[1].nbytes
        return segment


def decode(page: Any, index: int) -> np.ndarray:
    """One tile or strip of a TIFF's page, (samples, n, m); one that was never written holds the nodata value."""
    stored = page.parent.filehandle
    data = None
    if page.databytecounts[index]:
        stored.seek(page.dataoffsets[index])
        data = stored.read(page.databytecounts[index])
    segment, _, (_, height, width, samples) = page.decode(data, index, jpegtables=page.jpegtables)
    if segment is None:
        return np.full((samples, height, width), page.nodata, page.dtype)
    return segment[0].transpose(2, 0, 1)


def copy_overlap(segment: np.ndarray, corner: tuple[int, int], out: np.ndarray, origin: tuple[int, int]) -> None:
    """Copy what lies in both from a segment at `corner` to a region at `origin`; both are (samples, rows, columns)."""
    here, there = [], []
    for axis in range(2):
        first = max(corner[axis], origin[axis])
        stop = min(corner[axis] + segment.shape[axis + 1], origin[axis] + out.shape[axis + 1])
        here.append(slice(first - corner[axis], stop - corner[axis]))
        there.append(slice(first - origin[axis], stop - origin[axis]))
    out[:, *there] = segment[:, *here]


__all__ = ["Stored", "StoredArray", "StoredSegments"]
