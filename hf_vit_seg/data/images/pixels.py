"""Image files and masks as tensors, in any format, depth and number of bands.

Images of one or three bands in a picture's format are read as the image processors read PIL images, so that training
sees what predict sees. 8-bit images are uint8; deeper ones keep their raw values as float32. Two exceptions are the
processors' too: 16-bit gray asked for as three bands becomes an 8-bit picture, and of a 16-bit RGB PNG PIL gives the
upper 8 bits. TIFFs with several pages of equal size, and .npy arrays, are images of as many bands.

Shapes: C bands, H W pixels.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.models.image_processing_inputs import rgb_image

from .files import (
    MAX_PIXELS,
    ImageBytes,
    ImageFileError,
    check_pixels,
    check_sides,
    decoded_bytes,
    failures_in_words,
    first_bytes,
    opened,
    read_image,
)

File = Path | ImageBytes

JPEG = b"\xff\xd8\xff"
NUMPY = b"\x93NUMPY"
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and big, in either byte order
WIDE_GRAY = ("I", "F")  # how PIL's modes of more than 8 bits begin
MASK_CHANNELS = {"RGB": 3, "RGBA": 3, "RGBX": 3, "LA": 1, "PA": 1}  # of PIL's modes with several, those that count
# Numbers per pixel by what a TIFF says they mean, where PIL makes a picture of them: white is 0, black is 0, RGB,
# palette, CMYK, YCbCr; the greater count is with transparency.
PICTURE_TIFFS = {0: (1,), 1: (1, 2), 2: (3, 4), 3: (1,), 5: (4,), 6: (3,)}


def read_pixels(file: File, bands: int = 3, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """An image file as (C, H, W) with C = `bands`, uint8, or float32 where the file has more than 8 bits.

    With three bands gray is repeated, palettes are looked up and transparency is laid on white; with one band
    pictures become gray. Any other count is the file's own. ImageFileError in one sentence.
    """
    start = first_bytes(file)
    if start.startswith(TIFFS):
        return tiff_pixels(file, bands, max_pixels)
    if start.startswith(NUMPY):
        return array_pixels(read_array(file), bands, file, max_pixels)
    return picture_pixels(read_image(file, max_pixels), bands, file)


def read_picture(file: File, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image file of a picture's format as RGB. ImageFileError in one sentence."""
    image = read_image(file, max_pixels)
    with failures_in_words(file):  # palettes and transparency are first used here
        return rgb_image(image)


def picture_pixels(image: Image.Image, bands: int, file: object) -> torch.Tensor:
    """A PIL image as (C, H, W); `file` is what messages call it."""
    with failures_in_words(file):  # palettes and transparency are first used here
        pixels = picture_numbers(image, bands)
    return as_bands(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), bands, file)


def picture_numbers(image: Image.Image, bands: int) -> np.ndarray:
    """A PIL image as (H, W) or (H, W, C): wide gray as it is, RGB or gray for three bands or one, else also alpha."""
    if image.mode.startswith(WIDE_GRAY):
        return np.asarray(image)
    if bands in (1, 3):
        picture = rgb_image(image)
        image = picture if bands == 3 else picture.convert("L")
    elif image.mode not in ("LA", "RGBA"):
        image = rgb_image(image)
    return np.array(image)


def as_bands(pixels: np.ndarray, bands: int, file: object) -> torch.Tensor:
    """An array (C, H, W) of any type as the `bands` that are asked for."""
    if pixels.dtype.kind not in "buif":
        raise ImageFileError(f"{file}: pixels of type {pixels.dtype} are no numbers that an image can have")
    if len(pixels) == 1 and bands == 3:
        if pixels.dtype.kind in "ui" and pixels.dtype.itemsize > 1:
            gray = Image.fromarray(pixels[0].clip(0, 65535).astype(np.int32))
            return picture_pixels(rgb_image(gray), bands, file)
        pixels = np.repeat(pixels, 3, axis=0)
    if len(pixels) != bands:
        raise ImageFileError(
            f"{file}: the image has {len(pixels)} bands where {bands} are expected: give images of {bands} bands, or "
            f"set data.channels of the recipe to {len(pixels)}"
        )
    eight_bits = pixels.dtype in (np.uint8, np.bool_)
    return torch.from_numpy(np.array(pixels, dtype=np.uint8 if eight_bits else np.float32, order="C"))


