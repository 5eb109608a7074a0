"""Writing of maps larger than memory: tile by tile in any order, then as TIFF and PNG.

During prediction, a map is a raw file of pixels in row-major order, next to a record of completed tiles, so that a
killed run can resume. Files are not memory-mapped, as mapped pages count as used memory.

Shapes: H W the map, n m a region, K classes.
"""

import json
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hf_vit_seg.errors import write_errors

from .tiled_logits import Tile

BLOCK = 512  # side of the tiles of TIFFs, and number of rows read at once
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, INDEXED = 0, 3  # PNG's color types
PLAN, DONE = "plan.json", "done.txt"


class Plane:
    """A map (H, W) in an open raw file."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: Any):
        self.shape, self.dtype = shape, np.dtype(dtype)
        length = shape[0] * shape[1] * self.dtype.itemsize
        if not path.exists():
            path.touch()
        self.file: BinaryIO = path.open("r+b", buffering=0)
        self.file.truncate(length)

    def write(self, tile: Tile, values: np.ndarray) -> None:
        """Write a tile's pixels (n, m)."""
        values = np.ascontiguousarray(values, self.dtype)
        for row, line in zip(range(tile.rows.start, tile.rows.stop), values, strict=True):
            self.file.seek((row * self.shape[1] + tile.columns.start) * self.dtype.itemsize)
            self.file.write(line.data)

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Read rows first .. stop - 1, (n, W)."""
        count = (stop - first) * self.shape[1]
        self.file.seek(first * self.shape[1] * self.dtype.itemsize)
        data = self.file.read(count * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(stop - first, self.shape[1])

    def row_blocks(self) -> Iterator[np.ndarray]:
        """Iterate over all rows in blocks of at most `BLOCK`."""
        for first in range(0, self.shape[0], BLOCK):
            yield self.rows(first, min(first + BLOCK, self.shape[0]))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TileRecord:
    """A folder of planes, and the record of their completed tiles.

    `plan` has everything that the pixels depend on. Tiles of an earlier run are reused if it had the same plan, and
    deleted otherwise.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]):
        self.folder = folder
        with write_errors(folder):
            self.open(json.dumps(plan, sort_keys=True))

    def open(self, plan: str) -> None:
        """Reuse or create the folder, and open the list of tiles."""
        folder = self.folder
        note = folder / PLAN
        if not note.exists() or note.read_text(encoding="utf-8") != plan:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            note.write_text(plan, encoding="utf-8")
        done = folder / DONE
        # The last line is skipped if it is incomplete, as the run may have been killed while writing it.
        lines = done.read_text(encoding="ascii").split("\n")[:-1] if done.exists() else []
        self.done = {int(line) for line in lines if line.isdigit()}
        done.write_text("".join(f"{index}\n" for index in sorted(self.done)), encoding="ascii")
        self.file = done.open("a", encoding="ascii", buffering=1)

    def plane(self, name: str, shape: tuple[int, int], dtype: Any) -> Plane:
        """Open one of the maps."""
        return Plane(self.folder / f"{name}.raw", shape, dtype)

    def add(self, tile: Tile) -> None:
        """Record that a tile is complete in all planes."""
        self.done.add(tile.index)
        with write_errors(self.folder):
            self.file.write(f"{tile.index}\n")

    def close(self) -> None:
        """Close the record and keep the folder for a later run."""
        self.file.close()

    def remove(self) -> None:
        """Close the record and delete the folder."""
        self.close()
        shutil.rmtree(self.folder)


def write_tiff(
    path: Path,
    plane: Plane,
    palette: np.ndarray | None = None,
    tags: tuple[tuple[Any, ...], ...] = (),
    nodata: int | None = None,
) -> None:
    """Write a plane as a TIFF in deflated tiles, with `palette` (K, 3) uint8 as the color map of 8-bit values.

    `tags` are extra tags in tifffile's format, such as `RegionImage.georeference`; `nodata` is written as GDAL's tag.
    """
    import tifffile

    colors = None
    if palette is not None and plane.dtype == np.uint8:
        colors = np.zeros((3, 256), np.uint16)
        colors[:, : len(palette)] = palette[:256].T.astype(np.uint16) * 257
    if nodata is not None:
        text = f"{nodata}\0"
        tags = (*tags, (42113, 2, len(text), text, True))
    tifffile.imwrite(
        path,
        blocks(plane),
        shape=plane.shape,
        dtype=plane.dtype,
        tile=(BLOCK, BLOCK),
        compression="zlib",
        photometric="minisblack" if colors is None else "palette",
        colormap=colors,
        metadata=None,
        extratags=tags,
        bigtiff=plane.shape[0] * plane.shape[1] * plane.dtype.itemsize > 2**31,
    )


def blocks(plane: Plane) -> Iterator[np.ndarray]:
    """Iterate over the tiles of a TIFF in row-major order, zero-padded at the borders."""
    for rows in plane.row_blocks():
        for first in range(0, plane.shape[1], BLOCK):
            block = np.zeros((BLOCK, BLOCK), plane.dtype)
            part = rows[:, first : first + BLOCK]
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def write_png(path: Path, plane: Plane, palette: np.ndarray | None = None) -> None:
    """Write a plane as a PNG of 8 or 16 bits, with `palette` (K, 3) uint8 for 8-bit values."""
    indexed = palette is not None and plane.dtype == np.uint8
    header = struct.pack(
        ">IIBBBBB", plane.shape[1], plane.shape[0], plane.dtype.itemsize * 8, INDEXED if indexed else GRAY, 0, 0, 0
    )
    packer = zlib.compressobj()
    with path.open("wb") as file:
        file.write(PNG_SIGNATURE)
        write_chunk(file, b"IHDR", header)
        if palette is not None and indexed:
            write_chunk(file, b"PLTE", np.resize(palette[:256], (256, 3)).astype(np.uint8).tobytes())
        for rows in plane.row_blocks():
            write_chunk(file, b"IDAT", packer.compress(scanlines(rows)))
        write_chunk(file, b"IDAT", packer.flush())
        write_chunk(file, b"IEND", b"")


def write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    """Write one chunk of a PNG."""
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def scanlines(rows: np.ndarray) -> bytes:
    """Encode rows (n, W) for PNG: big-endian, each preceded by filter type 0."""
    values = rows.astype(rows.dtype.newbyteorder(">"), copy=False).view(np.uint8)
    return np.pad(values, ((0, 0), (1, 0))).tobytes()


__all__ = ["Plane", "TileRecord", "write_png", "write_tiff"]
