"""Reading of image and mask files of any format, depth and number of channels as tensors.

Images of one or three channels are read as the image processors read them, so that training and prediction use the
same pixels. 8-bit images are uint8. Images of 16 bits that are read with three channels are uint16, and become float32
with the white of the image processor (`scale_pixels`). All others keep their raw values as float32. The pages of a TIFF
with several pages of equal size are its channels, as are those of .npy arrays.

Shapes: C channels, H W pixels.
"""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.models.image_processing_inputs import UINT16_MAX, channel_axis, reduce_gray, rgb_image, stored_pixels

from .display import to_rgb_image
from .files import (
    MAX_PIXELS,
    NUMPY,
    TIFFS,
    ImageBytes,
    ImageFileError,
    as_stream,
    check_pixels,
    check_sides,
    decoded_bytes,
    first_bytes,
    open_image,
    raise_image_errors,
    read_image,
)
from .orientation import pil_orientation, tiff_orientation, turn_upright

File = Path | ImageBytes

JPEG = b"\xff\xd8\xff"
PNG = b"\x89PNG\r\n\x1a\n"
PNG_HEADER = struct.Struct(">16xIIBB")  # width, height, bits per number, and type of color
PNG_GRAY = 0
WIDE_GRAY = ("I", "F")  # prefixes of PIL's modes with more than 8 bits
MASK_CHANNELS = {"RGB": 3, "RGBA": 3, "RGBX": 3, "LA": 1, "PA": 1}  # channels without alpha or padding, by PIL mode
# Samples per pixel that PIL reads, by the TIFF's photometric interpretation: white is 0, black is 0, RGB, palette,
# CMYK, YCbCr; the larger count includes alpha.
PIL_TIFF_LAYOUTS = {0: (1,), 1: (1, 2), 2: (3, 4), 3: (1,), 5: (4,), 6: (3,)}
LUMA_WEIGHTS = np.array([19595, 38470, 7471])  # ITU-R BT.601, times 2**16
PREMULTIPLIED, STRAIGHT = 1, 2  # alpha, by the TIFF's extra samples


