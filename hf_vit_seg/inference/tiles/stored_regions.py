"""Reading of stored samples by regions: memory-mapped arrays, and TIFFs by tiles or strips.

Shapes: S samples per pixel, H W the image, n m a region.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from hf_vit_seg.data.images.orientation import TURNS, turn_upright, upright_size
from hf_vit_seg.models.grid_sizes import ceil_div


class StoredImage(Protocol):
    """The stored samples of an image."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        ...

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a region inside the image, (S, n, m)."""
        ...


@dataclass(frozen=True, eq=False)
class StoredArray:
    """A memory-mapped array (S, H, W)."""

    array: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.array.shape[1], self.array.shape[2]

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a region, (S, n, m)."""
        return np.array(self.array[:, rows, columns])


@dataclass(frozen=True, eq=False)
class StoredUpright:
    """Numbers that are stored turned or mirrored (see `TURNS`), read as an upright image."""

    stored: StoredImage
    orientation: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return upright_size(*self.stored.size, self.orientation)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the numbers of a region of the upright image, (S, n, m)."""
        swapped, *reversed_sides = TURNS[self.orientation]
        height, width = [
            slice(side - part.stop, side - part.start) if turned else part
            for part, side, turned in zip((rows, columns), self.size, reversed_sides, strict=True)
        ]
        numbers = self.stored.read(width, height) if swapped else self.stored.read(height, width)
        return turn_upright(numbers, self.orientation)


class StoredSegments:
    """Pages of a TIFF with S samples per pixel in total; decodes the tiles or strips that overlap a region."""

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
    def segment_count(self) -> int:
        """The number of tiles or strips of a page."""
        down, across = (ceil_div(side, step) for side, step in zip(self.size, self.segment, strict=True))
        return down * across * (self.pages[0].samplesperpixel if self.planar else 1)

    @property
    def segment_bytes(self) -> int:
        """The size of a decoded tile or strip in bytes."""
        page, (height, width) = self.pages[0], self.segment
        return height * width * (1 if self.planar else page.samplesperpixel) * page.dtype.itemsize

    @property
    def planar(self) -> bool:
        """Whether samples are stored in separate tiles (planar configuration 2)."""
        return self.pages[0].samplesperpixel > 1 and int(self.pages[0].planarconfig) == 2

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Read a region, (S, n, m)."""
        page = self.pages[0]
        samples, shape = page.samplesperpixel, (rows.stop - rows.start, columns.stop - columns.start)
        pixels = np.empty((len(self.pages), samples, *shape), page.dtype)
        for i in range(len(self.pages)):
            for sample in range(samples if self.planar else 1):
                out = pixels[i, sample : sample + 1] if self.planar else pixels[i]
                for index, top, left in self.segments_in(rows, columns, sample):
                    copy_overlap(self.get_segment(i, index), (top, left), out, (rows.start, columns.start))
        return pixels.reshape(-1, *shape)

    def segments_in(self, rows: slice, columns: slice, sample: int) -> Iterator[tuple[int, int, int]]:
        """Yield the index, first row and first column of each tile or strip that overlaps a region (of one sample if
        planar).
        """
        height, width = self.segment
        down, across = (ceil_div(side, step) for side, step in zip(self.size, self.segment, strict=True))
        for i in range(rows.start // height, ceil_div(rows.stop, height)):
            for j in range(columns.start // width, ceil_div(columns.stop, width)):
                yield (sample * down + i) * across + j, i * height, j * width

    def get_segment(self, page: int, index: int) -> np.ndarray:
        """Decode a tile or strip, (samples, n, m), or return it from the cache; it may extend beyond the image."""
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
    """Decode one tile or strip of a page, (samples, n, m); sparse ones are filled with the nodata value."""
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
    """Copy the overlap of a segment at `corner` to a region at `origin`; both are (samples, rows, columns)."""
    here, there = [], []
    for axis in range(2):
        first = max(corner[axis], origin[axis])
        stop = min(corner[axis] + segment.shape[axis + 1], origin[axis] + out.shape[axis + 1])
        here.append(slice(first - corner[axis], stop - corner[axis]))
        there.append(slice(first - origin[axis], stop - origin[axis]))
    out[:, *there] = segment[:, *here]


__all__ = ["StoredArray", "StoredImage", "StoredSegments"]
