"""Segmentation of images larger than memory, tile by tile.

The sliding windows form one grid over the whole image, independent of the tiles; a tile is the part of the image that
is computed and written at once. The model processes each window once, and its coarse logits are stored in a temporary
file until the last tile that it overlaps is done. Labels therefore do not depend on the tile size, and are equal to the
labels of the whole image under the same protocol.

Shapes: C channels, K classes, H W the image, h w the coarse logits of a window, n rows and m columns of a tile.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch

from hf_vit_seg.inference.dense.image_preparation import view
from hf_vit_seg.inference.dense.pixel_maps import MapSelection, PixelMaps, read_maps
from hf_vit_seg.inference.dense.protocols import PredictionError, Protocol, edges
from hf_vit_seg.inference.dense.row_logits import LogitGrid, Model, RowLogits, compact, flip_outputs, resize_rows
from hf_vit_seg.inference.dense.sliding_windows import Crop, WindowGrid
from hf_vit_seg.inference.segmenter import WINDOWS_TOGETHER, Segmenter
from hf_vit_seg.models.grid_sizes import ceil_div

from .region_reading import RegionImage

SIDE = 2048
WINDOW = 512  # if neither protocol nor processor defines a size

Corner = tuple[int, int]  # (top, left) of a window


@dataclass(frozen=True)
class Tile:
    """A part of an image: `index` counts row by row."""

    index: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class TileGrid:
    """Tiles of `side` pixels over an image of `size`; smaller ones at the right and bottom borders."""

    size: tuple[int, int]
    side: int = SIDE

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and columns of tiles."""
        return ceil_div(self.size[0], self.side), ceil_div(self.size[1], self.side)

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]

    def __iter__(self) -> Iterator[Tile]:
        for index in range(len(self)):
            row, column = divmod(index, self.shape[1])
            yield Tile(index, span(row, self.side, self.size[0]), span(column, self.side, self.size[1]))

    def index_at(self, row: int, column: int) -> int:
        """Return the index of the tile that contains a pixel."""
        return row // self.side * self.shape[1] + column // self.side


def span(index: int, side: int, end: int) -> slice:
    """Return the pixels of a tile along an axis."""
    return slice(index * side, min((index + 1) * side, end))