def tiff_pixels(file: File, bands: int, max_pixels: int) -> torch.Tensor:
    """A TIFF of any number of bands, planar or chunky or one page each; simple pictures are PIL's."""
    import tifffile

    stored = None
    with failures_in_words(file), tifffile.TiffFile(opened(file)) as tiff:
        page: Any = tiff.pages.first
        needed = decoded_bytes(page.samplesperpixel, page.dtype or np.uint8)
        check_pixels(file, page.imagelength, page.imagewidth, max_pixels, needed)
        alike = equal_series(tiff, file)
        if not seen_as_picture(page, alike, bands):
            check_pixels(file, page.imagelength, page.imagewidth, max_pixels, series_bytes(alike, page))
            stored = bands_first(alike)
    if stored is None:
        return picture_pixels(read_image(file, max_pixels), bands, file)
    return as_bands(stored, bands, file)


def numbers_per_pixel(alike: Sequence[Any], page: Any) -> int:
    """How many numbers series of pages hold for each pixel of a page."""
    return sum(math.prod(each.shape) for each in alike) // (page.imagelength * page.imagewidth)


def series_bytes(alike: Sequence[Any], page: Any) -> int:
    """The memory for each pixel when series of pages are read."""
    return decoded_bytes(numbers_per_pixel(alike, page), alike[0].dtype or np.uint8)


def seen_as_picture(page: Any, alike: Sequence[Any], bands: int) -> bool:
    """Whether a TIFF's first page is read as PIL's picture, and not its series `alike` as the bands."""
    stored = numbers_per_pixel(alike, page)
    picture = page.bitspersample <= 8 and page.samplesperpixel in PICTURE_TIFFS.get(page.photometric, ())
    pages_are_bands = stored != page.samplesperpixel and stored == bands
    return picture and not pages_are_bands and bands in (1, 3)


def equal_series(tiff: Any, file: object) -> list[Any]:
    """A TIFF's first series of pages and those of the same shape and type: not its thumbnails, overviews or masks."""
    check_complete(tiff, file)
    first = tiff.series[0]
    return [
        each for each in tiff.series if (each.shape, each.dtype, each.axes) == (first.shape, first.dtype, first.axes)
    ]


def check_complete(tiff: Any, file: object) -> None:
    """Refuse a TIFF that was cut off between its pages: tifffile reads those that are left, which are other bands."""
    layout, stream = tiff.tiff, tiff.filehandle
    last = tiff.pages[len(tiff.pages) - 1].offset
    stream.seek(last)
    (tags,) = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))
    stream.seek(last + layout.tagnosize + tags * layout.tagsize)
    if any(stream.read(layout.offsetsize)):  # where the next page would begin
        raise ImageFileError(f"{file}: the file ends before its last page: copy or download it again")


def bands_first(alike: Sequence[Any]) -> np.ndarray:
    """Series of equal shape as (C, H, W), pages and samples together being the bands."""
    parts = []
    for series in alike:
        axes = series.get_axes(squeeze=False)
        array = series.asarray().reshape(series.get_shape(squeeze=False))
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (-2, -1))
        parts.append(array.reshape(-1, *array.shape[-2:]))
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def read_array(file: File) -> np.ndarray:
    """A .npy file, never one with pickled objects; a file on a disk is mapped, and read where it is used."""
    with failures_in_words(file):
        if isinstance(file, ImageBytes):
            return np.load(opened(file), allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)


