"""Images that are too large for the memory, read a region at a time.

Regions come from TIFFs, tile by tile or strip by strip, and from .npy files. Pixels are those that `read_pixels` gives
for the whole file. Pixel values that a GeoTIFF declares as missing ("nodata") are told apart, and the tags that place
it on the earth are handed on as they stand, so that nothing of them is lost on the way through another library.

Shapes: C bands as the model takes them, S numbers per pixel as stored, H W the image, n m a region.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.images.files import ImageFileError, check_sides, failures_in_words, first_bytes
from hf_vit_seg.data.images.nodata import missing_pixels, page_nodata
from hf_vit_seg.data.images.pixels import (
    NUMPY,
    TIFFS,
    array_pixels,
    as_channels,
    find_matching_series,
    is_pil_image,
    move_channels_first,
    pil_pixels,
    read_array,
)

from .stored_regions import Stored, StoredArray, StoredSegments

CACHE_BYTES = 256 * 2**20  # decoded tiles or strips that are kept, as neighboring windows share them
ORIENTATION = 274
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)  # OGC 19-008: scale, tie points, matrix, keys
MIN_IS_WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSPECIFIED, PREMULTIPLIED, TRANSPARENCY = 0, 1, 2  # what the last of several numbers per pixel is
MODES = {
    (MIN_IS_WHITE, 1): "L",
    (BLACK, 1): "L",
    (BLACK, 2): "LA",
    (RGB, 3): "RGB",
    (RGB, 4): "RGBA",
    (CMYK, 4): "CMYK",
}
JPEG_COMPRESSIONS = (6, 7, 33007, 34892)  # decoded straight to RGB
RETILE = 'rewrite it in tiles, such as with "gdal_translate -co TILED=YES -co BIGTIFF=IF_SAFER IN.tif OUT.tif"'


@dataclass(frozen=True, eq=False)
class RegionImage:
    """A file that is read a region at a time: `shown` turns stored numbers (S, n, m) into pixels (C, n, m).

    `georeference` are TIFF tags as tifffile writes them. To be closed, best by `with`.
    """

    path: Path
    stored: Stored
    shown: Callable[[np.ndarray], torch.Tensor]
    nodata: float | None = None
    georeference: tuple[tuple[Any, ...], ...] = ()
    files: ExitStack | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.stored.size

    def read(self, rows: slice, columns: slice) -> tuple[torch.Tensor, np.ndarray | None]:
        """Pixels (C, n, m), uint8 or float32, and a mask (n, m) of those that are missing in all bands, if any can be.

        ImageFileError where the file is broken.
        """
        with failures_in_words(self.path):
            numbers = self.stored.read(rows, columns)
        return self.shown(numbers), self.missing(numbers)

    def missing(self, numbers: np.ndarray) -> np.ndarray | None:
        """Which pixels have no data."""
        if self.nodata is None:
            return None
        return missing_pixels(numbers, self.nodata)

    def close(self) -> None:
        """Close the file."""
        if self.files is not None:
            self.files.close()

    def __enter__(self) -> "RegionImage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def region_size(path: Path) -> tuple[int, int] | None:
    """(height, width) of a file that may be read by regions, from its header; None for other formats.

    ImageFileError for what is broken, or is no file.
    """
    start = first_bytes(path)
    if start.startswith(TIFFS):
        height, width = tiff_size(path)
    elif start.startswith(NUMPY):
        height, width = array_sides(read_array(path).shape, path)
    else:
        return None
    check_sides(path, height, width)
    return height, width


def tiff_size(path: Path) -> tuple[int, int]:
    """What the first page of a TIFF says of its height and width."""
    import tifffile

    with failures_in_words(path), tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        return page.imagelength, page.imagewidth


def array_sides(shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """(height, width) of an array (H, W), (C, H, W) or (H, W, C)."""
    if len(shape) not in (2, 3):
        raise ImageFileError(f"{path}: an array of shape {shape} is no image, expected two or three dimensions")
    return (shape[-2], shape[-1]) if len(shape) == 2 or shape[0] < shape[-1] else (shape[0], shape[1])


def open_regions(path: Path, bands: int = 3) -> RegionImage:
    """A file as an image of `bands` bands that is read a region at a time.

    ImageFileError where its format or its layout does not allow for it.
    """
    start = first_bytes(path)
    if start.startswith(TIFFS):
        with failures_in_words(path):
            return open_tiff(path, bands)
    if start.startswith(NUMPY):
        array = move_channels_first(read_array(path), (bands, 1), path)
        check_sides(path, *array.shape[1:])
        return RegionImage(path, StoredArray(array), lambda numbers: array_pixels(numbers, bands, path))
    raise ImageFileError(f"{path}: only TIFF and .npy files are read a region at a time: save it as a tiled TIFF")


def open_tiff(path: Path, bands: int) -> RegionImage:
    """A TIFF as a `RegionImage`."""
    import tifffile

    with ExitStack() as stack:
        tiff = stack.enter_context(tifffile.TiffFile(path))
        page: Any = tiff.pages.first
        check_sides(path, page.imagelength, page.imagewidth)
        alike = find_matching_series(tiff, path)
        check_upright(page, path)
        picture = is_pil_image(page, alike, bands)
        pages = [page] if picture else [each for series in alike for each in series.pages]
        stored = stored_pages(path, pages)
        shown = picture_rule(page, bands, path) if picture else bands_rule(bands, path)
        return RegionImage(path, stored, shown, page_nodata(page), georeference(page), stack.pop_all())


def stored_pages(path: Path, pages: list[Any]) -> Stored:
    """How the pages of a TIFF are read: mapped where one lies in the file as it is, else by tiles or strips."""
    page = pages[0]
    segments = StoredSegments(pages, CACHE_BYTES)
    if segments.segment_bytes <= CACHE_BYTES // 4:
        return segments
    if len(pages) == 1 and page.is_memmappable and not segments.planar:
        import tifffile

        mapped = tifffile.memmap(path, page=page.index, mode="r")
        return StoredArray(mapped.reshape(*segments.size, -1).transpose(2, 0, 1))
    height, width = segments.segment
    raise ImageFileError(
        f"{path}: it is stored in pieces of {width}x{height} pixels, too large to be read by regions: {RETILE}"
    )


def check_upright(page: Any, path: Path) -> None:
    """Refuse an image that viewers turn or mirror."""
    turned = page.tags.valueof(ORIENTATION, 1)
    if turned != 1:
        raise ImageFileError(
            f"{path}: it is stored turned or mirrored (orientation {turned}), which cannot be undone region by region: "
            "save it upright"
        )


def georeference(page: Any) -> tuple[tuple[Any, ...], ...]:
    """The tags that place a GeoTIFF on the earth: (code, type, count, value, once)."""
    tags = (page.tags.get(code) for code in GEOREFERENCE)
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag is not None)


def bands_rule(bands: int, path: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Stored numbers are the bands."""
    return lambda numbers: as_channels(numbers, bands, path)


