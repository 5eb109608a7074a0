"""Reading of images larger than memory, by regions.

Regions are read from the tiles or strips of TIFFs, and from .npy files; pixels are equal to `read_pixels` of the
whole file. Nodata values of GeoTIFFs are masked, and the georeferencing tags are copied unchanged, without conversion
by another library.

Shapes: C channels of the model, S stored samples per pixel, H W the image, n m a region.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.images.files import NUMPY, TIFFS, ImageFileError, check_sides, first_bytes, raise_image_errors
from hf_vit_seg.data.images.georeference import GeoTags, page_georeference
from hf_vit_seg.data.images.nodata import missing_pixels, page_nodata
from hf_vit_seg.data.images.orientation import UPRIGHT, tiff_orientation, upright_size
from hf_vit_seg.data.images.pixels import (
    array_pixels,
    as_tiff_channels,
    declared_alpha,
    find_matching_series,
    is_pil_image,
    move_channels_first,
    pil_pixels,
    read_array,
)
from hf_vit_seg.models.image_processing_inputs import narrowest_type

from .stored_regions import StoredArray, StoredImage, StoredSegments, StoredUpright

CACHE_BYTES = 256 * 2**20  # decoded tiles or strips that are kept, as neighboring windows share them
MIN_IS_WHITE, BLACK, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
UNSPECIFIED, PREMULTIPLIED, TRANSPARENCY = 0, 1, 2  # interpretation of the last of several samples per pixel
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
    """A file that is read by regions; `convert` maps stored samples (S, n, m) to pixels (C, n, m).

    `georeference` are TIFF tags in tifffile's format. A context manager that closes the file.
    """

    path: Path
    stored: StoredImage
    convert: Callable[[np.ndarray], torch.Tensor]
    nodata: float | None = None
    georeference: GeoTags = ()
    files: ExitStack | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.stored.size

    def read(self, rows: slice, columns: slice) -> tuple[torch.Tensor, np.ndarray | None]:
        """Read pixels (C, n, m), uint8 or float32, and a mask (n, m) of nodata pixels, or None without a nodata value.

        Raises ImageFileError for broken files.
        """
        with raise_image_errors(self.path):
            numbers = self.stored.read(rows, columns)
        return self.convert(numbers), self.missing(numbers)

    def missing(self, numbers: np.ndarray) -> np.ndarray | None:
        """Return the mask of pixels that have the nodata value in all channels."""
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
    """Return the (height, width) of a TIFF or .npy file from its header; None for other formats.

    Raises ImageFileError for broken and missing files.
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
    """Return the upright (height, width) of the first page of a TIFF."""
    import tifffile

    with raise_image_errors(path), tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        return upright_size(page.imagelength, page.imagewidth, tiff_orientation(page))


def array_sides(shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """Return the (height, width) of an array (H, W), (C, H, W) or (H, W, C)."""
    if len(shape) not in (2, 3):
        raise ImageFileError(f"{path}: an array of shape {shape} is not an image, expected two or three dimensions")
    return (shape[-2], shape[-1]) if len(shape) == 2 or shape[0] < shape[-1] else (shape[0], shape[1])


def open_regions(path: Path, channels: int = 3) -> RegionImage:
    """Open a file for reading by regions, with `channels` channels.

    Raises ImageFileError if its format or layout does not support it.
    """
    start = first_bytes(path)
    if start.startswith(TIFFS):
        with raise_image_errors(path):
            return open_tiff(path, channels)
    if start.startswith(NUMPY):
        array = move_channels_first(read_array(path), (channels, 1), path)
        check_sides(path, *array.shape[1:])
        convert = integer_converter(array, channels, path)
        return RegionImage(path, StoredArray(array), lambda numbers: array_pixels(convert(numbers), channels, path))
    raise ImageFileError(f"{path}: only TIFF and .npy files are read a region at a time: save it as a tiled TIFF")


def open_tiff(path: Path, channels: int) -> RegionImage:
    """Open a TIFF for reading by regions."""
    import tifffile

    with ExitStack() as stack:
        tiff = stack.enter_context(tifffile.TiffFile(path))
        page: Any = tiff.pages.first
        check_sides(path, page.imagelength, page.imagewidth)
        group = find_matching_series(tiff, path)
        georeference = page_georeference(page, path)
        pil = is_pil_image(page, group, channels)
        pages = [page] if pil else [each for series in group for each in series.pages]
        stored, orientation = open_pages(path, pages), tiff_orientation(page)
        stored = stored if orientation == UPRIGHT else StoredUpright(stored, orientation)
        convert = pil_converter(page, channels, path) if pil else channel_converter(page, channels, path)
        return RegionImage(path, stored, convert, page_nodata(page), georeference, stack.pop_all())


def open_pages(path: Path, pages: list[Any]) -> StoredImage:
    """Open the pages of a TIFF by tiles or strips; memory-map an uncompressed page if these are too large."""
    page = pages[0]
    segments = StoredSegments(pages, CACHE_BYTES)
    check_segments(path, segments)
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


def check_segments(path: Path, segments: StoredSegments) -> None:
    """Raise ImageFileError if a page declares another number of tiles or strips than its size needs.

    Damaged headers declare sides of billions of pixels, whose windows take minutes to list.
    """
    for page in segments.pages:
        stored = min(len(page.dataoffsets), len(page.databytecounts))
        if stored < segments.segment_count:
            raise ImageFileError(
                f"{path}: the file is damaged: it has {stored:,} of {segments.segment_count:,} tiles or strips: copy "
                "or download it again"
            )


def channel_converter(page: Any, channels: int, path: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Return the conversion for files whose samples are the channels."""
    alpha = declared_alpha(page)
    return lambda numbers: as_tiff_channels(numbers, alpha, channels, path)


def integer_converter(array: np.ndarray, channels: int, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return the conversion of regions of integers that become RGB to the type of the whole array (C, H, W)."""
    kind = array.dtype
    if channels != 3 or len(array) not in (1, 3) or kind.kind not in "iu" or kind.itemsize <= 2:
        return lambda numbers: numbers
    own = torch.from_numpy(np.zeros(0, kind.newbyteorder("="))).dtype
    with raise_image_errors(path):
        narrowest = narrowest_type(own, len(array), *limits(array))
    narrow = torch.zeros(0, dtype=narrowest).numpy().dtype
    return lambda numbers: numbers.astype(narrow)


def limits(array: np.ndarray) -> tuple[int, int]:
    """Return the lowest and the highest value of an array of integers."""
    return (int(array.min()), int(array.max())) if array.size else (0, 0)


def pil_converter(page: Any, channels: int, path: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Return the conversion for files that PIL can read, with the same result as PIL."""
    photometric, compression = int(page.photometric), int(page.compression)
    extra = int(page.extrasamples[0]) if page.extrasamples else TRANSPARENCY
    if photometric == YCBCR:
        if compression not in JPEG_COMPRESSIONS:
            raise ImageFileError(f"{path}: colors are stored as YCbCr without JPEG: save it as RGB")
        photometric = RGB
    brightest = (1 << page.bitspersample) - 1
    colors = page.colormap

    def to_image(numbers: np.ndarray) -> Image.Image:
        """Convert samples (S, n, m) of at most 8 bits to a PIL image."""
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
        """Convert samples to pixels."""
        with raise_image_errors(path):  # PIL rejects broken palettes
            image = to_image(numbers)
        return pil_pixels(image, channels, path)

    return pixels


__all__ = ["RegionImage", "open_regions", "region_size"]