def array_pixels(array: np.ndarray, bands: int, file: object, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """An array (H, W), (C, H, W) or (H, W, C) as (C, H, W); where both ends could be the bands, the first is."""
    array = channels_in_front(array, (bands, 1), file)
    check_pixels(file, array.shape[1], array.shape[2], max_pixels, decoded_bytes(len(array), array.dtype))
    return as_bands(array, bands, file)


def channels_in_front(array: np.ndarray, counts: Sequence[int], file: object) -> np.ndarray:
    """An array (H, W), (C, H, W) or (H, W, C) as (C, H, W): C is the end that is found first in `counts`."""
    if array.ndim == 2:
        return array[None]
    ends = (array.shape[0], array.shape[2]) if array.ndim == 3 else ()
    found = [axis for count in counts for axis, length in enumerate(ends) if length == count]
    if not found:
        raise ImageFileError(
            f"{file}: an array of shape {array.shape} is neither (height, width) nor has it "
            f"{' or '.join(map(str, counts))} channels in front or behind (for images see data.channels of the recipe)"
        )
    return array if found[0] == 0 else array.transpose(2, 0, 1)


def read_mask(file: File, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """A mask file as (H, W) int64 of raw values, or (3, H, W) uint8 where it is painted in colors.

    Palettes give indexes and 1-bit masks 0 and 1; transparency is left out. ImageFileError in one sentence, also for
    JPEG, which loses a mask's values.
    """
    start = first_bytes(file)
    if start.startswith(JPEG):
        raise ImageFileError(f"{file}: a mask has to be stored without loss, and JPEG blurs its values: use PNG")
    if start.startswith(TIFFS):
        return array_mask(tiff_numbers(file, max_pixels), file)
    if start.startswith(NUMPY):
        array = channels_in_front(read_array(file), (1, 3, 4), file)
        check_pixels(file, array.shape[1], array.shape[2], max_pixels, decoded_bytes(len(array), array.dtype))
        return array_mask(array, file)
    return picture_mask(read_image(file, max_pixels), file)


def picture_mask(image: Image.Image, file: object) -> torch.Tensor:
    """A PIL image as a mask; `file` is what messages call it."""
    if image.mode not in MASK_CHANNELS and len(image.getbands()) > 1:
        raise ImageFileError(
            f"{file}: a mask has one value per pixel or RGB colors, and this is an image of mode {image.mode}: save "
            "it as a PNG of 8 or 16 bits"
        )
    pixels = np.asarray(image)
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return array_mask(channels[: MASK_CHANNELS.get(image.mode, 1)], file)


def tiff_numbers(file: File, max_pixels: int) -> np.ndarray:
    """A TIFF's numbers as they are stored, (C, H, W)."""
    import tifffile

    with failures_in_words(file), tifffile.TiffFile(opened(file)) as tiff:
        page: Any = tiff.pages.first
        series = tiff.series[:1]
        check_pixels(file, page.imagelength, page.imagewidth, max_pixels, series_bytes(series, page))
        check_complete(tiff, file)
        return bands_first(series)


def array_mask(array: np.ndarray, file: object) -> torch.Tensor:
    """An array (C, H, W) as a mask: one channel has values, three or four of 8 bits have colors."""
    check_sides(file, *array.shape[1:])
    if len(array) in (3, 4) and array.dtype == np.uint8:
        return torch.from_numpy(np.array(array[:3], order="C"))
    if len(array) != 1:
        raise ImageFileError(
            f"{file}: a mask has one value per pixel or 8-bit RGB colors, and this has {len(array)} channels of "
            f"{array.dtype}"
        )
    return torch.from_numpy(whole_numbers(array[0], file))


def whole_numbers(values: np.ndarray, file: object) -> np.ndarray:
    """Values of a mask as int64."""
    if values.dtype.kind not in "buif":
        raise ImageFileError(f"{file}: values of type {values.dtype} are no numbers that a mask can have")
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64, order="C")
    if (values.dtype.kind == "f" or values.dtype == np.uint64) and not np.array_equal(whole, values):
        odd = values[whole != values].flat[0]
        raise ImageFileError(
            f"{file}: a mask has whole numbers of up to 64 bits for its classes, and this has values such as {odd}"
        )
    return whole


__all__ = ["array_pixels", "picture_pixels", "read_mask", "read_picture", "read_pixels"]