def picture_rule(page: Any, bands: int, path: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Stored numbers are a picture's, as PIL sees it."""
    photometric, compression = int(page.photometric), int(page.compression)
    extra = int(page.extrasamples[0]) if page.extrasamples else TRANSPARENCY
    if photometric == YCBCR:
        if compression not in JPEG_COMPRESSIONS:
            raise ImageFileError(f"{path}: colors are stored as YCbCr without JPEG: save it as RGB")
        photometric = RGB
    brightest = (1 << page.bitspersample) - 1
    colors = page.colormap

    def picture(numbers: np.ndarray) -> Image.Image:
        """Stored numbers (S, n, m) of 8 bits at most as PIL's picture."""
        if photometric == PALETTE:
            image = Image.fromarray(numbers[0].astype(np.uint8))
            image.putpalette((colors >> 8).astype(np.uint8).T.tobytes())
            return image
        values = np.ascontiguousarray((numbers * (255 // brightest)).astype(np.uint8).transpose(1, 2, 0))
        if photometric == MIN_IS_WHITE:
            values = 255 - values
        kind = MODES[photometric, values.shape[-1]]
        if extra == UNSPECIFIED and kind in ("LA", "RGBA"):
            kind, values = kind[:-1], np.ascontiguousarray(values[..., :-1])
        elif extra == PREMULTIPLIED and kind == "RGBA":
            kind = "RGBa"
        size = values.shape[1], values.shape[0]
        return Image.frombytes(kind, size, values.tobytes())

    def pixels(numbers: np.ndarray) -> torch.Tensor:
        """Stored numbers as PIL's picture shows them."""
        with failures_in_words(path):  # PIL refuses palettes that are broken
            image = picture(numbers)
        return pil_pixels(image, bands, path)

    return pixels


__all__ = ["RegionImage", "open_regions", "region_size"]
