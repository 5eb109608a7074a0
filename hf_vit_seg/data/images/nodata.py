"""Pixels without data: the value that marks them, and where they are.

A GeoTIFF declares the value in the tag GDAL_NODATA; `data.nodata` of a recipe declares it for other files.

Shapes: C channels, H W pixels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .files import TIFFS, ImageBytes, as_stream, first_bytes, raise_image_errors

IMPLAUSIBLE = 1e30  # never a measurement: as a nodata value, it counts in a single channel too
NODATA = 42113  # the TIFF tag GDAL_NODATA

# "file": the value that the file declares, if any; "none": ignore declared values.
NodataSetting = float | Literal["file", "none", "nan"]


def page_nodata(page: Any) -> float | None:
    """Return the value of pixels without data that a page of a TIFF declares."""
    text = page.tags.valueof(NODATA)
    try:
        return None if text is None else float(str(text).strip("\0 ").replace(",", "."))
    except ValueError:
        return None


def file_nodata(file: Path | ImageBytes) -> float | None:
    """Return the value of pixels without data that a file declares; None for files other than TIFFs."""
    import tifffile

    if not first_bytes(file).startswith(TIFFS):
        return None
    with raise_image_errors(file), tifffile.TiffFile(as_stream(file)) as tiff:
        return page_nodata(tiff.pages.first)


def find_nodata(setting: NodataSetting, file: Path | ImageBytes | None) -> float | None:
    """Return the value of pixels without data by a recipe's setting, for a file, if there is one."""
    if setting == "file":
        return None if file is None else file_nodata(file)
    return None if setting == "none" else float(setting)


def equals_nodata(numbers: np.ndarray, nodata: float) -> np.ndarray:
    """Return whether each number is the value of missing data, compared in the type of the numbers."""
    if np.isnan(nodata):
        return np.isnan(numbers)
    if numbers.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(numbers == numbers.dtype.type(nodata))
    return np.equal(numbers, nodata)


def missing_pixels(numbers: np.ndarray, nodata: float) -> np.ndarray:
    """Return where all channels of an image (C, H, W) have no data, (H, W) bool."""
    return np.asarray(np.all(equals_nodata(numbers, nodata), axis=0))


def values_to_fill(numbers: np.ndarray, nodata: float) -> np.ndarray:
    """Return which values of an image (C, H, W) have no data.

    A value that may be measured, such as 0, has no data only where all channels have it.
    """
    same = equals_nodata(numbers, nodata)
    return same if not abs(nodata) < IMPLAUSIBLE else np.broadcast_to(np.all(same, axis=0), same.shape)


def fill_missing(
    pixels: torch.Tensor, nodata: float | None, fill: Callable[[], Sequence[float]]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Fill the values of an image (C, H, W) that have no data.

    `fill` returns one stored value or one per channel. Also returns where all channels are filled, (H, W) bool; None
    if no value is.
    """
    if nodata is None or not (missing := values_to_fill(pixels.numpy(), nodata)).any():
        return pixels, None
    return fill_values(pixels, missing, fill()), torch.from_numpy(missing.all(0))


def fill_values(pixels: torch.Tensor, missing: np.ndarray, fill: Sequence[float]) -> torch.Tensor:
    """Return an image (C, H, W) with `fill`, one value or one per channel, where values are missing (C, H, W)."""
    values = torch.tensor(fill, dtype=torch.float64)[:, None, None]
    values = values if pixels.is_floating_point() else values.round().clamp(min=0)
    filled = np.where(missing, values.to(pixels.dtype).numpy(), pixels.numpy())  # torch has no uint16 for this
    return torch.from_numpy(filled)


__all__ = [
    "NodataSetting",
    "file_nodata",
    "fill_missing",
    "find_nodata",
    "missing_pixels",
    "page_nodata",
]