def read_pixels(file: File, channels: int = 3, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Read an image file as (C, H, W) with C = `channels`: uint8, uint16 for RGB of 16 bits, or float32.

    With three channels, gray is repeated, palettes are applied and transparency is blended with white; with one
    channel, RGB images are converted to gray. Any other count must be that of the file. Raises ImageFileError.
    """
    start = first_bytes(file, PNG_HEADER.size)
    if start.startswith(TIFFS):
        return tiff_pixels(file, channels, max_pixels)
    if start.startswith(NUMPY):
        return array_pixels(read_array(file), channels, file, max_pixels)
    if is_deep_png(start):
        return deep_png_pixels(file, channels, max_pixels)
    return pil_pixels(read_image(file, max_pixels), channels, file)


def is_deep_png(start: bytes) -> bool:
    """Return whether the first bytes are those of a 16-bit PNG with several channels, which PIL reduces to 8 bits."""
    if not start.startswith(PNG) or len(start) < PNG_HEADER.size:
        return False
    *_, bits, color = PNG_HEADER.unpack_from(start)
    return bits == 16 and color != PNG_GRAY


def deep_png_pixels(file: File, channels: int, max_pixels: int) -> torch.Tensor:
    """Read a PNG of 16-bit RGB, or of RGB or gray with alpha, see `read_pixels`."""
    import imagecodecs

    width, height, *_ = PNG_HEADER.unpack(first_bytes(file, PNG_HEADER.size))
    check_pixels(file, height, width, max_pixels, decoded_bytes(4, np.uint16))
    with raise_image_errors(file):
        with open_image(as_stream(file)) as image:
            orientation = pil_orientation(image, as_stream(file))
        decoded = imagecodecs.png_decode(file.data if isinstance(file, ImageBytes) else file.read_bytes())
    numbers = turn_upright(np.moveaxis(decoded, -1, 0), orientation)
    if channels in (1, 3) and len(numbers) in (2, 4):
        numbers = blend_alpha(numbers)
    return as_channels(luma(numbers) if channels == 1 else numbers, channels, file)


def luma(numbers: np.ndarray) -> np.ndarray:
    """Convert an image (3, H, W) uint16 to gray (1, H, W) with PIL's weights."""
    weighted = np.tensordot(LUMA_WEIGHTS, numbers.astype(np.int64), axes=1) + 2**15
    return (weighted >> 16).astype(np.uint16)[None]


def blend_alpha(numbers: np.ndarray, alpha: int = STRAIGHT) -> np.ndarray:
    """Blend an image (C + 1, H, W) uint16, whose last channel is alpha, with white: (3, H, W) uint16."""
    colors = numbers[:-1] if len(numbers) == 4 else np.repeat(numbers[:1], 3, axis=0)
    if alpha == PREMULTIPLIED:
        blended = colors.astype(np.int32) + (UINT16_MAX - numbers[-1:].astype(np.int32))
        return blended.clip(0, UINT16_MAX).astype(np.uint16)
    rgba = np.concatenate([colors, numbers[-1:]])
    return stored_pixels(rgba, [4], layout="channels_first").numpy()


def read_rgb_image(file: File, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file as RGB of 8 bits. Raises ImageFileError."""
    pixels = read_pixels(file, 3, max_pixels)
    if pixels.is_floating_point():
        raise ImageFileError(
            f"{file}: found values of other than 8 or 16 bits, expected an RGB image: save it with 8 bits"
        )
    return to_rgb_image(reduce_gray(pixels) if pixels.dtype == torch.uint16 else pixels)


def pil_pixels(image: Image.Image, channels: int, file: object) -> torch.Tensor:
    """Convert a PIL image to (C, H, W); `file` names it in messages."""
    with raise_image_errors(file):  # palettes and transparency are decoded here
        pixels = pil_array(image, channels)
    return as_channels(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), channels, file)


def pil_array(image: Image.Image, channels: int) -> np.ndarray:
    """Convert a PIL image to (H, W) or (H, W, C): raw values of more than 8 bits, else gray, RGB, LA or RGBA."""
    if image.mode.startswith(WIDE_GRAY):
        return np.asarray(image)
    if channels in (1, 3):
        rgb = rgb_image(image)
        image = rgb if channels == 3 else rgb.convert("L")
    elif image.mode not in ("LA", "RGBA"):
        image = rgb_image(image)
    return np.array(image)


def as_channels(pixels: np.ndarray, channels: int, file: object) -> torch.Tensor:
    """Convert an array (C, H, W) of any dtype to a tensor with `channels` channels; only gray can be repeated."""
    if pixels.dtype.kind not in "buif":
        raise ImageFileError(f"{file}: pixels must be real numbers, found the type {pixels.dtype}")
    if len(pixels) in (1, 3) and channels == 3:
        with raise_image_errors(file):
            return stored_pixels(pixels, [len(pixels)], layout="channels_first").contiguous()
    if len(pixels) != channels:
        raise ImageFileError(
            f"{file}: the image has {len(pixels)} channels, expected {channels}: use images with {channels} channels, "
            f"or set data.channels of the recipe to {len(pixels)}"
        )
    return stored_pixels(pixels, [channels], convert=False, layout="channels_first").contiguous()


def tiff_pixels(file: File, channels: int, max_pixels: int) -> torch.Tensor:
    """Read a TIFF of any number of channels (planar, chunky, or one page each); with PIL if it supports the layout."""
    import tifffile

    stored = None
    with raise_image_errors(file), tifffile.TiffFile(as_stream(file)) as tiff:
        page: Any = tiff.pages.first
        needed = decoded_bytes(page.samplesperpixel, page.dtype or np.uint8)
        check_pixels(file, page.imagelength, page.imagewidth, max_pixels, needed)
        group = find_matching_series(tiff, file)
        if not is_pil_image(page, group, channels):
            check_pixels(file, page.imagelength, page.imagewidth, max_pixels, series_bytes(group, page))
            stored = turn_upright(read_channels_first(group), tiff_orientation(page))
        alpha = declared_alpha(page)
    if stored is None:
        return pil_pixels(read_image(file, max_pixels), channels, file)
    return as_tiff_channels(stored, alpha, channels, file)


def declared_alpha(page: Any) -> int:
    """Return the kind of alpha of a TIFF's gray or RGB page of 16 bits, `PREMULTIPLIED` or `STRAIGHT`; 0 if it has
    none.
    """
    kinds = page.extrasamples
    has_alpha = len(kinds) == 1 and kinds[0] in (PREMULTIPLIED, STRAIGHT)
    return int(kinds[0]) if has_alpha and page.photometric in (1, 2) and page.dtype == np.uint16 else 0


def as_tiff_channels(numbers: np.ndarray, alpha: int, channels: int, file: object) -> torch.Tensor:
    """Convert the samples of a TIFF (S, H, W), or a region of them, see `as_channels`.

    Images that are read as RGB are blended with white by their `declared_alpha`. RGB of 32 and 64 bits keeps its
    values, since the range of the whole image cannot be derived from a region.
    """
    if alpha and channels == 3 and len(numbers) in (2, 4):
        numbers = blend_alpha(numbers, alpha)
    elif len(numbers) == 3 and numbers.dtype.kind in "iu" and numbers.dtype.itemsize > 2:
        numbers = numbers.astype(np.float32)
    return as_channels(numbers, channels, file)


def values_per_pixel(group: Sequence[Any], page: Any) -> int:
    """Count the values that a group of series stores for each pixel of a page."""
    return sum(math.prod(series.shape) for series in group) // (page.imagelength * page.imagewidth)


def series_bytes(group: Sequence[Any], page: Any) -> int:
    """Return the number of bytes in memory per pixel of a group of series."""
    return decoded_bytes(values_per_pixel(group, page), group[0].dtype or np.uint8)


def is_pil_image(page: Any, group: Sequence[Any], channels: int) -> bool:
    """Return whether PIL reads a TIFF's first page; otherwise the series in `group` are the channels."""
    stored = values_per_pixel(group, page)
    supported = page.bitspersample <= 8 and page.samplesperpixel in PIL_TIFF_LAYOUTS.get(page.photometric, ())
    pages_are_channels = stored != page.samplesperpixel and stored == channels
    return supported and not pages_are_channels and channels in (1, 3)


def find_matching_series(tiff: Any, file: object) -> list[Any]:
    """Return the first series of a TIFF and all of equal shape, dtype and axes (no thumbnails, overviews or masks)."""
    check_complete(tiff, file)
    first = tiff.series[0]
    return [
        series
        for series in tiff.series
        if (series.shape, series.dtype, series.axes) == (first.shape, first.dtype, first.axes)
    ]


def check_complete(tiff: Any, file: object) -> None:
    """Raise ImageFileError for a TIFF truncated between pages: tifffile would silently return fewer channels."""
    layout, stream = tiff.tiff, tiff.filehandle
    last = tiff.pages[len(tiff.pages) - 1].offset
    stream.seek(last)
    (tags,) = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))
    stream.seek(last + layout.tagnosize + tags * layout.tagsize)
    if any(stream.read(layout.offsetsize)):  # where the next page would begin
        raise ImageFileError(f"{file}: the file ends before its last page: copy or download it again")


