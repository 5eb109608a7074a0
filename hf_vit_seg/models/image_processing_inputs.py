"""Convert images and segmentation maps of any type, mode and layout to tensors.

An image of three channels of 16 bits is RGB whose white is 65535: `stored_pixels` returns it as uint16, and
`scale_pixels` scales it to the white of the image processor, so that it has the colors of the 8-bit image.

Shapes: C channels, H W pixels.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, load_image
from transformers.utils import logging

from .errors import HfVitSegError

logger = logging.get_logger(__name__)

EIGHT_BIT_WHITE = 255.0
UINT16_MAX = 2**16 - 1  # white in images of 16 bits
DARK = 2**14  # in images of 16 bits: the white of 14 bits
RGB = 3
RGB_LIKE = (3, 1, 4)  # RGB, gray, RGB with alpha


def rgb_image(image: Image.Image) -> Image.Image:
    """Convert a PIL image to RGB: transparency is blended with white, and 16-bit gray is reduced to 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray(reduce_gray(torch.from_numpy(np.asarray(image).astype(np.int64))).numpy()).convert("RGB")
    if image.mode == "La":  # PIL converts premultiplied gray to nothing else
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    try:
        return image.convert("RGB")
    except ValueError:
        raise HfVitSegError(f"PIL cannot convert the mode {image.mode} to RGB: pass an RGB image") from None


