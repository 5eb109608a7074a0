"""Writing of maps as TIFF, PNG and NumPy archives, a block of rows at a time.

Shapes: H W the map, n rows, m columns, k maps, K classes.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from hf_vit_seg.data.images.georeference import GeoTags

BLOCK = 512  # side of the tiles of TIFFs, and number of rows read at once
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, INDEXED = 0, 3  # PNG's color types


class Raster(Protocol):
    """A map (H, W) that is read by rows or columns."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        ...

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return the rows first .. stop - 1, (n, W)."""
        ...

    def columns(self, first: int, stop: int) -> np.ndarray:
        """Return the columns first .. stop - 1, (H, m)."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayRaster:
    """A map in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel."""
        return self.array.dtype

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return the rows first .. stop - 1, (n, W)."""
        return self.array[first:stop]

    def columns(self, first: int, stop: int) -> np.ndarray:
        """Return the columns first .. stop - 1, (H, m)."""
        return self.array[:, first:stop]


@dataclass(frozen=True, eq=False)
class GrayRaster:
    """A map of 0 .. 1 (float) or 0 .. 255 (uint8), read as uint8."""

    raster: Raster
    dtype: np.dtype = field(default_factory=lambda: np.dtype(np.uint8))

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.raster.shape

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return the rows first .. stop - 1, (n, W)."""
        return to_gray(self.raster.rows(first, stop))

    def columns(self, first: int, stop: int) -> np.ndarray:
        """Return the columns first .. stop - 1, (H, m)."""
        return to_gray(self.raster.columns(first, stop))


def to_gray(values: np.ndarray) -> np.ndarray:
    """Convert floats of 0 .. 1 to 0 .. 255; uint8 is unchanged."""
    return values if values.dtype == np.uint8 else (values * 255 + 0.5).astype(np.uint8)


def row_blocks(raster: Raster) -> Iterator[np.ndarray]:
    """Iterate over all rows in blocks of at most `BLOCK`."""
    for first in range(0, raster.shape[0], BLOCK):
        yield raster.rows(first, min(first + BLOCK, raster.shape[0]))


def column_blocks(raster: Raster) -> Iterator[np.ndarray]:
    """Iterate over all columns in blocks of at most `BLOCK`."""
    for first in range(0, raster.shape[1], BLOCK):
        yield raster.columns(first, min(first + BLOCK, raster.shape[1]))


def write_tiff(
    path: Path,
    raster: Raster,
    palette: np.ndarray | None = None,
    tags: GeoTags = (),
    nodata: int | None = None,
) -> None:
    """Write a map as a TIFF in deflated tiles, with `palette` (K, 3) uint8 as the color map of 8-bit values.

    `tags` are extra tags in tifffile's format, such as from `file_georeference`; `nodata` is written as GDAL's tag.
    """
    import tifffile

    colors = None
    if palette is not None and raster.dtype == np.uint8:
        colors = np.zeros((3, 256), np.uint16)
        colors[:, : len(palette)] = palette[:256].T.astype(np.uint16) * 257
    if nodata is not None:
        text = f"{nodata}\0"
        tags = (*tags, (42113, 2, len(text), text, True))
    tifffile.imwrite(
        path,
        blocks(raster),
        shape=raster.shape,
        dtype=raster.dtype,
        tile=(BLOCK, BLOCK),
        compression="zlib",
        photometric="minisblack" if colors is None else "palette",
        colormap=colors,
        metadata=None,
        extratags=tags,
        bigtiff=raster.shape[0] * raster.shape[1] * raster.dtype.itemsize > 2**31,
    )


def blocks(raster: Raster) -> Iterator[np.ndarray]:
    """Iterate over the tiles of a TIFF in row-major order, zero-padded at the borders."""
    for rows in row_blocks(raster):
        for first in range(0, raster.shape[1], BLOCK):
            block = np.zeros((BLOCK, BLOCK), raster.dtype)
            part = rows[:, first : first + BLOCK]
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def write_png(path: Path, raster: Raster, palette: np.ndarray | None = None) -> None:
    """Write a map as a PNG of 8 or 16 bits, with `palette` (K, 3) uint8 for 8-bit values."""
    indexed = palette is not None and raster.dtype == np.uint8
    header = struct.pack(
        ">IIBBBBB", raster.shape[1], raster.shape[0], raster.dtype.itemsize * 8, INDEXED if indexed else GRAY, 0, 0, 0
    )
    packer = zlib.compressobj()
    with path.open("wb") as file:
        file.write(PNG_SIGNATURE)
        write_chunk(file, b"IHDR", header)
        if palette is not None and indexed:
            write_chunk(file, b"PLTE", np.resize(palette[:256], (256, 3)).astype(np.uint8).tobytes())
        for rows in row_blocks(raster):
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


def write_archive(path: Path, arrays: Mapping[str, Sequence[Raster]]) -> None:
    """Write arrays (k, H, W), each given by its maps, as a compressed .npz file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, rasters in arrays.items():
            header = {"descr": np.lib.format.dtype_to_descr(rasters[0].dtype), "fortran_order": False}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header | {"shape": (len(rasters), *rasters[0].shape)})
                for raster in rasters:
                    for rows in row_blocks(raster):
                        file.write(np.ascontiguousarray(rows).tobytes())


__all__ = [
    "BLOCK",
    "ArrayRaster",
    "GrayRaster",
    "Raster",
    "column_blocks",
    "row_blocks",
    "to_gray",
    "write_archive",
    "write_png",
    "write_tiff",
]