def read_channels_first(group: Sequence[Any]) -> np.ndarray:
    """Read series of equal shape as (C, H, W); pages and samples per pixel are flattened to channels."""
    parts = []
    for series in group:
        axes = series.get_axes(squeeze=False)
        array = series.asarray().reshape(series.get_shape(squeeze=False))
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (-2, -1))
        parts.append(array.reshape(-1, *array.shape[-2:]))
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def read_array(file: File) -> np.ndarray:
    """Load a .npy file without pickled objects; files on disk are memory-mapped."""
    with raise_image_errors(file):
        if isinstance(file, ImageBytes):
            return np.load(as_stream(file), allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)


def array_pixels(array: np.ndarray, channels: int, file: object, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Convert an array (H, W), (C, H, W) or (H, W, C) to (C, H, W); channels first if both layouts are possible."""
    array = move_channels_first(array, (channels, 1), file)
    check_pixels(file, array.shape[1], array.shape[2], max_pixels, decoded_bytes(len(array), array.dtype))
    return as_channels(array, channels, file)


def move_channels_first(array: np.ndarray, counts: Sequence[int], file: object) -> np.ndarray:
    """Move the channels of an array (H, W), (C, H, W) or (H, W, C) first; earlier `counts` have priority."""
    if array.ndim == 2:
        return array[None]
    axis = channel_axis(array.shape, counts) if array.ndim == 3 else None
    if axis is None:
        raise ImageFileError(
            f"{file}: found an array of shape {array.shape}, expected (height, width), or "
            f"{' or '.join(map(str, counts))} channels in the first or last axis (data.channels of the recipe)"
        )
    return array if axis == 0 else array.transpose(2, 0, 1)


def read_mask(file: File, max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Read a mask file as (H, W) int64 of raw values, or (3, H, W) uint8 of colors.

    Palette images give indices, 1-bit masks 0 and 1; alpha is dropped. Raises ImageFileError, also for JPEG, whose
    lossy compression changes the values.
    """
    start = first_bytes(file)
    if start.startswith(JPEG):
        raise ImageFileError(f"{file}: JPEG is lossy and changes the values of a mask: use PNG")
    if start.startswith(TIFFS):
        return array_mask(read_tiff_values(file, max_pixels), file)
    if start.startswith(NUMPY):
        array = move_channels_first(read_array(file), (1, 3, 4), file)
        check_pixels(file, array.shape[1], array.shape[2], max_pixels, decoded_bytes(len(array), array.dtype))
        return array_mask(array, file)
    return pil_mask(read_image(file, max_pixels), file)


def pil_mask(image: Image.Image, file: object) -> torch.Tensor:
    """Convert a PIL image to a mask; `file` names it in messages."""
    if image.mode not in MASK_CHANNELS and len(image.getbands()) > 1:
        raise ImageFileError(
            f"{file}: found an image of mode {image.mode}, expected a mask with one value per pixel or RGB colors: "
            "save it as a PNG of 8 or 16 bits"
        )
    pixels = np.asarray(image)
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return array_mask(channels[: MASK_CHANNELS.get(image.mode, 1)], file)


def read_tiff_values(file: File, max_pixels: int) -> np.ndarray:
    """Read the stored values of a TIFF, (C, H, W), upright."""
    import tifffile

    with raise_image_errors(file), tifffile.TiffFile(as_stream(file)) as tiff:
        page: Any = tiff.pages.first
        first = tiff.series[:1]
        check_pixels(file, page.imagelength, page.imagewidth, max_pixels, series_bytes(first, page))
        check_complete(tiff, file)
        return turn_upright(read_channels_first(first), tiff_orientation(page))


def array_mask(array: np.ndarray, file: object) -> torch.Tensor:
    """Convert an array (C, H, W) to a mask: one channel holds raw values, three or four 8-bit channels hold colors."""
    check_sides(file, *array.shape[1:])
    if len(array) in (3, 4) and array.dtype == np.uint8:
        return torch.from_numpy(np.array(array[:3], order="C"))
    if len(array) != 1:
        raise ImageFileError(
            f"{file}: found {len(array)} channels of {array.dtype}, expected a mask with one value per pixel or 8-bit "
            "RGB colors"
        )
    return torch.from_numpy(as_integers(array[0], file))


def as_integers(values: np.ndarray, file: object) -> np.ndarray:
    """Convert the values of a mask to int64."""
    if values.dtype.kind not in "buif":
        raise ImageFileError(f"{file}: mask values must be integers, found the type {values.dtype}")
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64, order="C")
    if (values.dtype.kind == "f" or values.dtype == np.uint64) and not np.array_equal(whole, values):
        value = values[whole != values].flat[0]
        raise ImageFileError(f"{file}: mask values must be integers of at most 64 bits, found {value}")
    return whole


__all__ = ["array_pixels", "pil_pixels", "read_mask", "read_pixels", "read_rgb_image"]