def reduce_gray(values: torch.Tensor) -> torch.Tensor:
    """Round 16-bit values, 0 .. 65535, to uint8. Raises HfVitSegError for other values."""
    low, high = value_range(values)
    if low < 0 or high > UINT16_MAX:
        raise gray_error(low, high)
    return ((values.to(torch.int64) + 128) // 257).to(torch.uint8)


def gray_error(low: int, high: int) -> HfVitSegError:
    """Return the error for gray values out of 16 bits."""
    return HfVitSegError(
        f"Found gray values from {low} to {high}, expected 0 .. {UINT16_MAX} for images that become RGB: scale them, "
        "or use a model of one channel, which keeps all values"
    )


def to_pixels(
    image: Any,
    channels: Sequence[int] = RGB_LIKE,
    convert: bool = True,
    layout: str | ChannelDimension | None = None,
    white: float = EIGHT_BIT_WHITE,
) -> torch.Tensor:
    """Convert a PIL image, an array or a tensor to (C, H, W), uint8 or float32, see `stored_pixels`.

    RGB images of 16 bits are scaled to `white`, the highest value that the image processor expects.
    """
    return scale_pixels(stored_pixels(image, channels, convert, layout, white), white)


def scale_pixels(pixels: torch.Tensor, white: float) -> torch.Tensor:
    """Scale an RGB image of 16 bits (3, H, W) uint16 to float32 with `white` for 65535; others are unchanged.

    Processors that do not rescale have a `white` of 1 (see `highest_value`), and the image keeps its values. An image
    with the range of 10 to 14 bits is reported once.
    """
    if pixels.dtype != torch.uint16:
        return pixels
    values = pixels.to(torch.float32)
    if white == 1:
        return values
    if values.numel() and 0 < values.max() < DARK:
        logger.warning_once(
            f"Found an RGB image of 16 bits with values below {DARK} of {UINT16_MAX}, as cameras of 10 to 14 bits "
            "write them: it is almost black for the model. Scale such images to the whole range."
        )
    return values / (UINT16_MAX / white)


def stored_pixels(
    image: Any,
    channels: Sequence[int] = RGB_LIKE,
    convert: bool = True,
    layout: str | ChannelDimension | None = None,
    white: float = EIGHT_BIT_WHITE,
) -> torch.Tensor:
    """Convert a PIL image, an array or a tensor to (C, H, W): uint8, uint16 for RGB images of 16 bits, or float32.

    Booleans are black and white: 0 and 255. With `convert`, gray and transparent images become RGB: transparency is
    blended with white, which is `white` for floating-point values, and integers have the type of their values, see
    `integer_type`. Other images keep their values.

    Without a `layout`, the channel axis is the one whose length is in `channels`, see `channels_first`.
    """
    if isinstance(image, Image.Image):
        image, layout = np.array(image), ChannelDimension.LAST
    if not isinstance(image, torch.Tensor):
        image = torch.from_numpy(native_array(image))
    if image.is_complex():
        raise HfVitSegError(f"Pixels must be real numbers, found {image.dtype}")
    pixels = channels_first(image, channels, layout)
    if pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    if convert and len(pixels) in RGB_LIKE and not pixels.is_floating_point():
        pixels = pixels.to(integer_type(pixels))
    if convert:
        pixels = rgb_channels(pixels, white if image.is_floating_point() else UINT16_MAX)
    is_deep_rgb = len(pixels) == RGB and pixels.dtype == torch.uint16
    return pixels if pixels.dtype == torch.uint8 or is_deep_rgb else pixels.to(torch.float32)


def integer_type(image: torch.Tensor) -> torch.dtype:
    """Return the type of the values of an integer image (C, H, W) that becomes RGB: uint8, uint16, or float32 for
    others.

    Images of 8 and 16 bits keep their types. Computations on them return int32 or int64, where 0 .. 255 is 8-bit and
    0 .. 65535 is 16-bit; gray int32 is always 16-bit, as PIL's mode I is. Raises HfVitSegError for gray values out of
    0 .. 65535. RGB images of signed 16 bits, and of other values, are measurements without a white.
    """
    if image.dtype in (torch.uint8, torch.uint16):
        return image.dtype
    low, high = value_range(image)
    return narrowest_type(image.dtype, len(image), low, high)


def value_range(image: torch.Tensor) -> tuple[int, int]:
    """Return the lowest and the highest value of an integer image; 0 and 0 if it is empty."""
    values = image.to(torch.int64)
    return (int(values.min()), int(values.max())) if values.numel() else (0, 0)


def narrowest_type(dtype: torch.dtype, channels: int, low: int, high: int) -> torch.dtype:
    """Return the type for values from `low` to `high` of an integer `dtype`, see `integer_type`."""
    in_range, gray = low >= 0 and high <= UINT16_MAX, channels == 1
    if gray and not in_range:
        raise gray_error(low, high)
    wide = dtype.itemsize > (4 if gray else 2)
    if wide and in_range and high <= EIGHT_BIT_WHITE:
        return torch.uint8
    return torch.uint16 if in_range and (gray or dtype.itemsize > 2) else torch.float32


def native_array(image: Any) -> np.ndarray:
    """Return an array that torch can take: contiguous, writable, in the machine's byte order."""
    array = np.asarray(image)
    if array.dtype.kind not in "buif":
        raise HfVitSegError(f"Pixels must be real numbers, found the type {array.dtype}")
    if any(stride < 0 for stride in array.strides):  # including axes of length 1, which count as contiguous
        array = array.copy()
    return np.require(array, array.dtype.newbyteorder("="), requirements=["C", "W"])


def channels_first(image: torch.Tensor, channels: Sequence[int], layout: str | ChannelDimension | None) -> torch.Tensor:
    """Convert (H, W), (C, H, W) or (H, W, C) to (C, H, W).

    Without a `layout`, the channel axis is the one whose length is in `channels`; the first takes precedence.
    """
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise HfVitSegError(f"Found an image of shape {tuple(image.shape)}, expected (H, W), (C, H, W) or (H, W, C)")
    if layout is not None:
        return image.permute(2, 0, 1) if ChannelDimension(layout) == ChannelDimension.LAST else image
    axis = channel_axis(image.shape, channels)
    if axis is None:
        raise HfVitSegError(
            f"An image of shape {tuple(image.shape)} has no axis of {' or '.join(map(str, channels))} channels, "
            "which image_mean requires: pass input_data_format or a processor with one mean per channel"
        )
    return image if axis == 0 else image.permute(2, 0, 1)


def channel_axis(shape: Sequence[int], channels: Sequence[int]) -> int | None:
    """Return the axis of a shape of three, 0 or 2, whose length is in `channels`; earlier ones take precedence, then
    axis 0.

    None if there is none.
    """
    ends = (shape[0], shape[2])
    return next((2 * ends.index(count) for count in channels if count in ends), None)


def rgb_channels(image: torch.Tensor, white: float) -> torch.Tensor:
    """Convert (1, H, W) or (4, H, W) to (3, H, W): gray is repeated, and transparency is blended with white.

    `white` is that of float32, as unsigned integers have their own.
    """
    if image.shape[0] == 1:
        return image.expand(RGB, -1, -1)
    if image.shape[0] != 4:
        return image
    white = {torch.uint8: EIGHT_BIT_WHITE, torch.uint16: float(UINT16_MAX)}.get(image.dtype, white)
    values = image.to(torch.float32)
    alpha = values[RGB:] / white
    blended = values[:RGB] * alpha + white * (1 - alpha)
    return blended if image.is_floating_point() else blended.round().to(image.dtype)


def highest_value(do_rescale: bool | None, rescale_factor: float | None) -> float:
    """Return the value of white that a processor expects; 1 if it does not rescale images."""
    return 1 / rescale_factor if do_rescale and rescale_factor else 1.0


def list_maps(maps: Any, count: int) -> list[Any]:
    """Return the segmentation maps of `count` images, each of any type; ValueError for another number of maps.

    An array for one image is one map, also if it has a third axis; for several images, the first axis counts them.
    """
    if isinstance(maps, list | tuple):
        items = [part for item in maps for part in (item if isinstance(item, list | tuple) else [item])]
    elif isinstance(maps, np.ndarray | torch.Tensor) and (count != 1 or maps.ndim > 3):
        items = list(maps)
    else:
        items = [maps]
    if len(items) != count:
        raise HfVitSegError(f"Found {len(items)} segmentation maps for {count} images: pass one map for each image")
    return items


def read_map(source: str | os.PathLike) -> Image.Image:
    """Return the segmentation map in a file with its stored values, or from an address, from which transformers reads
    RGB.
    """
    if os.path.isfile(source):
        with Image.open(source) as image:
            image.load()
            return image
    image = load_image(os.fspath(source))
    red, *others = image.split()
    is_gray = all(red.tobytes() == other.tobytes() for other in others)
    return red if is_gray else image


def class_map(image: Any) -> torch.Tensor:
    """Return a segmentation map of any type as (H, W) int64; palettes are ignored."""
    if isinstance(image, str | os.PathLike):
        image = read_map(image)
    if isinstance(image, Image.Image):
        image = np.array(image)
    labels = torch.as_tensor(np.asarray(image) if not isinstance(image, torch.Tensor) else image)
    if labels.ndim == 3 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels[0] if labels.shape[0] == 1 else labels[..., 0]
    if labels.ndim != 2:
        raise HfVitSegError(
            f"A segmentation map has one class index per pixel, (height, width), got {tuple(labels.shape)}. "
            "Convert color masks to class indices first"
        )
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):  # NaN is not equal to itself
        raise HfVitSegError(
            "A segmentation map has integer class indices, got fractions or NaN: convert scores to classes, and give "
            "ignored pixels an index such as 255"
        )
    labels = labels.to(torch.int64)
    if labels.numel() and labels.min() < 0:
        raise HfVitSegError(
            f"A segmentation map has class indices from 0, got {labels.min()}: give ignored pixels an index such as 255"
        )
    return labels


__all__ = [
    "channel_axis",
    "class_map",
    "highest_value",
    "list_maps",
    "narrowest_type",
    "reduce_gray",
    "rgb_image",
    "scale_pixels",
    "stored_pixels",
    "to_pixels",
]
