"""The orientation tag of EXIF and TIFF: how stored pixels are turned and mirrored to be upright.

Shapes: H W pixels.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 274
UPRIGHT = 1
# Whether rows and columns are swapped, and then rows and columns reversed (EXIF 2.32, TIFF 6.0).
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EXIF_IN_PNG = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # chunks, perhaps behind the pixels


def turn_upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (..., H, W) upright."""
    swapped, rows, columns = TURNS[orientation]
    array = array.swapaxes(-2, -1) if swapped else array
    return array[..., :: -1 if rows else 1, :: -1 if columns else 1]


def upright_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Return the size (height, width) of a stored image that is turned upright."""
    return (width, height) if TURNS[orientation][0] else (height, width)


def tiff_orientation(page: Any) -> int:
    """Return the orientation of a page of tifffile; values that are not defined are read as upright."""
    value = page.tags.valueof(ORIENTATION, UPRIGHT)
    return value if value in TURNS else UPRIGHT


def pil_orientation(image: Image.Image, file: Path | BytesIO) -> int:
    """Return the orientation of an image that PIL opened from a file."""
    if image.format == "PNG" and not any(mark in file_bytes(file) for mark in EXIF_IN_PNG):
        return UPRIGHT  # PIL would decode the pixels in search of it
    value = image.getexif().get(ORIENTATION, UPRIGHT)
    return value if value in TURNS else UPRIGHT


def file_bytes(file: Path | BytesIO) -> bytes:
    """Return the content of a file on disk or in memory."""
    return file.getvalue() if isinstance(file, BytesIO) else file.read_bytes()


def turn_image_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a PIL image with stored pixels upright."""
    return image.transpose(METHODS[orientation]) if orientation != UPRIGHT else image


def hide_tiff_orientation(file: Path | BytesIO) -> tuple[Path | BytesIO, int]:
    """Return a TIFF as PIL should open it, with the tag set to upright, and its orientation.

    PIL 12 scrambles uncompressed TIFFs whose orientation swaps rows and columns.
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page: Any = tiff.pages.first
        orientation, tag, order = tiff_orientation(page), page.tags.get(ORIENTATION), tiff.byteorder
    if isinstance(file, BytesIO):
        file.seek(0)
    if orientation == UPRIGHT or tag is None:
        return file, UPRIGHT
    data = bytearray(file_bytes(file))
    data[tag.valueoffset : tag.valueoffset + 2] = UPRIGHT.to_bytes(2, "little" if order == "<" else "big")
    return BytesIO(bytes(data)), orientation


__all__ = [
    "TURNS",
    "UPRIGHT",
    "hide_tiff_orientation",
    "pil_orientation",
    "tiff_orientation",
    "turn_image_upright",
    "turn_upright",
    "upright_size",
]
