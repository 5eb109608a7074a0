"""Segmenting an image that does not fit into the memory, tile by tile.

The model sees sliding windows that lie on one grid over the whole image, whatever the tiles are; a tile is only the
part of the image whose pixels are computed and written at a time. Each window goes through the model once and its
coarse logits wait in a temporary file until the last tile that it reaches into is done. So labels do not depend on the
size of the tiles, and are those of the whole image under the same protocol.

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
from hf_vit_seg.inference.dense.row_logits import Canvas, LogitGrid, Model, compact, mirrored, resized_rows
from hf_vit_seg.inference.dense.sliding_windows import Crop, WindowGrid
from hf_vit_seg.inference.segmenter import WINDOWS_TOGETHER, Segmenter
from hf_vit_seg.models.grid_sizes import ceil_div

from .reading import RegionImage

SIDE = 2048
WINDOW = 512  # where neither protocol nor processor says which size the model is used to

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
    """Tiles of `side` pixels over an image of `size`, smaller ones at its right and lower border."""

    size: tuple[int, int]
    side: int = SIDE

    @property
    def shape(self) -> tuple[int, int]:
        """How many tiles lie below and beside each other."""
        return ceil_div(self.size[0], self.side), ceil_div(self.size[1], self.side)

    def __len__(self) -> int:
        """How many tiles there are."""
        return self.shape[0] * self.shape[1]

    def __iter__(self) -> Iterator[Tile]:
        for index in range(len(self)):
            row, column = divmod(index, self.shape[1])
            yield Tile(index, span(row, self.side, self.size[0]), span(column, self.side, self.size[1]))

    def index_at(self, row: int, column: int) -> int:
        """The tile that holds a pixel."""
        return row // self.side * self.shape[1] + column // self.side


def span(place: int, side: int, end: int) -> slice:
    """The pixels of a tile along an axis."""
    return slice(place * side, min((place + 1) * side, end))


def tiling_protocol(protocol: Protocol, processor: Any) -> Protocol:
    """The protocol for images that are tiled: windows at the image's own size.

    Without a window of its own it gets those of the processor's size, overlapping by a quarter and blended by Gaussian
    weights. PredictionError for one that resizes images.
    """
    if protocol.scales != (1.0,) or protocol.divisor or protocol.size not in (None, "own"):
        raise PredictionError(
            "An image that is read in parts is shown in windows at its own size: leave out scales, size and divisor, "
            f"and presets that have them (asked was for: {protocol.describe()})"
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
    """Coarse logits of windows, (h, w, K) each, in a temporary file that vanishes with the process."""

    def __init__(self, folder: Path):
        self.file = TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self.places: dict[Corner, int] = {}
        self.free: list[int] = []
        self.shape, self.dtype = (0, 0, 0), np.dtype(np.float32)

    def __contains__(self, corner: Corner) -> bool:
        return corner in self.places

    def put(self, corner: Corner, pixels: torch.Tensor) -> None:
        """Keep a window's logits (h, w, K)."""
        logits = np.ascontiguousarray(pixels.cpu().numpy())
        self.shape, self.dtype = logits.shape, logits.dtype
        place = self.free.pop() if self.free else len(self.places)
        self.file.seek(place * logits.nbytes)
        self.file.write(logits.data)
        self.places[corner] = place

    def get(self, corner: Corner) -> LogitGrid:
        """A window's logits, (1, K, h, w)."""
        logits = np.empty(self.shape, self.dtype)
        self.file.seek(self.places[corner] * logits.nbytes)
        self.file.readinto(logits.reshape(-1).view(np.uint8).data)
        return LogitGrid(torch.from_numpy(logits)[None].permute(0, 3, 1, 2))

    def drop(self, corner: Corner) -> None:
        """Let another window have the place of this one."""
        self.free.append(self.places.pop(corner))

    def close(self) -> None:
        """Remove the file."""
        self.file.close()