def tiling_protocol(protocol: Protocol, processor: Any) -> Protocol:
    """Return the protocol for tiled images, with windows at the image's original size.

    If `protocol` has no window, the window is the processor's size, with an overlap of a quarter and Gaussian blending.
    Raises PredictionError for protocols that resize images.
    """
    if protocol.scales != (1.0,) or protocol.divisor or protocol.size not in (None, "own"):
        raise PredictionError(
            "tiled images are processed in windows at their own size: remove scales, size and divisor, and presets "
            f"with these (found: {protocol.describe()})"
        )
    if protocol.window is not None:
        return protocol
    sides = edges(processor)
    window = sides.get("height", sides.get("shortest_edge", WINDOW)), sides.get("width", sides.get("shortest_edge"))
    window = window[0], window[1] or window[0]
    stride = max(1, window[0] * 3 // 4), max(1, window[1] * 3 // 4)
    given = protocol.model_dump(exclude_unset=True)
    return Protocol(**given | {"window": window, "stride": stride, "blend": "gaussian"})


class WindowStore:
    """Coarse logits of windows, (h, w, K), in a temporary file that is deleted with the process."""

    def __init__(self, folder: Path):
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self.slots: dict[Corner, int] = {}
        self.free: list[int] = []
        self.shape, self.dtype = (0, 0, 0), np.dtype(np.float32)

    def __contains__(self, corner: Corner) -> bool:
        return corner in self.slots

    def put(self, corner: Corner, pixels: torch.Tensor) -> None:
        """Store a window's logits (h, w, K)."""
        logits = np.ascontiguousarray(pixels.cpu().numpy())
        self.shape, self.dtype = logits.shape, logits.dtype
        index = self.free.pop() if self.free else len(self.slots)
        self.file.seek(index * logits.nbytes)
        self.file.write(logits.data)
        self.slots[corner] = index

    def get(self, corner: Corner) -> LogitGrid:
        """Load a window's logits, (1, K, h, w)."""
        logits = np.empty(self.shape, self.dtype)
        self.file.seek(self.slots[corner] * logits.nbytes)
        self.file.readinto(logits.reshape(-1).view(np.uint8).data)
        return LogitGrid(torch.from_numpy(logits)[None].permute(0, 3, 1, 2))

    def drop(self, corner: Corner) -> None:
        """Free the slot of a window."""
        self.free.append(self.slots.pop(corner))

    def close(self) -> None:
        """Remove the file."""
        self.file.close()


class TiledLogits:
    """The blended logits of sliding windows, by tiles.

    `crop` returns the pixel values of a window, `batch` is the number of windows in a forward pass.
    """

    def __init__(self, model: Model, crop: Crop, grid: WindowGrid, store: WindowStore, batch: int = 1):
        self.model, self.crop, self.grid, self.store, self.batch = model, crop, grid, store, batch
        self.device = torch.device("cpu")

    def tile_logits(self, tile: Tile) -> "TileLogits":
        """Return the logits of a tile; runs the model on its windows that are not stored yet."""
        corners = self.windows_in(tile)
        missing = [corner for corner in corners if corner not in self.store]
        height, width = self.grid.window
        for first in range(0, len(missing), self.batch):
            batch = missing[first : first + self.batch]
            crops = [self.crop(slice(top, top + height), slice(left, left + width)) for top, left in batch]
            logits = self.model(torch.cat(crops))
            self.device = logits.device
            for corner, tile_logits in zip(batch, logits.split(1), strict=True):
                self.store.put(corner, compact(tile_logits).pixels[0])
        return TileLogits(self, tile, corners)

    def windows_in(self, tile: Tile) -> list[Corner]:
        """Return the windows that overlap a tile, in row-major order."""
        height, width = self.grid.window
        tops = [top for top in self.grid.tops if top < tile.rows.stop and top + height > tile.rows.start]
        lefts = [left for left in self.grid.lefts if left < tile.columns.stop and left + width > tile.columns.start]
        return [(top, left) for top in tops for left in lefts]

    def release(self, tile: Tile, tiles: TileGrid) -> None:
        """Free the windows that no later tile needs."""
        height, width = self.grid.window
        for top, left in list(self.store.slots):
            if tiles.index_at(top + height - 1, left + width - 1) <= tile.index:
                self.store.drop((top, left))


class TileLogits:
    """The logits of a tile as a canvas of its size."""

    def __init__(self, logits: TiledLogits, tile: Tile, corners: Sequence[Corner]):
        self.logits, self.tile, self.corners = logits, tile, corners
        self.total = torch.zeros(tile.size, dtype=torch.float64)
        for corner in corners:
            here, there = self.overlap(corner, 0, tile.size[0])
            self.total[here] += logits.grid.weights[there]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the tile."""
        return self.tile.size

    def overlap(self, corner: Corner, first: int, stop: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the overlap of a window with rows first .. stop - 1 of the tile, in coordinates of both."""
        (height, width), (top, left) = self.logits.grid.window, corner
        begin = max(self.tile.rows.start + first, top)
        end = max(min(self.tile.rows.start + stop, top + height), begin)
        begin_column, end_column = max(self.tile.columns.start, left), min(self.tile.columns.stop, left + width)
        row, column = self.tile.rows.start + first, self.tile.columns.start
        here = slice(begin - row, end - row), slice(begin_column - column, end_column - column)
        return here, (slice(begin - top, end - top), slice(begin_column - left, end_column - left))

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """Return the blended logits of some rows of the tile: (1, n, m, K)."""
        store, grid = self.logits.store, self.logits.grid
        kind = torch.from_numpy(np.empty(0, store.dtype)).dtype
        shape = 1, stop - first, self.size[1], store.shape[-1]
        blended = torch.zeros(shape, dtype=kind, device=self.logits.device)
        for corner in self.corners:
            here, (rows, columns) = self.overlap(corner, first, stop)
            if rows.start >= rows.stop:
                continue
            window = LogitGrid(store.get(corner).logits.to(self.logits.device))
            part = resize_rows(window, grid.window, rows.start, rows.stop)[:, :, columns]
            share = grid.weights[rows, columns] / self.total[first:stop][here]
            blended[:, here[0], here[1]].addcmul_(part, share.to(part)[..., None])
        return blended


class TiledImage:
    """Segments an image tile by tile; coarse logits are stored in `folder` until `close`.

    The segmenter's protocol must be from `tiling_protocol`. Nodata pixels are replaced by the processor's mean.
    """

    def __init__(self, segmenter: Segmenter, image: RegionImage, tiles: TileGrid, folder: Path):
        self.segmenter, self.image, self.tiles = segmenter, image, tiles
        protocol, size = segmenter.protocol, image.size
        batch = protocol.window_batch or (1 if segmenter.device.type == "cpu" else WINDOWS_TOGETHER)
        self.own_size = Protocol(size="own")
        self.passes = []
        for flip in (False, True) if protocol.flip else (False,):
            height, width = protocol.window or size
            window = min(height, size[0]), min(width, size[1])
            grid = WindowGrid(size, window, protocol.steps, protocol.blend, flip)
            model = flip_outputs(segmenter.checked_logits) if flip else segmenter.checked_logits
            self.passes.append(TiledLogits(model, self.crop, grid, WindowStore(folder), batch))

    def crop(self, rows: slice, columns: slice) -> torch.Tensor:
        """Return the pixel values (1, C, n, m) of a window."""
        pixels, missing = self.image.read(rows, columns)
        size = rows.stop - rows.start, columns.stop - columns.start
        values = view(pixels, size, 1.0, self.own_size, self.segmenter.processor)
        return values if missing is None else values.masked_fill_(torch.from_numpy(missing), 0)

    @torch.inference_mode()
    def maps(self, tile: Tile, selection: MapSelection | None = None) -> tuple[PixelMaps, np.ndarray | None]:
        """Return the maps (1, n, m) of a tile and the mask of nodata pixels; tiles must be requested in order."""
        missing = self.image.read(tile.rows, tile.columns)[1] if self.image.nodata is not None else None
        if missing is not None and missing.all():
            empty = torch.zeros(1, *tile.size)
            return PixelMaps(empty.to(torch.uint8), empty, empty), missing
        classes = self.segmenter.model.config.num_labels
        row_logits: list[RowLogits] = [logits.tile_logits(tile) for logits in self.passes]
        maps = read_maps(row_logits, tile.size, classes, selection)
        for logits in self.passes:
            logits.release(tile, self.tiles)
        return maps, missing

    def close(self) -> None:
        """Remove the temporary files."""
        for logits in self.passes:
            logits.store.close()


__all__ = ["SIDE", "Tile", "TileGrid", "TiledImage", "tiling_protocol"]