class TiledLogits:
    """The blended logits of sliding windows, any tile of them at a time.

    `crop` gives the pixel values of a window, `batch` is the number of windows that go through the model together.
    """

    def __init__(self, model: Model, crop: Crop, grid: WindowGrid, store: WindowStore, batch: int = 1):
        self.model, self.crop, self.grid, self.store, self.batch = model, crop, grid, store, batch
        self.device = torch.device("cpu")

    def over(self, tile: Tile) -> "TileCanvas":
        """The logits of a tile; its windows that are not stored yet go through the model."""
        corners = self.touching(tile)
        missing = [corner for corner in corners if corner not in self.store]
        height, width = self.grid.window
        for first in range(0, len(missing), self.batch):
            batch = missing[first : first + self.batch]
            crops = [self.crop(slice(top, top + height), slice(left, left + width)) for top, left in batch]
            logits = self.model(torch.cat(crops))
            self.device = logits.device
            for corner, each in zip(batch, logits.split(1), strict=True):
                self.store.put(corner, compact(each).pixels[0])
        return TileCanvas(self, tile, corners)

    def touching(self, tile: Tile) -> list[Corner]:
        """The windows that reach into a tile, in order of rows."""
        height, width = self.grid.window
        tops = [top for top in self.grid.tops if top < tile.rows.stop and top + height > tile.rows.start]
        lefts = [left for left in self.grid.lefts if left < tile.columns.stop and left + width > tile.columns.start]
        return [(top, left) for top in tops for left in lefts]

    def release(self, tile: Tile, tiles: TileGrid) -> None:
        """Forget the windows that no tile after this one needs."""
        height, width = self.grid.window
        for top, left in list(self.store.places):
            if tiles.index_at(top + height - 1, left + width - 1) <= tile.index:
                self.store.drop((top, left))


class TileCanvas:
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
        """Where a window lies in the tile's rows first .. stop - 1, and these rows in the window."""
        (height, width), (top, left) = self.logits.grid.window, corner
        begin = max(self.tile.rows.start + first, top)
        end = max(min(self.tile.rows.start + stop, top + height), begin)
        begin_column, end_column = max(self.tile.columns.start, left), min(self.tile.columns.stop, left + width)
        row, column = self.tile.rows.start + first, self.tile.columns.start
        here = slice(begin - row, end - row), slice(begin_column - column, end_column - column)
        return here, (slice(begin - top, end - top), slice(begin_column - left, end_column - left))

    def rows(self, first: int, stop: int) -> torch.Tensor:
        """The blended logits of some rows of the tile: (1, n, m, K)."""
        store, grid = self.logits.store, self.logits.grid
        kind = torch.from_numpy(np.empty(0, store.dtype)).dtype
        shape = 1, stop - first, self.size[1], store.shape[-1]
        blended = torch.zeros(shape, dtype=kind, device=self.logits.device)
        for corner in self.corners:
            here, (rows, columns) = self.overlap(corner, first, stop)
            if rows.start >= rows.stop:
                continue
            window = LogitGrid(store.get(corner).logits.to(self.logits.device))
            part = resized_rows(window, grid.window, rows.start, rows.stop)[:, :, columns]
            share = grid.weights[rows, columns] / self.total[first:stop][here]
            blended[:, here[0], here[1]].addcmul_(part, share.to(part)[..., None])
        return blended


class TiledImage:
    """An image under a segmenter, tile after tile; `folder` is where coarse logits wait. To be closed.

    The segmenter's protocol is one of `tiling_protocol`. Pixels without data are shown as the processor's mean.
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
            model = mirrored(segmenter.logits) if flip else segmenter.logits
            self.passes.append(TiledLogits(model, self.crop, grid, WindowStore(folder), batch))

    def crop(self, rows: slice, columns: slice) -> torch.Tensor:
        """The pixel values (1, C, n, m) of a window."""
        pixels, missing = self.image.read(rows, columns)
        size = rows.stop - rows.start, columns.stop - columns.start
        values = view(pixels, size, 1.0, self.own_size, self.segmenter.processor)
        return values if missing is None else values.masked_fill_(torch.from_numpy(missing), 0)

    @torch.inference_mode()
    def maps(self, tile: Tile, wanted: MapSelection | None = None) -> tuple[PixelMaps, np.ndarray | None]:
        """The maps (1, n, m) of a tile, and where pixels have no data; tiles are asked for in order."""
        missing = self.image.read(tile.rows, tile.columns)[1] if self.image.nodata is not None else None
        if missing is not None and missing.all():
            empty = torch.zeros(1, *tile.size)
            return PixelMaps(empty.to(torch.uint8), empty, empty), missing
        classes = self.segmenter.model.config.num_labels
        canvases: list[Canvas] = [logits.over(tile) for logits in self.passes]
        maps = read_maps(canvases, tile.size, classes, wanted)
        for logits in self.passes:
            logits.release(tile, self.tiles)
        return maps, missing

    def close(self) -> None:
        """Remove the temporary files."""
        for logits in self.passes:
            logits.store.close()


__all__ = ["SIDE", "Tile", "TileGrid", "TiledImage", "tiling_protocol"]
